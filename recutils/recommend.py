"""Recommenders under one contract: fit on baskets, score every item for a query (chapters 01, 04 and 05).

A query is an open basket, its household and its moment (`Baskets`). Scores compare items within one query
only; -inf means that the model has nothing to say about an item.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from scipy import linalg, sparse

from recutils.data import Baskets
from recutils.rules import (
    association_rules,
    firing,
    for_items,
    left_sides,
    pair_counts,
    shrunk_log_lift,
    with_groups,
)
from recutils.settings import SEED, TRAINING_SEED, release_memory, stage, threads


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` highest scores in each row, best first, ties by column; -1 where a score is -inf.

    (n_queries, n_items) -> (n_queries, min(k, n_items)).
    """
    k = min(k, scores.shape[1])
    bound = -np.partition(-scores, k - 1, axis=1)[:, [k - 1]]  # (n_queries, 1), the k-th best; many -inf are no drag
    keep = scores >= bound
    if keep.sum() > k * len(keep):  # of the items tied at the bound, only the first columns belong to the k
        above, tied = scores > bound, scores == bound
        keep = above | (tied & (np.cumsum(tied, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    columns = np.nonzero(keep)[1].reshape(-1, k)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    columns, best = np.take_along_axis(columns, order, axis=1), np.take_along_axis(best, order, axis=1)
    return np.where(np.isneginf(best), -1, columns)


def without_basket(scores: np.ndarray, queries: Baskets) -> np.ndarray:
    """The scores with -inf for what already lies in the open basket (written in place)."""
    rows, columns = queries.matrix.nonzero()
    scores[rows, columns] = -np.inf
    return scores


class Recommender(ABC):
    """The contract of every model: `fit(train) -> self`, `score(queries) -> (n_queries, n_items)`.

    A model writes `_fit` and `_score`; checks, top-k and batches are here, once.
    """

    n_items: int | None = None
    n_households: int = 0

    def fit(self, train: Baskets) -> Self:
        """Learn from baskets; returns self. Raises ValueError when there are none."""
        if len(train) == 0 or train.matrix.nnz == 0:
            raise ValueError(f"{type(self).__name__}.fit got no purchases; pass the baskets of the past.")
        self.n_items = train.matrix.shape[1]
        self.n_households = int(train.households.max(initial=-1)) + 1
        self._fit(train)
        return self

    def score(self, queries: Baskets) -> np.ndarray:
        """Scores (n_queries, n_items), float32, higher is better. Raises ValueError before `fit` or for other items."""
        if self.n_items is None:
            raise ValueError(f"{type(self).__name__} has not been fitted; call fit(train) first.")
        if queries.matrix.shape[1] != self.n_items:
            raise ValueError(
                f"{type(self).__name__} was fitted on {self.n_items} items and the queries have "
                f"{queries.matrix.shape[1]}; make both with the same items (make_baskets)."
            )
        return np.asarray(self._score(queries), dtype=np.float32)

    def recommend(self, queries: Baskets, k: int = 10) -> np.ndarray:
        """The `k` best items not yet in each basket, best first: (n_queries, k) columns, -1 where nothing is left.

        Scored in batches, so memory stays bounded however many queries there are.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for 1 item or more.")
        batches = [top_k(without_basket(self.score(part), part), k) for part in queries.batches()]
        return np.concatenate(batches) if batches else np.empty((0, k), dtype=int)

    def similar_items(self, item: int, k: int = 10) -> np.ndarray:
        """The `k` items that the model offers to a stranger whose basket holds just `item` (a column number)."""
        if self.n_items is None or not 0 <= item < self.n_items:
            raise ValueError(f"Item {item} is unknown; columns run from 0 to {(self.n_items or 0) - 1}.")
        basket = sparse.csr_matrix(([1.0], ([0], [item])), shape=(1, self.n_items), dtype=np.float32)
        return self.recommend(Baskets(basket, np.array([-1]), np.array(["NaT"], "datetime64[ns]")), k)[0]

    def _purchases(self, train: Baskets, weight: np.ndarray | None = None) -> sparse.csr_matrix:
        """Training baskets of each household that hold each item, each weighing 1 or `weight` (n_baskets,).

        (n_households, n_items).
        """
        known = train.households >= 0
        weight = np.ones(len(train)) if weight is None else weight
        shape = (self.n_households, len(train))
        rows = sparse.csr_matrix((weight[known], (train.households[known], np.flatnonzero(known))), shape)
        return sparse.csr_matrix(rows @ train.matrix)

    def _of_households(self, table: sparse.csr_matrix, queries: Baskets) -> np.ndarray:
        """The row of `table` (n_households, n_items) of each query's household; -inf for 0 and for strangers."""
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        known = self._known(queries)
        rows = table[queries.households[known]].tocoo()
        scores[known[rows.row], rows.col] = rows.data
        return scores

    def _known(self, queries: Baskets) -> np.ndarray:
        """The rows of the queries whose household was there in training."""
        return np.flatnonzero((queries.households >= 0) & (queries.households < self.n_households))

    @abstractmethod
    def _fit(self, train: Baskets) -> None: ...

    @abstractmethod
    def _score(self, queries: Baskets) -> np.ndarray: ...


class Popularity(Recommender):
    """What everybody buys: score_i = share of the training baskets that hold item i, whoever asks."""

    def _fit(self, train: Baskets) -> None:
        self.share = np.asarray(train.matrix.mean(axis=0)).ravel()  # (n_items,)

    def _score(self, queries: Baskets) -> np.ndarray:
        return np.tile(self.share, (len(queries), 1))


class HouseholdFrequency(Recommender):
    """What this household buys: its training baskets with item i, ties (and strangers) by popularity.

    A strong baseline that work on next baskets tends to forget (Li et al., 2023, where it is GP-TopFreq).
    """

    def _fit(self, train: Baskets) -> None:
        self.counts = self._purchases(train)  # (n_households, n_items)
        self.share = np.asarray(train.matrix.mean(axis=0)).ravel() / 2  # below 1: only breaks ties

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.tile(self.share, (len(queries), 1))
        known = self._known(queries)
        scores[known] += self.counts[queries.households[known]].toarray()
        return scores


class HouseholdRecency(Recommender):
    """What this household buys lately: score_i = sum of 0.5^(age / half_life) over its baskets with i, over all its.

    `half_life` and a basket's age are in days before the end of training. Strangers and items it never bought: -inf.
    """

    def __init__(self, half_life: float = 90.0) -> None:
        self.half_life = half_life

    def _fit(self, train: Baskets) -> None:
        fade = 0.5 ** (age_in_days(train) / self.half_life)
        total = np.bincount(train.households[train.households >= 0], fade[train.households >= 0], self.n_households)
        self.share = sparse.csr_matrix(sparse.diags(1 / np.maximum(total, 1e-9)) @ self._purchases(train, fade))

    def _score(self, queries: Baskets) -> np.ndarray:
        return self._of_households(self.share, queries)


class OwnBaskets(Recommender):
    """What was in this household's own baskets like the open one: score_i = sum over its baskets b with i of s(b).

    s(b) = 0.5^(age / half_life) / sqrt(|b|) times the sum of log(N / n_j) over the items j in both; an empty basket
    resembles none. Source: neighbours among sessions, after Jannach and Ludewig (2017), kept within the household.
    """

    def __init__(self, half_life: float = 120.0) -> None:
        self.half_life = half_life

    def _fit(self, train: Baskets) -> None:
        order = np.argsort(train.households, kind="stable")
        self.past = train.matrix[order]  # a household's baskets lie together
        self.start = np.searchsorted(train.households[order], np.arange(self.n_households + 1))
        size = np.maximum(np.diff(self.past.indptr), 1)
        self.fade = 0.5 ** (age_in_days(train)[order] / self.half_life) / np.sqrt(size)
        self.rarity = np.log(len(train) / np.maximum(np.asarray(train.matrix.sum(axis=0)).ravel(), 1))

    def _score(self, queries: Baskets) -> np.ndarray:
        known = self._known(queries)
        first = self.start[queries.households[known]]
        n = self.start[queries.households[known] + 1] - first
        query = np.repeat(known, n)
        past = np.repeat(first - np.cumsum(n) + n, n) + np.arange(n.sum())
        both = queries.matrix[query].multiply(self.past[past]) @ self.rarity
        weights = (both * self.fade[past], (query, past))
        scores = (sparse.csr_matrix(weights, (len(queries), self.past.shape[0])) @ self.past).toarray()
        scores[scores == 0] = -np.inf
        return scores


class TIFUKNN(Recommender):
    """A household's items with their recency, smoothed by the households nearest to it.

    Its baskets, latest first, are cut into groups of `group`. Within one a basket weighs `within`^place, a group
    `across`^place; u is the mean of the groups' means. score = alpha u + (1 - alpha) (mean u of the `neighbours`
    nearest households by Euclidean distance). The open basket is not read; strangers get the mean of all
    households. Source: Hu et al. (2020).
    """

    def __init__(
        self, group: int = 1, within: float = 1.0, across: float = 0.98, neighbours: int = 300, alpha: float = 0.9
    ) -> None:
        self.group, self.within, self.across, self.neighbours, self.alpha = group, within, across, neighbours, alpha

    def _fit(self, train: Baskets) -> None:
        table = pd.Series(train.timestamps).groupby(train.households)
        back = (table.transform("size") - 1 - table.cumcount()).to_numpy()  # 0: a household's last basket
        n = table.transform("size").to_numpy()
        group, place = back // self.group, back % self.group
        weight = self.within**place * self.across**group
        weight /= np.minimum(self.group, n - group * self.group) * -(-n // self.group)
        own = self._purchases(train, weight).toarray().astype(np.float32)  # (n_households, n_items)
        square = (own**2).sum(axis=1)
        distance = square[:, None] + square - 2 * own @ own.T
        np.fill_diagonal(distance, np.inf)
        k = min(self.neighbours, len(own) - 1)
        near = np.argpartition(distance, k - 1, axis=1)[:, :k] if k else np.empty((len(own), 0), int)
        mean = sparse.csr_matrix(
            (np.full(near.size, 1 / max(k, 1), np.float32), near.ravel(), k * np.arange(len(own) + 1)),
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


def age_in_days(train: Baskets) -> np.ndarray:
    """How long before the last of them each basket was paid, in days (n_baskets,); 0 where the moment is unknown."""
    age = (np.nanmax(train.timestamps) - train.timestamps) / np.timedelta64(1, "D")
    return np.nan_to_num(age)


class UserKNN(Recommender):
    """What households like this one buy: r_ui = mean_u + sum_v w_uv (r_vi - mean_v) / sum_v |w_uv|.

    r_ui = log(1 + purchases of i by u, each weighing 0.5^(age / half_life)); w_uv is the cosine of the centred
    rows of r, over the `neighbours` households most like u. A stranger's open basket stands for its row.
    Source: Resnick et al. (1994).
    """

    def __init__(self, neighbours: int = 100, half_life: float = 90.0) -> None:
        self.neighbours, self.half_life = neighbours, half_life

    def _fit(self, train: Baskets) -> None:
        self.ratings = self._purchases(train, 0.5 ** (age_in_days(train) / self.half_life))
        self.ratings.data = np.log1p(self.ratings.data)  # (n_households, n_items), 0 where never bought
        self.mean, self.length = self._mean_and_length(self.ratings)
        self.near = self._nearest(self.ratings, others=True)

    def _mean_and_length(self, rows: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(rows.mean(axis=1)).ravel()
        square = np.asarray(rows.multiply(rows).sum(axis=1)).ravel() - rows.shape[1] * mean**2
        return mean, np.sqrt(np.maximum(square, 1e-12))

    def _nearest(self, rows: sparse.csr_matrix, others: bool = False) -> sparse.csr_matrix:
        """w_uv / sum_v |w_uv| over the neighbours of each row: csr (n_rows, n_households)."""
        mean, length = self._mean_and_length(rows)
        likeness = (rows @ self.ratings.T).toarray() - rows.shape[1] * np.outer(mean, self.mean)
        likeness /= np.outer(length, self.length)
        if others:
            np.fill_diagonal(likeness, 0)
        k = min(self.neighbours, likeness.shape[1])
        bound = np.partition(np.abs(likeness), -k, axis=1)[:, [-k]]
        likeness[np.abs(likeness) < bound] = 0
        return sparse.csr_matrix(likeness / np.maximum(np.abs(likeness).sum(axis=1, keepdims=True), 1e-9))

    def _predict(self, near: sparse.csr_matrix, mean: np.ndarray) -> np.ndarray:
        return (near @ self.ratings).toarray() + (mean - near @ self.mean)[:, None]

    def _score(self, queries: Baskets) -> np.ndarray:
        known = self._known(queries)
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        household = queries.households[known]
        scores[known] = self._predict(self.near[household], self.mean[household])
        strangers = np.setdiff1d(np.arange(len(queries)), known)
        if len(strangers):
            rows = queries.matrix[strangers] * np.log(2)
            scores[strangers] = self._predict(self._nearest(rows), self._mean_and_length(rows)[0])
        return scores


class ALS(Recommender):
    """Few numbers a household, few an item: score = (x_u + basket * x_q) . y_i.

    Implicit-feedback factors of the household-item matrix (`implicit`): minimise sum c_ui (p_ui - x_u . y_i)^2 +
    regularisation (|x|^2 + |y|^2), p = 1 where bought, c = 1 + confidence * log(1 + purchases). x_q solves the same
    problem for the open basket with y held fast. Source: Hu, Koren and Volinsky (2008).
    """

    def __init__(
        self,
        factors: int = 128,
        regularisation: float = 10.0,
        confidence: float = 10.0,
        basket: float = 1.0,
        seed: int = TRAINING_SEED,
    ) -> None:
        self.factors, self.regularisation, self.confidence = factors, regularisation, confidence
        self.basket, self.seed = basket, seed

    def _fit(self, train: Baskets) -> None:
        bought = self._purchases(train)
        bought.data = 1 + self.confidence * np.log1p(bought.data)  # c_ui where p_ui is 1
        self.of_households, self.of_items = _als(bought, self.factors, self.regularisation, self.seed)

    def _score(self, queries: Baskets) -> np.ndarray:
        taste = np.zeros((len(queries), self.factors), dtype=np.float32)
        known = self._known(queries)
        taste[known] = self.of_households[queries.households[known]]
        y = self.of_items
        square = y.T @ y + self.regularisation * np.eye(self.factors, dtype=np.float32)
        c = self.confidence * np.log(2)
        for row in range(len(queries)):
            inside = y[queries.matrix.indices[queries.matrix.indptr[row] : queries.matrix.indptr[row + 1]]]
            if len(inside):
                x = np.linalg.solve(square + c * inside.T @ inside, (1 + c) * inside.sum(axis=0))
                taste[row] += self.basket * x
        return taste @ y.T


def _als(weights: sparse.csr_matrix, factors: int, regularisation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of households and of items; stored `weights` are the c_ui of what was bought, all others are 1."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # implicit has threads of its own
        model = AlternatingLeastSquares(
            factors, regularisation, alpha=1.0, iterations=10, random_state=seed, num_threads=threads()
        )
        model.fit(weights.astype(np.float32), show_progress=False)
    return model.user_factors, model.item_factors


class FeatureFactors(Recommender):
    """Q = H U V^T: a household's taste for an item through what is known of the item.

    `features` H (n_items, width) map to few factors by U, which households V weigh. With R = log(1 + purchases),
    each row of length 1, |R - V U^T H^T|^2 + regularisation |H U V^T|_H^2 has its least value in closed form: whiten
    H, project R, cut the singular values (reduced-rank regression; Izenman, 1975). Items never sold get scores too.
    Strangers: -inf.
    """

    def __init__(self, features: np.ndarray, factors: int = 64, regularisation: float = 1.0) -> None:
        self.features, self.factors, self.regularisation = features, factors, regularisation

    def _fit(self, train: Baskets) -> None:
        ratings = self._purchases(train)
        ratings.data = np.log1p(ratings.data)
        length = np.sqrt(np.asarray(ratings.multiply(ratings).sum(axis=1)).ravel())
        ratings = sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-9)) @ ratings)
        h = self.features.astype(np.float64)
        values, axes = np.linalg.eigh(h.T @ h + self.regularisation * np.eye(h.shape[1]))
        white = axes / np.sqrt(values)  # (width, width): (H white)^T (H white) is I, but for the regularisation
        left, weight, right = np.linalg.svd(ratings @ (h @ white), full_matrices=False)
        k = self.factors
        self.of_households = (left[:, :k] * weight[:k]).astype(np.float32)  # V
        self.of_items = (h @ white @ right[:k].T).astype(np.float32)  # H U

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        known = self._known(queries)
        scores[known] = self.of_households[queries.households[known]] @ self.of_items.T
        return scores


class ItemKNN(Recommender):
    """What goes with what is in the basket: score_i = sum over j in basket of cos(i, j).

    cos(i, j) = n_ij / sqrt(n_i n_j), with n_ij the training baskets that hold both; for each item only its
    `neighbours` most similar ones count (None: all). Source: Sarwar et al. (2001).
    """

    def __init__(self, neighbours: int | None = 200) -> None:
        self.neighbours = neighbours

    def _fit(self, train: Baskets) -> None:
        counts = pair_counts(train.matrix).astype(np.float32)  # (n_items, n_items)
        norm = sparse.diags(1 / np.sqrt(np.maximum(counts.diagonal(), 1)))
        cosine = sparse.csr_matrix(norm @ counts @ norm)
        cosine.setdiag(0)
        cosine.eliminate_zeros()
        if self.neighbours is not None:
            keep_largest(cosine, self.neighbours)
        self.similarity = cosine.T.tocsr().astype(np.float32)  # row j: the items that j speaks for

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = (queries.matrix @ self.similarity).toarray()  # (n_queries, n_items)
        scores[scores == 0] = -np.inf
        return scores


def keep_largest(matrix: sparse.csr_matrix, n: int) -> None:
    """Keep the `n` largest stored values of each row, in place."""
    for row in range(matrix.shape[0]):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]  # a view
        if len(values) > n:
            values[np.argpartition(values, -n)[:-n]] = 0
    matrix.eliminate_zeros()


class EASE(Recommender):
    """A linear model of an item from the rest of the basket, in closed form.

    minimise |X - X B|^2 + regularisation |B|^2 with diag(B) = 0. With P = (X^T X + regularisation I)^-1:
    B_ij = -P_ij / P_jj off the diagonal. Scores are basket @ B. Dense: n_items^2 numbers of 8 bytes while
    fitting, of 4 bytes after. Source: Steck (2019); derived in chapter 05.
    """

    def __init__(self, regularisation: float = 500.0) -> None:
        self.regularisation = regularisation

    def _fit(self, train: Baskets) -> None:
        gram = pair_counts(train.matrix).astype(np.float64).toarray(order="F")  # (n_items, n_items)
        gram[np.diag_indices_from(gram)] += self.regularisation
        factor, _ = linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)  # gram = L L^T
        inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)  # its lower half
        p = inverse.astype(np.float32)
        del gram, factor, inverse
        p += np.tril(p, -1).T
        p = p.T  # symmetric, so only the layout in memory changes: rows lie together now
        p /= -np.diag(p).copy()  # column j divided by -P_jj
        p[np.diag_indices_from(p)] = 0
        self.weights = p  # (n_items, n_items), row: in the basket, column: scored

    def _score(self, queries: Baskets) -> np.ndarray:
        return queries.matrix @ self.weights


class RuleRecommender(Recommender):
    """What the rules say: score_i = the highest confidence of a rule A -> i with all of A in the basket.

    Rules are mined from the training baskets (`association_rules`, one consequent); `measure` may name
    another of their columns. With `groups` (n_items,), left sides may hold groups of items (`with_groups`).
    No rule fires: -inf. Chapter 04.
    """

    def __init__(
        self,
        min_support: float = 0.0001,
        min_confidence: float = 0.05,
        max_len: int | None = 2,
        measure: str = "confidence",
        groups: np.ndarray | None = None,
    ) -> None:
        self.min_support, self.min_confidence = min_support, min_confidence
        self.max_len, self.measure, self.groups = max_len, measure, groups

    def _fit(self, train: Baskets) -> None:
        matrix = self._seen(train)
        rules = association_rules(matrix, self.min_support, self.min_confidence, self.max_len)
        if self.groups is not None:
            rules = for_items(rules, self.groups)
        # Weakest first, so that among the rules for one item the strongest is written last.
        self.rules = rules.sort_values(self.measure, kind="stable", ignore_index=True)
        self.left = left_sides(self.rules, matrix.shape[1])
        self.right = np.array([next(iter(c)) for c in self.rules["consequents"]], dtype=int)
        self.weights = self.rules[self.measure].to_numpy(dtype=np.float32)

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        row, rule = firing(self._seen(queries), self.left)
        scores[row, self.right[rule]] = self.weights[rule]
        return scores

    def _seen(self, baskets: Baskets) -> sparse.csr_matrix:
        return baskets.matrix if self.groups is None else with_groups(baskets.matrix, self.groups)


class EmbeddingRecommender(Recommender):
    """What lies near the basket: score_i = cos(v_i, q) + prior * l_i, with q = mean of the basket's v_j.

    `vectors` (n_items, width) may come from words, from a graph, from anything. `household` > 0 adds
    `household` times the mean vector of what the household bought in training to q. l_i is the standardised log
    of the training baskets that hold i; for an item that none holds it is predicted from v_i by ridge regression
    on the others, so that a cold item gets the popularity its vector promises. Chapter 02.
    """

    def __init__(self, vectors: np.ndarray, prior: float = 0.0, household: float = 0.0) -> None:
        self.vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        self.prior, self.household = prior, household

    def _fit(self, train: Baskets) -> None:
        if train.matrix.shape[1] != len(self.vectors):
            raise ValueError(f"{len(self.vectors)} vectors for {train.matrix.shape[1]} items; give one an item.")
        count = np.asarray(train.matrix.sum(axis=0)).ravel()  # (n_items,)
        sold = count > 0
        log = np.log(count[sold])
        target = (log - log.mean()) / max(log.std(), 1e-9)
        v = self.vectors[sold].astype(np.float64)
        weights = np.linalg.solve(v.T @ v + np.eye(v.shape[1]), v.T @ target)
        self.popularity = (self.vectors @ weights).astype(np.float32)
        self.popularity[sold] = target
        if self.household:
            bought = self._purchases(train)  # (n_households, n_items)
            self.taste = bought @ self.vectors / np.maximum(bought.sum(axis=1), 1).reshape(-1, 1)

    def _score(self, queries: Baskets) -> np.ndarray:
        sizes = np.maximum(np.diff(queries.matrix.indptr), 1).astype(np.float32)
        query = queries.matrix @ self.vectors / sizes[:, None]  # (n_queries, width)
        if self.household:
            known = self._known(queries)
            query[known] += self.household * self.taste[queries.households[known]]
        query /= np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-9)
        return query @ self.vectors.T + self.prior * self.popularity


