"""Frequent itemsets and association rules of baskets (chapter 04)."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.rules.measures import MEASURES, interest_measures

if TYPE_CHECKING:
    from recutils.rules.itemsets import Itemsets


def mine_itemsets(
    baskets: Any, min_support: float, max_len: int | None = None, memory: int | None = None
) -> "Itemsets":
    """All itemsets in at least `min_support` of the baskets, as compact arrays.

    - `baskets`: scipy.sparse 0/1 matrix (n_baskets, n_items), or an iterable of iterables of hashable items
    - `min_support`: share of the baskets, above 0 and at most 1
    - `max_len`: longest itemset wanted; None for no limit
    - `memory`: how many bytes they may take; half of what is free where not given

    Raises ValueError for thresholds out of range and for no baskets, and MemoryError before it takes too much.
    """
    from recutils.rules import itemsets  # only who mines needs its compiler

    matrix, names = _as_matrix(baskets)
    found = itemsets.search(matrix, min_count_of(min_support, matrix.shape[0]), _check_length(max_len), memory)
    found.names = names
    return found


def frequent_itemsets(baskets: Any, min_support: float, max_len: int | None = None, keep: str = "all") -> pd.DataFrame:
    """All itemsets in at least `min_support` of the baskets; arguments and errors as for `mine_itemsets`.

    `keep="closed"`: only itemsets without a superset in as many baskets; `"maximal"`: without a frequent superset.

    Returns a table with `itemset` (frozenset of column numbers, or of the items given), `length`, `count`
    (baskets that hold it) and `support` (count / n_baskets, in 0..1), the shortest and then the most
    frequent first.
    """
    deeper = max_len + 1 if max_len is not None and keep != "all" else max_len  # supersets are one item longer
    return mine_itemsets(baskets, min_support, deeper).to_frame(keep, max_len)


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

    Arguments as for `mine_itemsets`; `min_confidence` in 0..1; `max_len` counts both sides together;
    `single_consequent` keeps rules with one item in the consequent; `best` keeps that many rules, the largest `by` a
    measure. Antecedents are never empty.

    Returns a table with `antecedents` and `consequents` (frozensets), `support`, `count`, `confidence`,
    `lift`, `leverage`, `conviction`, `zhang` (see `interest_measures`), in falling order of the measure `by`.
    Raises ValueError for thresholds out of range, an unknown measure and no baskets. Source: Agrawal, Imielinski and
    Swami (1993); Agrawal and Srikant (1994).
    """
    if not 0 <= min_confidence <= 1:
        raise ValueError(f"min_confidence is {min_confidence}; it is a share, from 0 to 1.")
    if by not in MEASURES:
        raise ValueError(f"{by!r} is no measure; use one of {', '.join(MEASURES)}.")
    found = mine_itemsets(baskets, min_support, max_len)
    links, parts = list(found.subset_links()), []
    for length in range(2, len(found.levels) + 1):
        sets = found.sets(length)
        for rule in _rules_of_length(found, links, length, min_confidence, 1 if single_consequent else length - 1):
            rows, measures = rule.rows, rule.measures
            if best is not None and len(rows) > best:
                top = np.lexsort((-measures["count"], -measures["confidence"], -measures[by]))[:best]
                rows, measures = rows[top], {name: values[top] for name, values in measures.items()}
            sides = (found.to_frozensets(sets[rows][:, list(side)]) for side in (rule.antecedent, rule.consequent))
            parts.append(pd.DataFrame(dict(zip(("antecedents", "consequents"), sides, strict=True)) | measures))
    if not parts:
        return pd.DataFrame(columns=["antecedents", "consequents", *MEASURES])
    rules = pd.concat(parts, ignore_index=True)
    return rules.sort_values([by, "confidence", "count"], ascending=False, kind="stable", ignore_index=True)[:best]


@dataclass
class _Rules:
    """Rules whose sides are the same places of itemsets of one length: `rows` of that level, and `measures` of each."""

    antecedent: list[int]
    consequent: tuple[int, ...]
    rows: np.ndarray
    measures: dict[str, np.ndarray]


def _rules_of_length(
    found: "Itemsets", links: list[np.ndarray], length: int, min_confidence: float, largest: int
) -> Iterator[_Rules]:
    """Rules of `length` items with up to `largest` in the consequent that are confident enough.

    A larger consequent leaves a smaller antecedent, which is in more baskets: confidence can only fall. So a
    consequent is tried only on the rows where all that lie in it were confident enough.
    """
    count, places = found.levels[length - 1][2], range(length)
    confident: dict[tuple[int, ...], np.ndarray] = {}  # consequent, as places in the itemset: rows

    def count_without(rows: np.ndarray, gone: Sequence[int]) -> np.ndarray:
        for up, place in enumerate(sorted(gone, reverse=True)):
            rows = links[length - 1 - up][rows, place]
        return found.levels[length - 1 - len(gone)][2][rows]

    for size in range(1, largest + 1):
        for consequent in combinations(places, size):
            rows = np.arange(len(count))
            if size > 1:
                if consequent[:-1] not in confident or consequent[1:] not in confident:
                    continue
                rows = np.intersect1d(confident[consequent[:-1]], confident[consequent[1:]], assume_unique=True)
            of_antecedent = count_without(rows, consequent)
            keep = count[rows] / of_antecedent >= min_confidence
            rows, of_antecedent = rows[keep], of_antecedent[keep]
            if len(rows):
                confident[consequent] = rows
                antecedent = [place for place in places if place not in consequent]
                of_consequent = count_without(rows, antecedent)
                measures = interest_measures(count[rows], of_antecedent, of_consequent, found.n_baskets)
                yield _Rules(antecedent, consequent, rows, measures)


def _as_matrix(baskets: Any) -> tuple[sparse.csr_matrix, list[Hashable] | None]:
    """A 0/1 csr matrix and, where the baskets came as items, the items in the order of the columns."""
    names: list[Hashable] | None = None
    if not sparse.issparse(baskets):
        names, baskets = _from_iterables(baskets)
    matrix = sparse.csr_matrix(baskets)
    matrix = sparse.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)  # ours to look into
    if not matrix.has_canonical_format or (matrix.data == 0).any():
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
    if matrix.shape[0] == 0:
        raise ValueError("There are no baskets to mine; pass at least one.")
    if (matrix.data != 1).any():
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


def min_count_of(min_support: float, n_baskets: int) -> int:
    """The smallest number of baskets whose share is at least `min_support`. Raises ValueError outside of (0, 1]."""
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
