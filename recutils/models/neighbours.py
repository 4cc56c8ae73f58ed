"""Neighbours among items and among households (chapters 01 and 05)."""

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender, age_in_days
from recutils.rules.measures import pair_counts


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
