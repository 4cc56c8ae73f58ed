"""Frequent itemsets and association rules, counted exactly (chapter 04).

Thresholds are integers inside: an itemset is frequent when its count reaches the smallest integer at or
above `min_support` times the number of baskets, and a confidence is compared by cross-multiplication, so
no floating-point rounding decides about a rule on the boundary.
"""

from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

MEASURES = ["support", "count", "confidence", "lift", "leverage", "conviction", "zhang"]


def frequent_itemsets(baskets: Any, min_support: float, max_len: int | None = None) -> pd.DataFrame:
    """All itemsets in at least `min_support` of the baskets, by depth-first search over conditional baskets.

    - `baskets`: scipy.sparse 0/1 matrix (n_baskets, n_items), or an iterable of iterables of hashable items
    - `min_support`: share of the baskets, above 0 and at most 1
    - `max_len`: longest itemset wanted; None for no limit

    Returns a table with `itemset` (frozenset of column numbers, or of the items given), `length`, `count`
    (baskets that hold it) and `support` (count / n_baskets, in 0..1), the shortest and then the most
    frequent first. Raises ValueError for thresholds out of range and for no baskets.

    The search is that of Eclat (Zaki, 2000) with the counting done by matrix products.
    """
    matrix, names = _as_matrix(baskets)
    levels, order = _mine(matrix, _min_count(min_support, matrix.shape[0]), _check_length(max_len))
    tables = [
        pd.DataFrame({"itemset": _named(order[sets], names), "length": sets.shape[1], "count": counts})
        for sets, counts in levels
    ]
    columns = ["itemset", "length", "count"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
    table["support"] = table["count"] / matrix.shape[0]
    return table.sort_values(["length", "count"], ascending=[True, False], kind="stable", ignore_index=True)


def association_rules(
    baskets: Any,
    min_support: float,
    min_confidence: float,
    max_len: int | None = None,
    single_consequent: bool = True,
) -> pd.DataFrame:
    """All rules antecedents -> consequents with enough support and confidence.

    Arguments as for `frequent_itemsets`; `min_confidence` in 0..1; `max_len` counts both sides together;
    `single_consequent` keeps rules with one item on the right. Antecedents are never empty.

    Returns a table with `antecedents` and `consequents` (frozensets), `support`, `count`, `confidence`,
    `lift`, `leverage`, `conviction`, `zhang` (see `interest_measures`), the strongest confidence first.
    Raises ValueError for thresholds out of range and for no baskets.

    Source: Agrawal, Imielinski and Swami (1993); Agrawal and Srikant (1994).
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence is {min_confidence}; it is a share, from 0 to 1.")
    matrix, names = _as_matrix(baskets)
    levels, order = _mine(matrix, _min_count(min_support, matrix.shape[0]), _check_length(max_len))
    share = Fraction(str(min_confidence))
    parts = []
    for sets, counts in levels[1:]:
        length = sets.shape[1]
        for size in [1] if single_consequent else range(1, length):
            for right in combinations(range(length), size):
                left = [c for c in range(length) if c not in right]
                of_left, of_right = _count_of(sets[:, left], levels), _count_of(sets[:, list(right)], levels)
                keep = counts * share.denominator >= share.numerator * of_left
                sides = sets[keep]
                part = {
                    "antecedents": _named(order[sides[:, left]], names),
                    "consequents": _named(order[sides[:, list(right)]], names),
                    **interest_measures(counts[keep], of_left[keep], of_right[keep], matrix.shape[0]),
                }
                parts.append(pd.DataFrame(part))
    if not parts:
        return pd.DataFrame(columns=["antecedents", "consequents", *MEASURES])
    rules = pd.concat(parts, ignore_index=True)
    return rules.sort_values(["confidence", "count"], ascending=False, kind="stable", ignore_index=True)


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
    basket, rule = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(rule, kind="stable")
    return basket[order], rule[order]


# ---------------------------------------------------------------------------------------------- inside

Levels = list[tuple[np.ndarray, np.ndarray]]  # for lengths 1, 2, ...: (n_sets, length) and (n_sets,)


def _mine(matrix: sparse.csr_matrix, min_count: int, max_len: int | None) -> tuple[Levels, np.ndarray]:
    """Frequent sets by length, as numbers into `order`, the columns of `matrix` from rare to frequent.

    Rare items first keeps the conditional baskets small. Rows of a level are in lexicographic order.
    """
    support = np.asarray(matrix.sum(axis=0)).ravel().astype(np.int64)  # (n_items,)
    order = np.argsort(support, kind="stable")
    order = order[support[order] >= min_count]
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[], [], [(np.empty((0, 2), int), np.empty(0, int))]]
    found[1].append((np.arange(len(order))[:, None], support[order]))
    if len(order) and max_len != 1:
        x = sparse.csr_matrix(matrix[:, order])  # (n_baskets, n_frequent)
        pairs = sparse.triu(pair_counts(x), k=1).tocsr()
        pairs.sort_indices()
        pairs.data[pairs.data < min_count] = 0
        pairs.eliminate_zeros()
        sets = np.column_stack([np.repeat(np.arange(len(order)), np.diff(pairs.indptr)), pairs.indices])
        found[2].append((sets, pairs.data.astype(np.int64)))
        if max_len is None or max_len > 2:
            _deepen_pairs(x, pairs, min_count, max_len, found)
    levels = [(np.concatenate([s for s, _ in f]), np.concatenate([c for _, c in f])) for f in found[1:]]
    return [level for level in levels if len(level[0])], order


def _deepen_pairs(
    x: sparse.csr_matrix, pairs: sparse.csr_matrix, min_count: int, max_len: int | None, found: list
) -> None:
    """Go below every item: the baskets that hold it, cut down to its frequent partners."""
    columns = x.tocsc()
    for item in range(x.shape[1]):
        partners = pairs.indices[pairs.indptr[item] : pairs.indptr[item + 1]]
        if len(partners) > 1:
            holders = columns.indices[columns.indptr[item] : columns.indptr[item + 1]]
            block = x[holders][:, partners].toarray().astype(np.float32)  # (count of item, n_partners)
            _deepen(np.array([item]), block, partners, min_count, max_len, found)


def _deepen(
    prefix: np.ndarray, block: np.ndarray, items: np.ndarray, min_count: int, max_len: int | None, found: list
) -> None:
    """One node of the search: all pairs below `prefix` in one product, then each first item in turn.

    `block` is the 0/1 matrix (baskets that hold the prefix, items frequent with it).
    """
    counts = np.triu(block.T @ block, k=1)  # (n_items, n_items); whole numbers below 2^24, so exact
    first, second = np.nonzero(counts >= min_count)
    if not len(first):
        return
    length = len(prefix) + 2
    while len(found) <= length:
        found.append([])
    sets = np.column_stack([np.broadcast_to(prefix, (len(first), len(prefix))), items[first], items[second]])
    found[length].append((sets, counts[first, second].astype(np.int64)))
    if max_len is not None and length >= max_len:
        return
    starts = np.searchsorted(first, np.arange(len(items) + 1))
    for a in np.flatnonzero(np.diff(starts) > 1):
        partners = second[starts[a] : starts[a + 1]]
        below = block[block[:, a] > 0][:, partners]
        _deepen(np.append(prefix, items[a]), below, items[partners], min_count, max_len, found)


def _count_of(sets: np.ndarray, levels: Levels) -> np.ndarray:
    """The counts of itemsets (n_sets, length), all of them frequent."""
    return levels[sets.shape[1] - 1][1][_place(sets, levels)]


def _place(sets: np.ndarray, levels: Levels) -> np.ndarray:
    """Row numbers of frequent itemsets in their level: each item is one step down a prefix tree.

    Neighbouring rows with equal sets are looked up once.
    """
    if sets.shape[1] == 1:
        return sets[:, 0]
    new = np.r_[True, (sets[1:] != sets[:-1]).any(axis=1)] if len(sets) else np.empty(0, bool)
    level = levels[sets.shape[1] - 1][0]
    n_items = len(levels[0][0])
    keys = _place(level[:, :-1], levels) * n_items + level[:, -1]  # sorted, as the level is
    heads = sets[new]
    rows = np.searchsorted(keys, _place(heads[:, :-1], levels) * n_items + heads[:, -1])
    return rows[np.cumsum(new) - 1]


def _named(sets: np.ndarray, names: Sequence[Hashable] | None) -> list[frozenset]:
    rows = sets.tolist()
    return [frozenset(row) if names is None else frozenset(names[i] for i in row) for row in rows]


def _as_matrix(baskets: Any) -> tuple[sparse.csr_matrix, list[Hashable] | None]:
    """A 0/1 csr matrix and, where the baskets came as items, the items in the order of the columns."""
    names: list[Hashable] | None = None
    if not sparse.issparse(baskets):
        names, baskets = _from_iterables(baskets)
    matrix = sparse.csr_matrix(baskets, dtype=np.int32)
    if matrix.shape[0] == 0:
        raise ValueError("There are no baskets to mine; pass at least one.")
    if matrix.nnz and (matrix.data.min() < 0 or matrix.data.max() > 1):
        raise ValueError("The matrix holds values other than 0 and 1; pass (matrix > 0) instead.")
    return matrix, names


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
    exact = Fraction(str(min_support)) * n_baskets
    return max(1, -(-exact.numerator // exact.denominator))


def _check_length(max_len: int | None) -> int | None:
    if max_len is not None and max_len < 1:
        raise ValueError(f"max_len is {max_len}; it is the longest itemset wanted, 1 or more, or None.")
    return max_len
