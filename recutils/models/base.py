"""The contract of every recommender (chapter 01)."""

from abc import ABC, abstractmethod
from typing import Self

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets


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


def age_in_days(train: Baskets) -> np.ndarray:
    """How long before the last of them each basket was paid, in days (n_baskets,); 0 where the moment is unknown."""
    age = (np.nanmax(train.timestamps) - train.timestamps) / np.timedelta64(1, "D")
    return np.nan_to_num(age)