class InnerProduct(Recommender):
    """score_i = q . h_i + b_i, q = sum of the basket's h_j / sqrt(their number).

    `vectors` (n_items, width) and `bias` (n_items,) come from elsewhere; `graph.GraphRecommender` learns them.
    """

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        self.vectors, self.bias = vectors, bias

    def _fit(self, train: Baskets) -> None:
        pass

    def _score(self, queries: Baskets) -> np.ndarray:
        size = np.maximum(np.diff(queries.matrix.indptr), 1).astype(np.float32)
        return (queries.matrix @ self.vectors / np.sqrt(size)[:, None]) @ self.vectors.T + self.bias


# ---------------------------------------------------------------------------------------------- two stages


BATCH = 128  # queries at a time: each brings a row of all items for every member


class HybridRanker(Recommender):
    """Two stages: members propose candidates, boosted trees (LambdaMART) put them in order. Chapter 05.

    - `members`: named recommenders; each proposes its best items, `quota` of them (a number, or one a name), and
      gives two columns: its score, and the score standardised over all items it has scored for the query; a member
      that was fitted before it is passed in stays as it is
    - `labels`: baskets after training; from each, up to `hides` items are hidden in turn (and once all of them, so
      that the trees know empty baskets), and the trees learn to put what was hidden first; None: `fit` grows no
      trees, `learn` does
    - `groups`: a table (n_items rows) of labels, such as type and category: how many of the basket's items, and how
      many of the household's, share the candidate's
    - `numbers`: a table (n_items rows) of further item columns, such as the price

    Items that no member proposes follow behind in the order of the member `behind`, so that every item has a
    place. Source: Burges (2010); trees by LightGBM (Ke et al., 2017).
    """

    def __init__(
        self,
        members: Mapping[str, Recommender],
        labels: Baskets | None,
        groups: pd.DataFrame,
        numbers: pd.DataFrame | None = None,
        behind: str = "text",
        quota: int | Mapping[str, int] = 50,
        hides: int = 4,
        trees: int = 100,
        seed: int = TRAINING_SEED,
    ) -> None:
        if behind not in members:
            raise ValueError(f"behind is {behind!r}; name one of the members: {', '.join(members)}.")
        self.members, self.labels, self.groups, self.numbers = dict(members), labels, groups, numbers
        self.behind, self.hides, self.trees, self.seed = behind, hides, trees, seed
        self.quota = {name: quota if isinstance(quota, int) else quota[name] for name in members}
        self.to_fit = [name for name, member in members.items() if member.n_items is None]

    def _fit(self, train: Baskets) -> None:
        for name in self.to_fit:
            self.members[name].fit(train)
        release_memory()  # what fitting needed for a while
        self._know_items(train)
        self._know_households(train)
        if self.labels is not None:
            self.learn(self.table(*hide_in_turn(self.labels, self.hides), negatives=40))

    def learn(self, table: "Candidates") -> Self:
        """Grow the trees on a table of candidates; nothing else changes. What was grown is kept on disk."""
        told = table.told.to_numpy(np.float32)
        self.names = list(table.told)
        text = _grow_trees(told, table.wanted, np.bincount(table.rows), self.trees, self.seed)
        import lightgbm

        self.booster = lightgbm.Booster(model_str=text)
        return self

    def remember(self, train: Baskets) -> Self:
        """A copy in which only what households did is learned anew, from `train`; nothing else changes."""
        other = copy.copy(self)
        other.n_households = int(train.households.max(initial=-1)) + 1
        personal = (HouseholdFrequency, HouseholdRecency, OwnBaskets, TIFUKNN, UserKNN)
        other.members = {
            name: copy.copy(member).fit(train) if isinstance(member, personal) else member
            for name, member in self.members.items()
        }
        other._know_households(train)
        return other

    def _know_items(self, train: Baskets) -> None:
        matrix, size, age = train.matrix, np.diff(train.matrix.indptr), age_in_days(train)
        sold = np.asarray(matrix.sum(axis=0)).ravel()
        self.sold = sold > 0
        lately = np.asarray(matrix[age < 28].sum(axis=0)).ravel()
        buyers = self._purchases(train).tocsc()
        again = np.add.reduceat(np.append(buyers.data > 1, 0), buyers.indptr[:-1]) * (np.diff(buyers.indptr) > 0)
        self.of_items = {
            "popularity": np.log1p(sold),
            "trend": np.log((lately + 5) / (sold * np.mean(age < 28) + 5)),
            "repeat": again / np.maximum(np.diff(buyers.indptr), 1),
            "usual_size": (matrix.T @ size) / np.maximum(sold, 1),
            **({} if self.numbers is None else {c: self.numbers[c].to_numpy(float) for c in self.numbers}),
        }
        slot = time_slot(train.timestamps)
        share = np.bincount(slot + 1, minlength=13)[:, None] / len(train)  # row 0: moment unknown
        rows = sparse.csr_matrix((np.ones(len(train)), (slot + 1, np.arange(len(train)))), (13, len(train)))
        self.slots = np.log(((rows @ matrix).toarray() + 20 * share + 1e-9) / (share * (sold + 20) + 1e-9))
        self.slots[0] = 0
        self.codes = {c: pd.factorize(self.groups[c], use_na_sentinel=False)[0] for c in self.groups}
        self.one_hot = {c: sparse.csr_matrix(pd.get_dummies(v).to_numpy(np.float32)) for c, v in self.codes.items()}

    def _know_households(self, train: Baskets) -> None:
        bought = self._purchases(train)
        n = np.bincount(train.households[train.households >= 0], minlength=self.n_households)
        per = sparse.diags(1 / np.maximum(n, 1)) @ bought
        self.of_households = {"baskets": n, "their_size": np.asarray(per.sum(axis=1)).ravel()}
        self.of_households |= {f"their_{c}": (per @ m).toarray() for c, m in self.one_hot.items()}

    def table(
        self,
        queries: Baskets,
        wanted: sparse.csr_matrix | None = None,
        negatives: int | None = None,
        also: int | None = None,
    ) -> "Candidates":
        """The candidates of all queries, in batches; `wanted` (n_queries, n_items) marks what was hidden.

        `also`: an item that is looked at for every query, proposed or not.

        With `negatives`, about that many candidates that were not wanted are drawn for each query, and queries
        without a wanted candidate are left out: enough to learn from, never to measure with.
        """
        rng = np.random.default_rng(self.seed)
        parts = []
        for start in range(0, len(queries), BATCH):
            part = queries[start : start + BATCH]
            hidden = None if wanted is None else wanted[start : start + BATCH]
            parts.append(self._table(part, self._heard(part), hidden, negatives, rng, also))
            parts[-1].rows += start
        return _joined(parts)

    def look(self, queries: Baskets, items: np.ndarray) -> pd.DataFrame:
        """What the trees would see of one item a query, `items` (n_queries,), proposed or not: a row a query."""
        heard = self._heard(queries)
        for score in heard.values():
            without_basket(score, queries)
        told = self._tell(queries, heard, np.arange(len(queries)), np.asarray(items))
        return pd.DataFrame(told, dtype=np.float32)[self.names]

    def _heard(self, queries: Baskets) -> dict[str, np.ndarray]:
        """What each member says of every item: arrays of our own, which `_table` writes into."""
        return {name: member.score(queries).copy() for name, member in self.members.items()}

    def _table(
        self,
        queries: Baskets,
        scores: dict[str, np.ndarray],
        wanted: sparse.csr_matrix | None = None,
        negatives: int | None = None,
        rng: np.random.Generator | None = None,
        also: int | None = None,
    ) -> "Candidates":
        for score in scores.values():
            without_basket(score, queries)
        proposed = np.zeros((len(scores), *queries.matrix.shape), dtype=bool)
        for place, (name, score) in enumerate(scores.items()):
            best = np.argpartition(-score, min(self.quota[name], score.shape[1] - 1), axis=1)[:, : self.quota[name]]
            np.put_along_axis(proposed[place], best, np.isfinite(np.take_along_axis(score, best, axis=1)), axis=1)
        proposed &= self.sold  # of an item never sold only the member `behind` may speak
        mask = np.asarray(proposed.any(axis=0))
        if also is not None:
            mask[:, also] = True
        hidden = np.zeros(mask.shape, bool) if wanted is None else wanted.toarray() > 0
        if negatives is not None and rng is not None:
            drawn = rng.random(mask.shape) < negatives / np.maximum(mask.sum(axis=1, keepdims=True), 1)
            mask &= (drawn | hidden) & (mask & hidden).any(axis=1, keepdims=True)
        rows, columns = mask.nonzero()
        told = pd.DataFrame(self._tell(queries, scores, rows, columns), dtype=np.float32)
        return Candidates(rows, columns, told, hidden[rows, columns], proposed[:, rows, columns].T, list(scores))

    def _tell(
        self, queries: Baskets, scores: dict[str, np.ndarray], rows: np.ndarray, columns: np.ndarray
    ) -> dict[str, np.ndarray]:
        told: dict[str, np.ndarray] = {}
        for name, score in scores.items():
            value = score[rows, columns]
            value[np.isneginf(value)] = np.nan
            finite = np.isfinite(score)
            score[~finite] = 0
            n = np.maximum(finite.sum(axis=1), 1)
            mean = score.sum(axis=1) / n
            square = np.einsum("ij,ij->i", score, score) / n - mean**2
            told |= {name: value, f"{name}_z": (value - mean[rows]) / np.sqrt(np.maximum(square, 1e-12))[rows]}
        size = np.diff(queries.matrix.indptr)
        told |= {name: value[columns] for name, value in self.of_items.items()}
        told |= {"slot": self.slots[time_slot(queries.timestamps)[rows] + 1, columns], "size": size[rows]}
        for name, code in self.codes.items():
            told[f"same_{name}"] = (queries.matrix @ self.one_hot[name]).toarray()[rows, code[columns]]
        # A stranger is a household that has bought nothing: the last row, all zeros, is its.
        known = (queries.households >= 0) & (queries.households < self.n_households)
        house = np.where(known, queries.households, -1)[rows]
        for name, value in self.of_households.items():
            of = value[house] if value.ndim == 1 else value[house, self.codes[name.removeprefix("their_")][columns]]
            told[name] = np.where(house >= 0, of, 0)
        return told

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        for start in range(0, len(queries), BATCH):
            part = queries[start : start + BATCH]
            heard = self._heard(part)
            scores[start : start + BATCH] = heard[self.behind] - 100  # below every sum of leaves
            table = self._table(part, heard)
            if len(table.rows):
                scores[start + table.rows, table.columns] = self.booster.predict(table.told[self.names].to_numpy())
        return scores


