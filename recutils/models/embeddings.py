"""Items as vectors, from words or from a graph (chapters 02 and 03)."""

import numpy as np

from recutils.data.schema import Baskets
from recutils.models.base import Recommender


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
