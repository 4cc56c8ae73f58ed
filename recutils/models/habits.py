"""What a household, or everybody, tends to buy (chapters 01 and 05)."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, NOTHING, OneScore, Recommender, age_in_days, purchases, row_of


class Popularity(Recommender):
    """What everybody buys: score_i = share of the training baskets that hold item i, whoever asks."""

    def _fit(self, train: Baskets) -> None:
        self.share = np.asarray(train.matrix.mean(axis=0)).ravel()  # (n_items,)

    def _score(self, queries: Baskets) -> np.ndarray:
        return np.tile(self.share, (len(queries), 1))


class HouseholdFrequency(Recommender):
    """What this household buys: its training baskets with item i, ties (and unknown households) by popularity.

    A strong baseline that work on next baskets tends to forget (Li et al., 2023, where it is GP-TopFreq).
    """

    personal = True

    def _fit(self, train: Baskets) -> None:
        self.counts = purchases(train, self.n_households)  # (n_households, n_items)
        self.share = np.asarray(train.matrix.mean(axis=0)).ravel() / 2  # below 1: only breaks ties

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.tile(self.share, (len(queries), 1))
        known = self._known(queries)
        scores[known] += self.counts[queries.households[known]].toarray()
        return scores


class HouseholdRecency(Recommender):
    """What this household buys lately: score_i = sum of 0.5^(age / half_life) over its baskets with i, over all its.

    `half_life` and a basket's age are in days before the end of training. Unknown households and items that it never
    bought: -inf.
    """

    personal = True

    def __init__(self, half_life: float = 90.0) -> None:
        self.half_life = half_life

    def _fit(self, train: Baskets) -> None:
        decay = 0.5 ** (age_in_days(train) / self.half_life)
        known = train.households >= 0
        total = np.maximum(np.bincount(train.households[known], decay[known], self.n_households), 1e-9)
        share = purchases(train, self.n_households, decay)
        share.data /= np.repeat(total, np.diff(share.indptr))
        self.share = share.astype(np.float32)  # (n_households, n_items)

    def _score(self, queries: Baskets) -> np.ndarray:
        return self._of_households(self.share, queries)

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        return row_of(self.share, household) if 0 <= household < self.n_households else NOTHING


class HouseholdSessionKNN(Recommender):
    """What was in this household's own baskets like the open one: score_i = sum over its baskets b with i of s(b).

    s(b) = 0.5^(age / half_life) / sqrt(|b|) times the sum of log(N / n_j) over the items j in both; an empty basket
    resembles none. Source: neighbours among sessions, after Jannach and Ludewig (2017), kept within the household.
    """

    personal = True

    def __init__(self, half_life: float = 120.0) -> None:
        self.half_life = half_life

    def _fit(self, train: Baskets) -> None:
        order = np.argsort(train.households, kind="stable")
        self.past = train.matrix[order]  # a household's baskets lie together
        self.start = np.searchsorted(train.households[order], np.arange(self.n_households + 1))
        size = np.maximum(np.diff(self.past.indptr), 1)
        self.decay = 0.5 ** (age_in_days(train)[order] / self.half_life) / np.sqrt(size)
        self.rarity = np.log(len(train) / np.maximum(np.asarray(train.matrix.sum(axis=0)).ravel(), 1))

    def _score(self, queries: Baskets) -> np.ndarray:
        known = self._known(queries)
        first = self.start[queries.households[known]]
        n = self.start[queries.households[known] + 1] - first
        query = np.repeat(known, n)
        past = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
        both = queries.matrix[query].multiply(self.past[past]) @ self.rarity
        weights = (both * self.decay[past], (query, past))
        scores = (sparse.csr_matrix(weights, (len(queries), self.past.shape[0])) @ self.past).toarray()
        scores[scores == 0] = -np.inf
        return scores

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        if not 0 <= household < self.n_households or not len(basket):
            return NOTHING
        first, last = self.start[household], self.start[household + 1]
        ends = self.past.indptr[first : last + 1]
        items = self.past.indices[ends[0] : ends[-1]]
        visit = np.repeat(np.arange(last - first), np.diff(ends))
        both = np.bincount(visit, np.isin(items, basket) * self.rarity[items], last - first)
        total = np.bincount(items, (both * self.decay[first:last])[visit], self.past.shape[1])
        columns = np.flatnonzero(total)
        return columns, total[columns].astype(np.float32)


class TIFUKNN(Recommender):
    """A household's items with their recency, smoothed by the households nearest to it.

    Its baskets, latest first, are cut into groups of `group_size`. Within one a basket weighs `within_decay`^place, a
    group `group_decay`^place; u is the mean of the groups' means. score = alpha u + (1 - alpha) (mean u of the
    `neighbours` nearest households by Euclidean distance). One without a past is nobody's neighbour, and where fewer
    than `neighbours` have one, the mean is over these. The open basket is not read; unknown households get the mean of
    all. Source: Hu et al. (2020).
    """

    personal = True

    def __init__(
        self,
        group_size: int = 1,
        within_decay: float = 1.0,
        group_decay: float = 0.98,
        neighbours: int = 300,
        alpha: float = 0.9,
    ) -> None:
        self.group_size, self.within_decay, self.group_decay = group_size, within_decay, group_decay
        self.neighbours: Any = neighbours  # beside numpy's integers mypy finds no common type for an int
        self.alpha = alpha

    def _fit(self, train: Baskets) -> None:
        self._check_households()
        table = pd.Series(train.timestamps).groupby(train.households)
        back = (table.transform("size") - 1 - table.cumcount()).to_numpy()  # 0: a household's last basket
        n = table.transform("size").to_numpy()
        group, place = back // self.group_size, back % self.group_size
        weight = self.within_decay**place * self.group_decay**group
        weight /= np.minimum(self.group_size, n - group * self.group_size) * -(-n // self.group_size)
        own = purchases(train, self.n_households, weight).toarray().astype(np.float32)  # (n_households, n_items)
        square = (own**2).sum(axis=1)
        distance = square[:, None] + square - 2 * own @ own.T
        np.fill_diagonal(distance, np.inf)
        distance[:, square == 0] = np.inf
        k = max(min(self.neighbours, np.count_nonzero(square) - 1), 0)
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k] if k else np.empty((len(own), 0), int)
        mean = sparse.csr_matrix(
            (np.full(nearest.size, 1 / max(k, 1), np.float32), nearest.ravel(), k * np.arange(len(own) + 1)),
            (len(own), len(own)),
        )
        self.vectors = self.alpha * own + (1 - self.alpha) * (mean @ own)
        self.everybody = own.mean(axis=0)
        self.vectors[~own.any(axis=1)] = self.everybody

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.tile(self.everybody, (len(queries), 1))
        known = self._known(queries)
        scores[known] = self.vectors[queries.households[known]]
        return scores
