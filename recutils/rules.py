"""Frequent itemsets and association rules, counted exactly (chapter 04).

Thresholds are compared with one quotient of two whole numbers, count / baskets or count / count: a division rounds
to the nearest float, as does whoever writes the threshold, so that no rounding decides about a rule on the boundary.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from recutils.mining import Itemsets

MEASURES = ["support", "count", "confidence", "lift", "leverage", "conviction", "zhang"]


def mine(baskets: Any, min_support: float, max_len: int | None = None, memory: int | None = None) -> "Itemsets":
    """All itemsets in at least `min_support` of the baskets, as compact arrays.

    - `baskets`: scipy.sparse 0/1 matrix (n_baskets, n_items), or an iterable of iterables of hashable items
    - `min_support`: share of the baskets, above 0 and at most 1
    - `max_len`: longest itemset wanted; None for no limit
    - `memory`: how many bytes they may take; half of what is free where not given

    Raises ValueError for thresholds out of range and for no baskets, and MemoryError before it takes too much.
    """
    from recutils import mining  # only who mines needs its compiler

    matrix, names = _as_matrix(baskets)
    found = mining.search(matrix, _min_count(min_support, matrix.shape[0]), _check_length(max_len), memory)
    found.names = names
    return found


def frequent_itemsets(baskets: Any, min_support: float, max_len: int | None = None, keep: str = "all") -> pd.DataFrame:
    """All itemsets in at least `min_support` of the baskets; arguments and errors as for `mine`.

    `keep="closed"`: only itemsets without a superset in as many baskets; `"maximal"`: without a frequent superset.

    Returns a table with `itemset` (frozenset of column numbers, or of the items given), `length`, `count`
    (baskets that hold it) and `support` (count / n_baskets, in 0..1), the shortest and then the most
    frequent first.
    """
    deeper = max_len + 1 if max_len is not None and keep != "all" else max_len  # supersets are one item longer
    return mine(baskets, min_support, deeper).table(keep, max_len)


def association_rules(
    baskets: Any,
    min_support: float,
    min_confidence: float,
    max_len: int | None = None,
    single_consequent: bool = True,
    best: int | None = None,
    by: str = "confidence",
) -> pd.DataFrame:
    """All rules antecedents -> consequents with enough support and confidence, the strongest first.

    Arguments as for `mine`; `min_confidence` in 0..1; `max_len` counts both sides together; `single_consequent`
    keeps rules with one item on the right; `best` keeps that many rules, the largest `by` a measure. Antecedents
    are never empty.

    Returns a table with `antecedents` and `consequents` (frozensets), `support`, `count`, `confidence`,
    `lift`, `leverage`, `conviction`, `zhang` (see `interest_measures`), in falling order of the measure `by`.
    Raises ValueError for thresholds out of range, an unknown measure and no baskets.

    A larger right side leaves a smaller left side, which is in more baskets: confidence can only fall. So a right
    side is tried only where all that lie in it have held. Source: Agrawal, Imielinski and Swami (1993); Agrawal
    and Srikant (1994).
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence is {min_confidence}; it is a share, from 0 to 1.")
    if by not in MEASURES:
        raise ValueError(f"{by!r} is no measure; use one of {', '.join(MEASURES)}.")
    found = mine(baskets, min_support, max_len)
    links = list(found.links())

    def count_without(rows: np.ndarray, length: int, gone: Sequence[int]) -> np.ndarray:
        for up, place in enumerate(sorted(gone, reverse=True)):
            rows = links[length - 1 - up][rows, place]
        return found.levels[length - 1 - len(gone)][2][rows]

    parts = []
    for length in range(2, len(found.levels) + 1):
        sets, count, everywhere = found.sets(length), found.levels[length - 1][2], range(length)
        held: dict[tuple[int, ...], np.ndarray] = {}  # right side, as places in the itemset: the rows where it held
        for size in [1] if single_consequent else range(1, length):
            for right in combinations(everywhere, size):
                rows = np.arange(len(sets))
                if size > 1:
                    if right[:-1] not in held or right[1:] not in held:
                        continue
                    rows = np.intersect1d(held[right[:-1]], held[right[1:]], assume_unique=True)
                left = [place for place in everywhere if place not in right]
                of_left = count_without(rows, length, right)
                keep = count[rows] / of_left >= min_confidence
                rows, of_left = rows[keep], of_left[keep]
                if not len(rows):
                    continue
                held[right] = rows
                measures = interest_measures(count[rows], of_left, count_without(rows, length, left), found.n_baskets)
                if best is not None and len(rows) > best:
                    top = np.lexsort((-measures["count"], -measures["confidence"], -measures[by]))[:best]
                    rows, measures = rows[top], {name: values[top] for name, values in measures.items()}
                sides = (found.named(sets[rows][:, list(side)]) for side in (left, right))
                parts.append(pd.DataFrame(dict(zip(("antecedents", "consequents"), sides, strict=True)) | measures))
    if not parts:
        return pd.DataFrame(columns=["antecedents", "consequents", *MEASURES])
    rules = pd.concat(parts, ignore_index=True)
    return rules.sort_values([by, "confidence", "count"], ascending=False, kind="stable", ignore_index=True)[:best]


