"""The search for frequent itemsets: vertical, depth first, compiled (chapter 04b).

`search` finds them, `Itemsets` holds them in arrays: 12 bytes an itemset, however long it is. Needs the extra `rules`.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import psutil
from numba import njit
from scipy import sparse

Level = tuple[np.ndarray, np.ndarray, np.ndarray]
BYTES = 30  # of one itemset while it is found and put into its level; twelve of them stay
ROOM = 1 << 21  # itemsets that are written down at once; more are only counted at first
SMALL = 200_000  # purchases; up to these a search is over before a second thread is of use
PARTS = 16  # of a larger search, for the threads to take in turn
MOST_PAIRS = 1 << 23  # pairs of frequent items that are counted in one pass; of more, each item's when its turn comes


@dataclass
class Itemsets:
    """Frequent itemsets by length, each level a prefix tree's: an itemset is its parent and one item more.

    `levels[k - 1]` = (parent, item, count) holds those of length k, three int32 arrays (n_k,): the row of the
    itemset without its last item in the level before, the last item, and how many of `n_baskets` hold all. Items
    are numbered by `order` (n_frequent,), columns of the mined matrix from rare to frequent; within an itemset they
    ascend, and the rows of a level are in lexicographic order. `names` are the items' own, where columns have any.
    """

    levels: list[Level]
    order: np.ndarray
    n_baskets: int
    names: Sequence[Hashable] | None = None

    def __len__(self) -> int:
        return sum(len(count) for _, _, count in self.levels)

    def sets(self, length: int) -> np.ndarray:
        """All itemsets of one length, (n_k, length), as places in `order`."""
        parent, item, _ = self.levels[length - 1]
        return item[:, None] if length == 1 else np.column_stack([self.sets(length - 1)[parent], item])

    def subset_links(self) -> Iterator[np.ndarray]:
        """Level by level (n_k, k): the row, one level up, of the itemset without its first, second, ... last item.

        Without the last it is the parent. Without an earlier one it is a child of what the parent is without that
        one, with the same last item: one search in a sorted list. Every subset is reached by going on like this.
        """
        n, link = len(self.order), np.zeros((len(self.order), 1), np.int32)
        yield link
        for (up, last, _), (parent, item, _) in zip(self.levels, self.levels[1:], strict=False):
            keys = up.astype(np.int64) * n + last  # ascending
            earlier = [np.searchsorted(keys, column[parent].astype(np.int64) * n + item) for column in link.T]
            link = np.column_stack([np.array(earlier, np.int32).T, parent])
            yield link

    def max_superset_count(self) -> list[np.ndarray]:
        """For each level (n_k,): the largest count among the itemsets with one item more, 0 where there is none."""
        best = [np.zeros(len(count), np.int32) for _, _, count in self.levels]
        for k, link in enumerate(self.subset_links()):
            for column in link.T if k else []:
                np.maximum.at(best[k - 1], column, self.levels[k][2])
        return best

    def to_frozensets(self, places: np.ndarray) -> list[frozenset]:
        """Rows of places in `order`, (n, k), as frozensets of columns, or of items where they have names."""
        labels = np.empty(len(self.order), object)
        labels[:] = [int(c) if self.names is None else self.names[c] for c in self.order]
        with _no_collection():
            return list(map(frozenset, labels[places].tolist()))

    def to_frame(self, keep: str = "all", max_len: int | None = None) -> pd.DataFrame:
        """A table with `itemset`, `length`, `count` and `support`, the shortest and then the most frequent first.

        `keep="closed"` leaves out itemsets with a superset, among all that were mined, in as many baskets;
        `"maximal"` those with any superset; `max_len` those that are longer. Raises MemoryError where the table
        would take more than what is free.
        """
        if keep not in ("all", "closed", "maximal"):
            raise ValueError(f"keep is {keep!r}; use 'all', 'closed' or 'maximal'.")
        best, parts, size = self.max_superset_count() if keep != "all" else [], [], 0
        for k, (_, _, count) in enumerate(self.levels[:max_len], start=1):
            kept = np.ones(len(count), bool) if keep == "all" else best[k - 1] < (count if keep == "closed" else 1)
            rows = np.flatnonzero(kept)
            parts.append(rows[np.argsort(-count[rows], kind="stable")])
            size += len(rows) * (sys.getsizeof(frozenset(range(k))) + 40)
        if size > (free := psutil.virtual_memory().available):
            raise MemoryError(
                f"{sum(map(len, parts)):,} itemsets as a table need {size / 1e9:.1f} GB, with {free / 1e9:.1f} free; "
                "keep closed or maximal ones, or take the arrays of rules.mine_itemsets."
            )
        count = np.concatenate([np.empty(0, int), *(self.levels[k][2][rows] for k, rows in enumerate(parts))])
        return pd.DataFrame(
            {
                "itemset": pd.Series(
                    [s for k, r in enumerate(parts) for s in self.to_frozensets(self.sets(k + 1)[r])], dtype=object
                ),
                "length": np.repeat(np.arange(1, len(parts) + 1), [len(rows) for rows in parts]),
                "count": count,
                "support": count / self.n_baskets,
            }
        )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's search for circular garbage, which would look through millions of new sets again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def search(
    matrix: sparse.csr_matrix, min_count: int, max_len: int | None = None, memory: int | None = None
) -> Itemsets:
    """All itemsets in at least `min_count` rows of a 0/1 matrix (n_baskets, n_items), none longer than `max_len`.

    `memory`: how many bytes the itemsets may take, half of what is free where not given. Raises MemoryError before
    they take more. (What the search itself needs, a few rows of bits a thread, comes on top.)

    The search is Eclat's (Zaki, 2000) on conditional baskets, with tid-lists as bits; rare items come first. Large ones
    are cut into runs of first items, which threads take in turn; the result does not depend on their number.
    """
    support = np.bincount(matrix.indices, minlength=matrix.shape[1])  # (n_items,)
    order = np.argsort(support, kind="stable")
    order = order[support[order] >= min_count]
    rank = np.full(len(support), -1, np.int32)
    rank[order] = np.arange(len(order))
    baskets, holders = _both_ways(matrix.indices, matrix.indptr, rank, support[order])
    memory = psutil.virtual_memory().available // 2 if memory is None else memory
    limit = min(memory // BYTES, np.iinfo(np.int32).max)
    bounds = _bounds(baskets, len(order))
    with _workers(len(bounds) - 1) as each:
        pairs = _pair_counts(baskets, len(order), each) if len(bounds) > 2 else np.empty(0, np.int32)
        search_run = partial(_search, (baskets, holders, pairs), (min_count, max_len or len(order)))
        outs = [_room(min(limit, ROOM // (len(bounds) - 1))) for _ in bounds[1:]]
        sizes = list(each(lambda k: search_run((bounds[k], bounds[k + 1]), outs[k], limit), range(len(outs))))
        if sum(sizes) > limit:
            raise MemoryError(
                f"More than {limit:,} itemsets are in {min_count} baskets, and {memory / 1e6:,.0f} MB hold no more; "
                "ask for more support, for shorter itemsets (max_len), or allow more memory."
            )
        whole, ends = _room(sum(sizes)), np.cumsum([0, *sizes])

        def settle(k: int) -> None:
            """A part's itemsets to their place in the whole: copied, or found again where they did not fit."""
            part = tuple(a[ends[k] : ends[k + 1]] for a in whole)
            if sizes[k] > len(outs[k][0]):
                search_run((bounds[k], bounds[k + 1]), part, limit)
            else:
                for a, found in zip(part, outs[k], strict=True):
                    a[:] = found[: sizes[k]]
            part[0][part[0] >= 0] += ends[k]

        list(each(settle, range(len(outs))))
    return Itemsets(_levels(*whole), order, matrix.shape[0])


