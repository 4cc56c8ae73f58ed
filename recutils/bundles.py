"""Sets of items that go together, under constraints (chapter 05)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.rules.measures import pair_counts, shrunk_log_lift


class BundleError(ValueError):
    """No bundle meets the constraints; the message names those that could be relaxed."""


@dataclass
class BundleConstraints:
    """What a bundle must keep to; each is optional, arrays have one value an item, (n_items,).

    - `substitutes`: no two items with the same label, beyond those of the seed items
    - `prices` and `budget`: what is added costs no more in all; an item of unknown price (nan) is not added
    - `departments` and `min_departments`: how many different ones the whole bundle spans
    - `allowed`: bool, what may be added
    """

    substitutes: np.ndarray | None = None
    prices: np.ndarray | None = None
    budget: float | None = None
    departments: np.ndarray | None = None
    min_departments: int = 1
    allowed: np.ndarray | None = None

    def in_force(self) -> list[str]:
        """The names of the constraints that are given, for an error message."""
        given = {
            "budget": self.budget is not None,
            "substitutes": self.substitutes is not None,
            "min_departments": self.min_departments > 1,
            "allowed": self.allowed is not None,
        }
        return [name for name, holds in given.items() if holds]


def pair_affinity(matrix: sparse.csr_matrix, popularity_weight: float = 0.0, min_count: int = 5) -> sparse.csr_matrix:
    """How well two items go together: a_ij = log((n_ij + 1) / (E_ij + 1)) + popularity_weight * log(n_i n_j / N) / 2.

    n_ij joint baskets where chance would give E_ij = n_i n_j / N; pairs in fewer than `min_count` baskets of
    `matrix` (n_baskets, n_items), and pairs for which a would not be above 0, are not kept. csr (n_items, n_items).
    """
    counts = pair_counts(matrix).tocoo()
    keep = (counts.data >= min_count) & (counts.row != counts.col)
    row, column, joint = counts.row[keep], counts.col[keep], counts.data[keep]
    sold = np.asarray(matrix.sum(axis=0)).ravel().astype(float)
    expected = sold[row] * sold[column] / matrix.shape[0]
    value = shrunk_log_lift(joint, expected) + popularity_weight * np.log(np.maximum(expected, 1)) / 2
    above = value > 0
    return sparse.csr_matrix((value[above].astype(np.float32), (row[above], column[above])), counts.shape)


def bundle_score(items: Sequence[int], affinity: sparse.csr_matrix) -> float:
    """Affinity of a set as a whole: the mean of a_ij over its pairs. `affinity` (n_items, n_items)."""
    part = affinity[list(items)][:, list(items)]
    return float(part.sum() / max(len(items) * (len(items) - 1), 1))


def make_bundle(
    seed_items: Sequence[int],
    affinity: sparse.csr_matrix,
    size: int = 4,
    constraints: BundleConstraints | None = None,
    seed_weight: float = 1.0,
    beam_width: int = 10,
) -> list[int]:
    """The set of `size` items with the highest `bundle_score` around `seed_items` that a beam search finds.

    The seed items come first. A pair with one of them counts `seed_weight` times: above 1, items that go with each
    other must go with the seed items as well. `affinity` (n_items, n_items) comes from `pair_affinity`.

    Raises BundleError where the search finds no such set, ValueError for no seed items or unknown ones.
    """
    start = list(dict.fromkeys(int(i) for i in seed_items))
    if not start or min(start) < 0 or max(start) >= affinity.shape[0]:
        raise ValueError(f"The seed items are {list(seed_items)}; give items from 0 to {affinity.shape[0] - 1}.")
    wanted = constraints or BundleConstraints()
    search = _BeamSearch(affinity, wanted, start, beam_width)
    gain = seed_weight * np.asarray(affinity[start].sum(axis=0)).ravel()
    partial = [_Partial(0.0, start, gain, search.candidates())]
    for left in range(size - len(start), 0, -1):
        partial = search.extend(partial, left)
        if not partial:
            asked = ", ".join([*wanted.in_force(), "size"])
            raise BundleError(f"No bundle of {size} items meets all constraints; relax one of: {asked}.")
    return partial[0].items


@dataclass
class _Partial:
    """A set so far: its affinity, its items, what each item would add to it, which may still be added."""

    score: float
    items: list[int]
    gain: np.ndarray  # (n_items,)
    free: np.ndarray  # (n_items,) bool


class _BeamSearch:
    """Sets of one item more, the `beam_width` best of them, from sets that meet the constraints so far."""

    def __init__(
        self, affinity: sparse.csr_matrix, wanted: BundleConstraints, start: list[int], beam_width: int
    ) -> None:
        n = affinity.shape[0]
        self.affinity, self.start, self.beam_width = affinity, start, beam_width
        self.allowed = np.ones(n, bool) if wanted.allowed is None else np.asarray(wanted.allowed, bool)
        self.budget = np.inf if wanted.budget is None else wanted.budget
        prices = np.zeros(n) if wanted.budget is None or wanted.prices is None else np.asarray(wanted.prices)
        self.cost = np.where(np.isnan(prices), np.inf, prices)
        self.substitute = np.arange(n) if wanted.substitutes is None else pd.factorize(wanted.substitutes)[0]
        self.department = np.zeros(n, int) if wanted.departments is None else pd.factorize(wanted.departments)[0]
        self.min_departments = wanted.min_departments

    def candidates(self) -> np.ndarray:
        """What may be added to the seed items, (n_items,) bool."""
        free = self.allowed & ~np.isin(self.substitute, self.substitute[self.start])
        free[self.start] = False
        return free

    def extend(self, sets: list[_Partial], left: int) -> list[_Partial]:
        """The best sets of one item more, where `left` items are still to be added; empty where there are none."""
        longer: dict[frozenset, tuple[float, int, int]] = {}
        for number, part in enumerate(sets):
            best = np.flatnonzero(self._addable(part, left))
            if len(best) > self.beam_width:
                best = best[np.argpartition(-part.gain[best], self.beam_width)[: self.beam_width]]
            longer |= {frozenset([*part.items, int(i)]): (part.score + part.gain[i], number, int(i)) for i in best}
        chosen = sorted(longer.values(), key=lambda entry: (-entry[0], entry[2]))[: self.beam_width]
        return [self._with(sets[number], i, score) for score, number, i in chosen]

    def _addable(self, part: _Partial, left: int) -> np.ndarray:
        free = part.free & (self.cost <= self.budget - self.cost[part.items[len(self.start) :]].sum())
        held = self.department[part.items]
        if len(set(held)) + left - 1 < self.min_departments:  # each item still to come must bring a new department
            free &= ~np.isin(self.department, held)
        return free

    def _with(self, part: _Partial, item: int, score: float) -> _Partial:
        gain = part.gain + self.affinity[item].toarray()[0]
        return _Partial(score, [*part.items, item], gain, part.free & (self.substitute != self.substitute[item]))
