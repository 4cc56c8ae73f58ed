"""Frequent itemsets of more baskets than fit into memory, part by part and exact (chapter 04b)."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.rules.association import min_count_of, mine_itemsets


def frequent_in_partitions(
    partitions: Callable[[], Iterable[sparse.csr_matrix]], min_support: float, max_len: int | None = None
) -> pd.DataFrame:
    """What `frequent_itemsets` finds in all baskets together, with one part of them in memory at a time.

    `partitions()` is called twice and yields the same 0/1 matrices (n_baskets, n_items) each time. What is frequent in
    all is frequent in a part at least, at the same share of its baskets. So the first pass mines each part; the second
    counts an itemset in the parts where it was too rare to be found, unless even one basket less than frequent in each
    of them would not be enough. The two passes are those of Savasere, Omiecinski and Navathe (1995).

    Returns a table with `itemset`, `length`, `count` and `support` as `frequent_itemsets` does.
    """
    known: dict[frozenset, int] = {}  # baskets counted so far
    seen: dict[frozenset, list[int]] = {}  # parts that they were counted in
    sizes = []
    for number, part in enumerate(partitions()):
        sizes.append(part.shape[0])
        mined = mine_itemsets(part, min_support, max_len)
        for length, (_, _, counts) in enumerate(mined.levels, start=1):
            for itemset, count in zip(mined.to_frozensets(mined.sets(length)), counts.tolist(), strict=True):
                known[itemset] = known.get(itemset, 0) + count
                seen.setdefault(itemset, []).append(number)
    if not sizes:
        raise ValueError("There are no partitions to mine; yield at least one matrix of baskets.")
    most = np.array([min_count_of(min_support, size) - 1 for size in sizes])  # in a part that did not find it
    least = min_count_of(min_support, sum(sizes))
    able = {s for s, count in known.items() if count + most.sum() - most[seen[s]].sum() >= least}
    for number, part in enumerate(partitions()):
        missing = [s for s in able if number not in seen[s]]
        for itemset, count in zip(missing, _count(part, missing), strict=True):
            known[itemset] += count
    rows = sorted(
        ((s, len(s), known[s]) for s in able if known[s] >= least), key=lambda row: (row[1], -row[2], sorted(row[0]))
    )
    table = pd.DataFrame(rows, columns=["itemset", "length", "count"])
    return table.assign(support=table["count"] / sum(sizes))


def _count(matrix: sparse.csr_matrix, itemsets: list[frozenset]) -> list[int]:
    """How many baskets hold each itemset: the columns of its items as bits, intersected."""
    items = sorted(set().union(*itemsets))
    columns = sparse.csc_matrix(matrix)
    bits = {}
    for item in items:
        held = np.zeros(matrix.shape[0], bool)
        held[columns.indices[columns.indptr[item] : columns.indptr[item + 1]]] = True
        bits[item] = np.packbits(held)
    return [int(np.bitwise_count(np.bitwise_and.reduce([bits[i] for i in s])).sum()) for s in itemsets]