def _pair_counts(baskets: tuple[np.ndarray, np.ndarray], n_items: int, each: Callable) -> np.ndarray:
    """Baskets that hold items a < b, at place `_place(a, b, n_items)`; nothing where that would be too many pairs.

    Two runs over the baskets in their order, which a processor reads ahead, and not one over those of each item.
    """
    items, ends = baskets
    if n_items * (n_items - 1) // 2 > MOST_PAIRS:
        return np.empty(0, np.int32)
    middle = int(np.searchsorted(ends, len(items) // 2))
    halves = each(lambda part: _count_pairs(items, ends, n_items, *part), [(0, middle), (middle, len(ends) - 1)])
    return sum(halves)


def _room(n: int) -> tuple[np.ndarray, ...]:
    """Parent, item, count and length of `n` itemsets."""
    return (*(np.empty(n, np.int32) for _ in range(3)), np.empty(n, np.uint8))


def _bounds(baskets: tuple[np.ndarray, np.ndarray], n_items: int) -> np.ndarray:
    """Where the runs of first items begin and end: one run for a small search, else PARTS of about equal work."""
    items, ends = baskets
    if n_items < 2 or len(items) < SMALL:
        return np.array([0, n_items])
    work = np.cumsum(_work(items, ends, n_items))
    inner = np.searchsorted(work, work[-1] * np.arange(1, PARTS) / PARTS)
    return np.unique(np.concatenate([[0], inner, [n_items]]))


@contextlib.contextmanager
def _workers(n_parts: int) -> Iterator:
    """A `map` over threads, or the ordinary one for a single part. The search holds no lock of Python's."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if min(n_parts, able) < 2:
        yield map
    else:
        with ThreadPoolExecutor(min(n_parts, able)) as pool:
            yield pool.map


def _levels(parent: np.ndarray, item: np.ndarray, count: np.ndarray, length: np.ndarray) -> list[Level]:
    """What the search found, depth first, as levels by length."""
    levels = []
    place = np.empty(len(parent), np.int32)  # of each itemset in its level
    for k in range(1, int(length.max(initial=0)) + 1):
        at = np.flatnonzero(length == k)
        levels.append((place[parent[at]] if k > 1 else np.zeros(len(at), np.int32), item[at], count[at]))
        place[at] = np.arange(len(at))
    return levels


@njit(cache=True, nogil=True)
def _both_ways(indices, indptr, rank, support):
    """The matrix with its items numbered by `rank` (-1: left out), by basket and by item; all numbers ascend.

    Going through the baskets in order sorts the baskets of each item, and going through these the items of each basket.
    """
    item_ends = np.zeros(len(support) + 1, np.int32)
    item_ends[1:] = np.cumsum(support)
    basket_ends = np.zeros(len(indptr), np.int32)
    holders = np.empty(item_ends[-1], np.int32)
    free = item_ends[:-1].copy()
    for t in range(len(indptr) - 1):
        for k in range(indptr[t], indptr[t + 1]):
            a = rank[indices[k]]
            if a >= 0:
                holders[free[a]] = t
                free[a] += 1
                basket_ends[t + 1] += 1
    basket_ends = np.cumsum(basket_ends).astype(np.int32)
    items = np.empty(item_ends[-1], np.int32)
    free = basket_ends[:-1].copy()
    for a in range(len(support)):
        for k in range(item_ends[a], item_ends[a + 1]):
            t = holders[k]
            items[free[t]] = a
            free[t] += 1
    return (items, basket_ends), (holders, item_ends)


@njit(cache=True, nogil=True)
def _work(items, ends, n_items):
    """How many purchases lie below each item: the later items of its baskets."""
    work = np.zeros(n_items, np.int64)
    for t in range(len(ends) - 1):
        for k in range(ends[t], ends[t + 1]):
            work[items[k]] += ends[t + 1] - k
    return work


@njit(cache=True, inline="always")
def _ones(word):
    """How many bits of a 64-bit word are 1: sums of neighbours, of twos, of fours, of all."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True, inline="always")
def _place(a, b, n_items):
    """Where the pair a < b stands: row after row of the triangle above the diagonal."""
    return a * (2 * n_items - a - 1) // 2 + b - a - 1


@njit(cache=True, nogil=True)
def _count_pairs(items, ends, n_items, first, last):
    """How many of the baskets first..last - 1 hold each pair of items."""
    pairs = np.zeros(n_items * (n_items - 1) // 2, np.int32)
    for t in range(first, last):
        for k in range(ends[t], ends[t + 1]):
            row = _place(np.int64(items[k]), np.int64(0), n_items)
            for other in range(k + 1, ends[t + 1]):
                pairs[row + items[other]] += 1
    return pairs


@njit(cache=True, nogil=True)
def _partners(baskets, tids, a, pairs, min_count, n_items):
    """The items after a that are frequent with it, their counts, and whether each may be in a frequent triple with a.

    From the counted pairs, or where there are none from the baskets `tids` of item a.
    """
    items, ends = baskets
    if len(pairs):
        joint = pairs[_place(a, a + 1, n_items) : _place(a, n_items, n_items)]
        partners = np.flatnonzero(joint >= min_count) + a + 1
        able = np.zeros(len(partners), np.bool_)
        for x in range(len(partners)):
            for y in range(x + 1, len(partners)):
                if pairs[_place(partners[x], partners[y], n_items)] >= min_count:
                    able[x] = able[y] = True
        return partners, joint[partners - a - 1], able
    joint = np.zeros(n_items, np.int32)
    for t in tids:
        for k in range(ends[t + 1] - 1, ends[t] - 1, -1):
            if items[k] <= a:
                break
            joint[items[k]] += 1
    partners = np.flatnonzero(joint >= min_count)
    return partners, joint[partners], np.full(len(partners), len(partners) > 1)


@njit(cache=True, nogil=True)
def _conditional(baskets, tids, a, able, n_items):
    """The baskets `tids` that hold item a, numbered from 0 and cut down to later items, `able` = (items, which count).

    Returns a row of bits for each of the items (its baskets; none where it does not count), and the size of the
    largest basket. Earlier items have had their turn.
    """
    items, ends = baskets
    partners, counts = able
    slot = np.full(n_items, -1, np.int32)
    for p in range(len(partners)):
        if counts[p]:
            slot[partners[p]] = p
    bits = np.zeros((len(partners), (len(tids) + 63) // 64), np.uint64)
    longest = 0
    for q in range(len(tids)):
        size = 0
        for k in range(ends[tids[q] + 1] - 1, ends[tids[q]] - 1, -1):
            if items[k] <= a:
                break
            p = slot[items[k]]
            if p >= 0:
                bits[p, q >> 6] |= np.uint64(1) << np.uint64(q & 63)
                size += 1
        longest = max(longest, size)
    return bits, longest


@njit(cache=True, nogil=True)
def _intersect(bits, items, counts, x, end, min_count):
    """Rows of bits for the prefix with x and each later item of its level, which ends at `end`, in the rows from there.

    A row is kept where `min_count` bits are 1; returns the row behind the last one.
    """
    top = end
    for y in range(x + 1, end):
        c = 0
        for w in range(bits.shape[1]):
            bits[top, w] = bits[x, w] & bits[y, w]
            c += _ones(bits[top, w])
        if c >= min_count:
            items[top], counts[top] = items[y], c
            top += 1
    return top


@njit(cache=True, nogil=True)
def _descend(conditional, max_depth, min_count, n, out, limit):
    """All itemsets below one item, whose own row is n - 1, from its `_conditional`; returns how many there are now.

    A stack of levels: each holds the items that are frequent with the prefix so far, and their rows of bits. A level
    has fewer of them than the one above, and there are no more levels than items in a basket.
    """
    partners, joint, first, longest = conditional
    parent, item, count, length = out
    depth = min(longest, max_depth)
    bits = np.empty((max(len(partners), 1) * max(depth, 1), first.shape[1]), np.uint64)
    items, counts = np.empty(len(bits), np.int32), np.empty(len(bits), np.int32)
    bits[: len(partners)], items[: len(partners)], counts[: len(partners)] = first, partners, joint
    above, turn, end = np.empty(depth + 1, np.int32), np.empty(depth + 1, np.int32), np.empty(depth + 1, np.int32)
    above[0], turn[0], end[0] = n - 1, 0, len(partners)
    d = 0 if len(partners) else -1
    while d >= 0:
        if turn[d] == end[d]:
            d -= 1
            continue
        x = turn[d]
        turn[d] += 1
        if n < len(parent):
            parent[n], item[n], count[n], length[n] = above[d], items[x], counts[x], d + 2
        n += 1
        if n > limit:
            return n
        if d + 1 == depth:
            continue
        top = _intersect(bits, items, counts, x, end[d], min_count)
        if top > end[d]:
            above[d + 1], turn[d + 1], end[d + 1] = n - 1, end[d], top
            d += 1
    return n


@njit(cache=True, nogil=True)
def _search(data, least_and_most, run, out, limit):
    """Go below the items run[0]..run[1] - 1: (parent, item, count, length) into `out`, depth first; returns how many.

    `data` = (baskets, holders, pairs). Of the baskets (items, ends) `items[ends[t] : ends[t + 1]]` are those of basket
    t, ascending; of the holders likewise the baskets of each item. Where `out` is full the search goes on counting, up
    to `limit`.
    """
    parent, item, count, length = out
    baskets, (tids_of, ends), pairs = data
    min_count, max_len = least_and_most
    n_items, n = len(ends) - 1, 0
    for a in range(run[0], run[1]):
        tids = tids_of[ends[a] : ends[a + 1]]
        if n < len(parent):
            parent[n], item[n], count[n], length[n] = -1, a, len(tids), 1
        n += 1
        if max_len > 1:
            partners, joint, able = _partners(baskets, tids, a, pairs, min_count, n_items)
            bits, longest = np.empty((len(partners), 0), np.uint64), min(len(partners), 1)
            if max_len > 2 and able.any():
                bits, longest = _conditional(baskets, tids, a, (partners, able), n_items)
            n = _descend((partners, joint, bits, longest), max_len - 1, min_count, n, out, limit)
            if n > limit:
                return n
    return n