@dataclass
class Candidates:
    """Proposed (query, item) pairs, a row each, in order of query.

    `rows`, `columns`: which query, which item; `told`: what the trees see (a column each); `wanted`: was it hidden;
    `proposed` (n_candidates, n_members): by whom, in the order of `members`.
    """

    rows: np.ndarray
    columns: np.ndarray
    told: pd.DataFrame
    wanted: np.ndarray
    proposed: np.ndarray
    members: list[str]

    def without(self, members: Collection[str], columns: Collection[str] = ()) -> "Candidates":
        """As if these members were not there: their two columns and what only they proposed; and other columns."""
        place = [i for i, name in enumerate(self.members) if name not in members]
        gone = [f"{name}{end}" for name in members for end in ("", "_z")]
        keep = self.proposed[:, place].any(axis=1)
        told = self.told.loc[keep, ~self.told.columns.isin([*gone, *columns])]
        rest = [name for name in self.members if name not in members]
        parts = (self.rows[keep], self.columns[keep], told, self.wanted[keep], self.proposed[keep][:, place])
        return Candidates(*parts, rest)


def _joined(parts: list[Candidates]) -> Candidates:
    """All parts as one; each gives up its table on the way, so that no row lies in memory twice."""
    columns, end = parts[0].told.columns, 0
    told = np.empty((sum(len(p.rows) for p in parts), len(columns)), np.float32)
    for p in parts:
        start, end = end, end + len(p.rows)
        told[start:end] = p.told
        p.told = p.told.head(0).copy()
    rows, items, wanted, proposed = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "columns", "wanted", "proposed")
    )
    return Candidates(rows, items, pd.DataFrame(told, columns=columns), wanted, proposed, parts[0].members)


