"""Metrics of ranks, and the bootstrap (chapter 01).

`ranks` (n_queries, max_relevant): from 1, inf where the model gave no score, nan where a query has fewer."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.settings import SEED


def hit_rate_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """1 where at least one relevant item is among the first `k`, else 0.

    >>> hit_rate_at_k(np.array([[3.0], [11.0], [np.inf]]), k=10)
    array([1., 0., 0.])
    """
    return (ranks <= k).any(axis=1).astype(float)


def recall_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """The share of a query's relevant items among the first `k`; the divisor is the number of relevant items."""
    return (ranks <= k).sum(axis=1) / (~np.isnan(ranks)).sum(axis=1)


def ndcg_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """Discounted gain: sum of 1 / log2(1 + rank) over relevant items among the first `k`, over its best value.

    The best value has the relevant items, at most `k` of them, in the first places. With one relevant item
    at place r <= k this is 1 / log2(1 + r). Source: Järvelin and Kekäläinen (2002).

    >>> ndcg_at_k(np.array([[1.0], [3.0], [11.0]]), k=10)
    array([1. , 0.5, 0. ])
    """
    gain = np.where(ranks <= k, 1 / np.log2(1 + np.where(np.isnan(ranks), np.inf, ranks)), 0.0).sum(axis=1)
    best = np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))
    n_relevant = (~np.isnan(ranks)).sum(axis=1)
    return gain / best[np.minimum(n_relevant, k) - 1]


def mrr(ranks: np.ndarray) -> np.ndarray:
    """Reciprocal rank: 1 / place of the first relevant item in the whole ranking, 0 where none was ranked."""
    return 1 / np.nanmin(ranks, axis=1)


def coverage(top: np.ndarray, n_items: int) -> float:
    """The share of `n_items` that stand in at least one of the lists `top` (n_queries, k), -1 being no item."""
    return len(np.unique(top[top >= 0])) / n_items


def diversity(top: np.ndarray, groups: np.ndarray) -> float:
    """The share of pairs within a list whose items differ in group, averaged over lists of two items or more.

    `groups` (n_items,) holds a label an item, such as its category. 0: all alike; 1: all different.
    """
    labels = np.where(top >= 0, pd.factorize(groups)[0][top], -1)  # (n_queries, k)
    both = (labels[:, :, None] >= 0) & (labels[:, None, :] >= 0)
    differ = both & (labels[:, :, None] != labels[:, None, :])
    n = (labels >= 0).sum(axis=1)
    lists = n > 1
    return float((differ.sum(axis=(1, 2))[lists] / (n * (n - 1))[lists]).mean())


METRICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "hr": hit_rate_at_k,
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "mrr": lambda ranks, k: mrr(ranks),
}


def bootstrap_ci(
    values: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95, n: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, drawing whole groups where `groups` (n_values,) is given.

    Baskets of one household resemble each other, so the protocol draws households; -1 (unknown) is a group
    of its own each time. Returns (low, high). Source: Efron and Tibshirani (1993).
    """
    values = np.asarray(values, dtype=float)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups).copy()
    labels[labels < 0] = -1 - np.arange((labels < 0).sum())
    number = np.unique(labels, return_inverse=True)[1]
    totals, sizes = np.bincount(number, values), np.bincount(number)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(n):
        drawn = rng.integers(len(totals), size=len(totals))
        means.append(totals[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def rank_relevant(scores: np.ndarray, relevant: sparse.csr_matrix, width: int) -> np.ndarray:
    """Places of the relevant items when each row of `scores` is sorted: (n_queries, width) `ranks`.

    A relevant item is placed behind all others with its score, so a model that scores all alike gains nothing.
    """
    row, column = relevant.nonzero()
    own = scores[row, column]
    place = (scores[row] >= own[:, None]).sum(axis=1).astype(float)
    # Relevant items tied with each other share a block's last places, one each.
    place -= pd.DataFrame({"row": row, "own": own}).groupby(["row", "own"]).cumcount().to_numpy()
    place[np.isneginf(own)] = np.inf
    ranks = np.full((scores.shape[0], width), np.nan)
    ranks[row, np.arange(len(row)) - relevant.indptr[:-1][row]] = place
    return ranks
