"""Neighbours among items and among households (chapters 01 and 05)."""

from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, OneScore, Recommender, age_in_days, largest_of_rows, purchases, row_of
from recutils.rules.measures import pair_counts


class UserKNN(Recommender):
    """What households like this one buy: r_ui = mean_u + sum_v w_uv (r_vi - mean_v) / sum_v |w_uv|.

    r_ui = log(1 + purchases of i by u, each weighing 0.5^(age / half_life)); w_uv is the cosine of the centred
    rows of r, over the `neighbours` households most like u. The open basket of an unknown household stands for its row.
    Source: Resnick et al. (1994).
    """

    personal = True

    def __init__(self, neighbours: int = 100, half_life: float = 90.0) -> None:
        self.neighbours, self.half_life = neighbours, half_life

    def _fit(self, train: Baskets) -> None:
        self._check_households()
        self.ratings = purchases(train, self.n_households, 0.5 ** (age_in_days(train) / self.half_life))
        self.ratings.data = np.log1p(self.ratings.data)  # (n_households, n_items), 0 where never bought
        self.mean, self.length = self._mean_and_length(self.ratings)
        self.neighbour_weights = self._nearest(self.ratings, others=True)

    def _mean_and_length(self, rows: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(rows.mean(axis=1)).ravel()
        square = np.asarray(rows.multiply(rows).sum(axis=1)).ravel() - rows.shape[1] * mean**2
        return mean, np.sqrt(np.maximum(square, 1e-12))

    def _nearest(self, rows: sparse.csr_matrix, others: bool = False) -> sparse.csr_matrix:
        """w_uv / sum_v |w_uv| over the neighbours of each row: csr (n_rows, n_households)."""
        mean, length = self._mean_and_length(rows)
        similarity = (rows @ self.ratings.T).toarray() - rows.shape[1] * np.outer(mean, self.mean)
        similarity /= np.outer(length, self.length)
        if others:
            np.fill_diagonal(similarity, 0)
        k = min(self.neighbours, similarity.shape[1])
        bound = np.partition(np.abs(similarity), -k, axis=1)[:, [-k]]
        similarity[np.abs(similarity) < bound] = 0
        return sparse.csr_matrix(similarity / np.maximum(np.abs(similarity).sum(axis=1, keepdims=True), 1e-9))

    def _predict(self, weights: sparse.csr_matrix, mean: np.ndarray) -> np.ndarray:
        return (weights @ self.ratings).toarray() + (mean - weights @ self.mean)[:, None]

    def _score(self, queries: Baskets) -> np.ndarray:
        known = self._known(queries)
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        household = queries.households[known]
        scores[known] = self._predict(self.neighbour_weights[household], self.mean[household])
        unknown = np.setdiff1d(np.arange(len(queries)), known)
        if len(unknown):
            rows = queries.matrix[unknown] * np.log(2)
            scores[unknown] = self._predict(self._nearest(rows), self._mean_and_length(rows)[0])
        return scores


class ItemKNN(Recommender):
    """What goes with what is in the basket: score_i = sum over j in basket of cos(i, j).

    cos(i, j) = n_ij / sqrt(n_i n_j), with n_ij the training baskets that hold both; for each item only its
    `neighbours` most similar ones count (None: all). Source: Sarwar et al. (2001).
    """

    pairwise = True

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

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        total = np.zeros(self.similarity.shape[1], np.float32)
        for item in basket:
            columns, values = row_of(self.similarity, item)
            total[columns] += values
        columns = np.flatnonzero(total)
        return columns, total[columns]

    def strongest(self, basket: np.ndarray) -> np.ndarray:
        """See `Recommender.strongest`."""
        return largest_of_rows(self.similarity, basket)

    def contributions(self, basket: Baskets, item: int) -> np.ndarray:
        """cos(i, j) for each item j of the basket."""
        return self.similarity[basket.matrix.indices, item].toarray().ravel()


def keep_largest(matrix: sparse.csr_matrix, n: int) -> None:
    """Keep the `n` largest stored values of each row, in place."""
    for row in range(matrix.shape[0]):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]  # a view
        if len(values) > n:
            values[np.argpartition(values, -n)[:-n]] = 0
    matrix.eliminate_zeros()
