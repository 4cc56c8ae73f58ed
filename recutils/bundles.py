"""Sets of items that go together, under constraints (chapter 05)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.rules.measures import pair_counts, shrunk_log_lift


class BundleError(ValueError):
    """No bundle meets what was asked for; the message says which wish to give up."""


def cohesion(matrix: sparse.csr_matrix, popularity: float = 0.0, min_count: int = 5) -> sparse.csr_matrix:
    """How well two items go together: c_ij = log((n_ij + 1) / (E_ij + 1)) + popularity * log(n_i n_j / N) / 2.

    n_ij joint baskets where chance would give E_ij = n_i n_j / N; pairs in fewer than `min_count` baskets of
    `matrix` (n_baskets, n_items), and pairs for which c would not be above 0, are not kept. csr (n_items, n_items).
    """
    counts = pair_counts(matrix).tocoo()
    keep = (counts.data >= min_count) & (counts.row != counts.col)
    row, column, both = counts.row[keep], counts.col[keep], counts.data[keep]
    sold = np.asarray(matrix.sum(axis=0)).ravel().astype(float)
    chance = sold[row] * sold[column] / matrix.shape[0]
    value = shrunk_log_lift(both, chance) + popularity * np.log(np.maximum(chance, 1)) / 2
    above = value > 0
    return sparse.csr_matrix((value[above].astype(np.float32), (row[above], column[above])), counts.shape)


def bundle_score(items: Sequence[int], pairs: sparse.csr_matrix) -> float:
    """Cohesion of a set as a whole: the mean of c_ij over its pairs. `pairs` (n_items, n_items)."""
    part = pairs[list(items)][:, list(items)]
    return float(part.sum() / max(len(items) * (len(items) - 1), 1))


def make_bundle(
    seed: Sequence[int],
    pairs: sparse.csr_matrix,
    size: int = 4,
    kinds: np.ndarray | None = None,
    prices: np.ndarray | None = None,
    budget: float | None = None,
    departments: np.ndarray | None = None,
    at_least: int = 1,
    allowed: np.ndarray | None = None,
    anchor: float = 1.0,
    beam: int = 10,
) -> list[int]:
    """The set of `size` items around `seed` with the highest `bundle_score` that a beam search finds; the seed first.

    A pair with an item of the seed counts `anchor` times: above 1, items that go with each other must go with the
    seed as well.

    - `kinds` (n_items,): no two items of one kind (substitutes), beyond those that the seed holds
    - `prices` (n_items,) and `budget`: what is added costs no more in all; an unknown price (nan) is left out
    - `departments` (n_items,) and `at_least`: how many different ones the whole set spans
    - `allowed` (n_items,) bool: what may be added

    Raises BundleError where the search finds no such set, ValueError for an empty seed or unknown items.
    """
    start = list(dict.fromkeys(int(i) for i in seed))
    if not start or min(start) < 0 or max(start) >= pairs.shape[0]:
        raise ValueError(f"The seed is {list(seed)}; give items from 0 to {pairs.shape[0] - 1}.")
    n = pairs.shape[0]
    free = np.ones(n, bool) if allowed is None else np.asarray(allowed, bool).copy()
    cost = np.zeros(n) if budget is None or prices is None else np.where(np.isnan(prices), np.inf, prices)
    limit = np.inf if budget is None else budget
    kind = np.arange(n) if kinds is None else pd.factorize(kinds)[0]
    place = np.zeros(n, int) if departments is None else pd.factorize(departments)[0]
    free &= ~np.isin(kind, kind[start])
    free[start] = False
    # A set so far: its cohesion, its items, what each item would add to it, what may still be added.
    sets = [(0.0, start, anchor * np.asarray(pairs[start].sum(axis=0)).ravel(), free)]
    for left in range(size - len(start), 0, -1):
        longer: dict[frozenset, tuple[float, int, int]] = {}
        for number, (total, items, gain, may) in enumerate(sets):
            may = may & (cost <= limit - cost[items[len(start) :]].sum())
            if len(set(place[items])) + left - 1 < at_least:  # every place that is left must be a new department
                may &= ~np.isin(place, place[items])
            best = np.flatnonzero(may)
            if len(best) > beam:
                best = best[np.argpartition(-gain[best], beam)[:beam]]
            longer |= {frozenset([*items, int(i)]): (total + gain[i], number, int(i)) for i in best}
        chosen = sorted(longer.values(), key=lambda entry: (-entry[0], entry[2]))[:beam]
        if not chosen:
            wishes = {"budget": budget is not None, "kinds": kinds is not None, "at_least": at_least > 1}
            asked = ", ".join([name for name, given in wishes.items() if given] + ["size"])
            raise BundleError(f"No bundle of {size} items meets all wishes; ease one of: {asked}.")
        sets = [
            (
                total,
                [*sets[number][1], i],
                sets[number][2] + pairs[i].toarray()[0],
                sets[number][3] & (kind != kind[i]),
            )
            for total, number, i in chosen
        ]
    return sets[0][1]