def hide_in_turn(baskets: Baskets, hides: int, seed: int = SEED) -> tuple[Baskets, sparse.csr_matrix]:
    """Queries from baskets of three items or more: up to `hides` of them hidden one at a time, then all at once.

    Returns the open baskets and what was hidden, a row a query; the queries of one basket lie together.
    """
    rng = np.random.default_rng(seed)
    matrix = baskets.matrix
    source: list[int] = []  # the basket of each query
    hidden: list[np.ndarray] = []  # the places in matrix.indices that it hides
    for row in np.flatnonzero(np.diff(matrix.indptr) >= 3):
        places = np.arange(matrix.indptr[row], matrix.indptr[row + 1])
        chosen = rng.permutation(places)[:hides].reshape(-1, 1)
        hidden += [*chosen, places]
        source += [int(row)] * (len(chosen) + 1)
    query = np.repeat(np.arange(len(hidden)), [len(h) for h in hidden])
    place = np.concatenate(hidden)
    shape = (len(hidden), matrix.shape[1])
    wanted = sparse.csr_matrix((np.ones(len(place), np.float32), (query, matrix.indices[place])), shape)
    rest = sparse.csr_matrix(matrix[source] - wanted)
    rest.eliminate_zeros()
    return Baskets(rest, baskets.households[source], baskets.timestamps[source]), wanted