def interest_measures(count: Any, count_left: Any, count_right: Any, n: int) -> dict[str, np.ndarray]:
    """Measures of rules A -> C from how many of `n` baskets hold A and C, A, and C.

    - support = P(A, C), 0..1, and `count` = n P(A, C)
    - confidence = P(C | A), 0..1
    - lift = P(A, C) / (P(A) P(C)), 0..inf, 1 where A and C are independent
    - leverage = P(A, C) - P(A) P(C), -0.25..0.25, 0 where independent
    - conviction = P(A) P(not C) / P(A, not C), 0..inf, 1 where independent, inf where the rule never fails
    - zhang = leverage / max(P(A, C) P(not A), P(A) (P(C) - P(A, C))), -1..1, 0 where independent

    Sources: Brin et al. (1997) for lift and conviction, Piatetsky-Shapiro (1991), Zhang (2000).
    """
    both, left, right = (np.asarray(c, dtype=float) / n for c in (count, count_left, count_right))
    confidence = np.asarray(count, dtype=float) / count_left
    leverage = both - left * right
    with np.errstate(divide="ignore", invalid="ignore"):
        conviction = np.where(confidence < 1, (1 - right) / (1 - confidence), np.inf)
        bound = np.maximum(both * (1 - left), left * (right - both))
        zhang = np.where(bound > 0, leverage / bound, 0.0)
    return {
        "support": both,
        "count": np.asarray(count),
        "confidence": confidence,
        "lift": confidence / right,
        "leverage": leverage,
        "conviction": conviction,
        "zhang": zhang,
    }


