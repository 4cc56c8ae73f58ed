"""Recommenders under one contract: fit on baskets, score every item for a query (chapters 01, 04 and 05).

A query is an open basket, its household and its moment (`Baskets`). Scores compare items within one query
only; -inf means that the model has nothing to say about an item.
"""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from scipy import linalg, sparse

from recutils.data import Baskets
from recutils.rules import association_rules, firing, for_items, left_sides, pair_counts, with_groups


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` highest scores in each row, best first, ties by column; -1 where a score is -inf.

    (n_queries, n_items) -> (n_queries, min(k, n_items)).
    """
    k = min(k, scores.shape[1])
    bound = np.partition(scores, -k, axis=1)[:, [-k]]  # (n_queries, 1), the k-th best score
    # Of the items tied at the bound, only the first columns belong to the k.
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

    def _purchases(self, train: Baskets) -> sparse.csr_matrix:
        """Training baskets of each household that hold each item: (n_households, n_items)."""
        known = train.households >= 0
        shape = (self.n_households, len(train))
        rows = sparse.csr_matrix((np.ones(known.sum()), (train.households[known], np.flatnonzero(known))), shape)
        return sparse.csr_matrix(rows @ train.matrix)

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
        gram = pair_counts(train.matrix).toarray().astype(np.float64, order="F")  # (n_items, n_items)
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