def time_slot(moments: np.ndarray) -> np.ndarray:
    """Twelve slots: the six quarters-of-four-hours of a weekday (0 to 5) or of a weekend (6 to 11); -1 unknown."""
    times = pd.DatetimeIndex(moments)
    slot = times.hour // 4 + 6 * (times.day_of_week >= 5)
    return np.where(times.isna(), -1, slot).astype(int)


def shop_members(words: np.ndarray, network: Recommender) -> dict[str, Recommender]:
    """The nine members of the book's ranker: chapter 02's vectors, chapter 03's network, all else new."""
    return {
        "ease": EASE(100.0),
        "item_knn": ItemKNN(None),
        "rules": RuleRecommender(),
        "text": EmbeddingRecommender(words),
        "graph": network,
        "share": HouseholdRecency(100_000),  # never fades
        "recency": HouseholdRecency(90),
        "lately": HouseholdRecency(30),
        "own_baskets": OwnBaskets(),
    }


def shop_ranker(
    items: pd.DataFrame, prices: np.ndarray, members: Mapping[str, Recommender], labels: Baskets | None = None
) -> HybridRanker:
    """The book's ranker, not yet fitted: `shop_members`, how many each proposes, an item's groups and price."""
    quota = dict(zip(members, (40, 30, 20, 10, 10, 40, 40, 20, 40), strict=True))
    groups, numbers = items[["department", "category", "type"]], pd.DataFrame({"price": prices})
    return HybridRanker(members, labels, groups, numbers, quota=quota)


@stage(libraries=("lightgbm",))
def _grow_trees(told: np.ndarray, wanted: np.ndarray, sizes: np.ndarray, trees: int, seed: int) -> str:
    import lightgbm

    ranker = lightgbm.LGBMRanker(
        objective="lambdarank",
        lambdarank_truncation_level=10,
        n_estimators=trees,
        learning_rate=0.12,
        num_leaves=31,
        min_child_samples=50,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5,
        max_bin=127,
        n_jobs=threads(),
        random_state=seed,
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )
    ranker.fit(told, wanted.astype(np.int8), group=sizes[sizes > 0])
    return ranker.booster_.model_to_string()


# ---------------------------------------------------------------------------------------------- bundles


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