def pair_counts(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """How many baskets hold each pair of items: X^T X, (n_items, n_items), the diagonal holding the items' own."""
    x = sparse.csr_matrix(matrix, dtype=np.int32)
    return sparse.csr_matrix(x.T @ x)


def shrunk_log_lift(both: Any, chance: Any) -> np.ndarray:
    """log((n_ij + 1) / (E_ij + 1)) with n_ij joint baskets where chance would give E_ij; float32.

    The ones hold back pairs of which little is known: 0 where nothing was expected and nothing seen.
    """
    return np.log((np.asarray(both) + 1) / (np.asarray(chance) + 1)).astype(np.float32)


def left_sides(rules: pd.DataFrame, n_items: int) -> sparse.csr_matrix:
    """The antecedents as a 0/1 matrix (n_items, n_rules), for rules over the columns of a basket matrix."""
    sizes = rules["antecedents"].map(len).to_numpy(dtype=int)
    column = np.fromiter((i for left in rules["antecedents"] for i in left), dtype=int, count=sizes.sum())
    rule = np.repeat(np.arange(len(sizes)), sizes)
    return sparse.csr_matrix((np.ones(len(rule), np.float32), (column, rule)), shape=(n_items, len(sizes)))


def firing(matrix: sparse.csr_matrix, left: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Which rules fire in which baskets: (basket numbers, rule numbers), in ascending order of the rules.

    `matrix` is 0/1 (n_baskets, n_items), `left` comes from `left_sides`; a rule fires when all of its left
    side is in the basket.
    """
    sizes = np.asarray(left.sum(axis=0)).ravel()
    found = []
    for start in range(0, matrix.shape[0], 1024):  # partly held left sides are many, so not all at once
        held = sparse.coo_matrix(matrix[start : start + 1024] @ left)
        whole = held.data == sizes[held.col]
        found.append((held.row[whole] + start, held.col[whole]))
    empty = np.empty(0, int)
    basket, rule = (np.concatenate(part) for part in zip((empty, empty), *found, strict=True))
    order = np.argsort(rule, kind="stable")
    return basket[order], rule[order]


def with_groups(matrix: sparse.csr_matrix, groups: np.ndarray) -> sparse.csr_matrix:
    """Baskets with a column more for each group of items: 0/1 (n_baskets, n_items + n_groups).

    `groups` (n_items,) numbers each item's group from 0; a basket holds a group when it holds one of its items.
    Mining this matrix finds generalised rules (Srikant and Agrawal, 1995).
    """
    n_items = matrix.shape[1]
    if len(groups) != n_items:
        raise ValueError(f"{len(groups)} groups for {n_items} items; give one an item.")
    member = sparse.csr_matrix((np.ones(n_items, np.float32), (np.arange(n_items), groups)))
    held = sparse.csr_matrix(matrix @ member)
    held.data[:] = 1
    return sparse.hstack([matrix, held]).tocsr()


def for_items(rules: pd.DataFrame, groups: np.ndarray) -> pd.DataFrame:
    """Of rules over `with_groups` with one consequent, those that offer an item and say something.

    Left sides may hold items and groups, but neither the group of the item offered, nor an item together with its
    own group, nor a group of one item, which says what the item says.
    """
    n_items = len(groups)
    single = set((np.flatnonzero(np.bincount(groups) == 1) + n_items).tolist())

    def says(left: frozenset, right: frozenset) -> bool:
        offered = min(right)
        within = {groups[i] + n_items for i in left if i < n_items}
        return offered < n_items and groups[offered] + n_items not in left and not (within | single) & left

    keep = [says(left, right) for left, right in zip(rules["antecedents"], rules["consequents"], strict=True)]
    return rules[np.array(keep, dtype=bool)].reset_index(drop=True)


# ---------------------------------------------------------------------------------------------- inside


def _as_matrix(baskets: Any) -> tuple[sparse.csr_matrix, list[Hashable] | None]:
    """A 0/1 csr matrix and, where the baskets came as items, the items in the order of the columns."""
    names: list[Hashable] | None = None
    if not sparse.issparse(baskets):
        names, baskets = _from_iterables(baskets)
    matrix = sparse.csr_matrix(baskets, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    if matrix.shape[0] == 0:
        raise ValueError("There are no baskets to mine; pass at least one.")
    if (matrix.data != 1).any():
        raise ValueError("The matrix holds values other than 0 and 1; pass (matrix > 0) instead.")
    return matrix.astype(np.int32), names


def _from_iterables(baskets: Iterable[Iterable[Hashable]]) -> tuple[list[Hashable], sparse.csr_matrix]:
    numbers: dict[Hashable, int] = {}
    columns: list[int] = []
    ends = [0]
    for basket in baskets:
        if isinstance(basket, str):
            raise ValueError(f"A basket is the string {basket!r}; pass a list of items instead.")
        columns.extend({numbers.setdefault(item, len(numbers)) for item in basket})
        ends.append(len(columns))
    shape = (len(ends) - 1, len(numbers))
    return list(numbers), sparse.csr_matrix((np.ones(len(columns), np.int32), columns, ends), shape=shape)


def _min_count(min_support: float, n_baskets: int) -> int:
    if not 0 < min_support <= 1:
        raise ValueError(f"min_support is {min_support}; it is a share of the baskets, above 0 and at most 1.")
    count = max(1, int(min_support * n_baskets) - 1)
    while count / n_baskets < min_support:
        count += 1
    return count


def _check_length(max_len: int | None) -> int | None:
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len is {max_len}; it is the longest itemset wanted, 1 or more, or None.")
    return max_len
