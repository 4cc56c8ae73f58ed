"""Items as vectors, from words or from a graph (chapters 02 and 03)."""

from typing import Any

import numpy as np

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, OneScore, Recommender, purchases


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay as they are."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class EmbeddingRecommender(Recommender):
    """What lies near the basket: score_i = cos(v_i, q) + prior * l_i, with q = mean of the basket's v_j.

    `vectors` (n_items, width) may come from words, from a graph, from anything. `household` > 0 adds
    `household` times the mean vector of what the household bought in training to q. l_i is the standardised log
    of the training baskets that hold i; for an item that none holds it is predicted from v_i by ridge regression
    on the others, so that a cold item gets the popularity its vector promises. Chapter 02.
    """

    def __init__(self, vectors: np.ndarray, prior: float = 0.0, household: float = 0.0) -> None:
        self.vectors, self.prior, self.household = vectors, prior, household

    def _fit(self, train: Baskets) -> None:
        if train.matrix.shape[1] != len(self.vectors):
            raise ValueError(f"{len(self.vectors)} vectors for {train.matrix.shape[1]} items; give one an item.")
        self.unit_vectors = unit_rows(self.vectors)
        count = np.asarray(train.matrix.sum(axis=0)).ravel()  # (n_items,)
        sold = count > 0
        log = np.log(count[sold])
        target = (log - log.mean()) / max(log.std(), 1e-9)
        v = self.unit_vectors[sold].astype(np.float64)
        weights = np.linalg.solve(v.T @ v + np.eye(v.shape[1]), v.T @ target)
        self.popularity = (self.unit_vectors @ weights).astype(np.float32)
        self.popularity[sold] = target
        if self.household:
            bought = purchases(train, self.n_households)
            self.taste = bought @ self.unit_vectors / np.maximum(bought.sum(axis=1), 1).reshape(-1, 1)

    def _score(self, queries: Baskets) -> np.ndarray:
        sizes = np.maximum(np.diff(queries.matrix.indptr), 1).astype(np.float32)
        query = queries.matrix @ self.unit_vectors / sizes[:, None]  # (n_queries, width)
        if self.household:
            known = self._known(queries)
            query[known] += self.household * self.taste[queries.households[known]]
        return unit_rows(query) @ self.unit_vectors.T + self.prior * self.popularity

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        if self.household:
            return super().score_one(basket, household, timestamp)
        total = self.unit_vectors[basket].sum(axis=0)  # (width,)
        scores = self.unit_vectors @ (total / max(float(np.linalg.norm(total)), 1e-9))
        return None, scores + self.prior * self.popularity if self.prior else scores

    def contributions(self, basket: Baskets, item: int) -> np.ndarray | None:
        """v_j . v_i / |sum of the v_j| for each item j of the basket; None where the household counts too."""
        if self.household:
            return None
        vectors = self.unit_vectors[basket.matrix.indices]
        return vectors @ self.unit_vectors[item] / max(float(np.linalg.norm(vectors.sum(axis=0))), 1e-9)

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`; the vectors are kept once, as rows of length 1."""
        return {name: value for name, value in vars(self).items() if name != "vectors"}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "EmbeddingRecommender":
        """See `Recommender.from_state`."""
        return super().from_state(state | {"vectors": state["unit_vectors"]})


class DotProduct(Recommender):
    """score_i = q . h_i + b_i, q = sum of the basket's h_j / sqrt(their number).

    `vectors` (n_items, width) and `bias` (n_items,) come from elsewhere; `graph.GraphRecommender` learns them.
    """

    saved_as = "DotProduct"  # what learned the vectors is not needed to score

    def __init__(self, vectors: np.ndarray, bias: np.ndarray) -> None:
        self.vectors, self.bias = vectors, bias

    def _fit(self, train: Baskets) -> None:
        pass

    def _score(self, queries: Baskets) -> np.ndarray:
        size = np.maximum(np.diff(queries.matrix.indptr), 1).astype(np.float32)
        return (queries.matrix @ self.vectors / np.sqrt(size)[:, None]) @ self.vectors.T + self.bias

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        query = self.vectors[basket].sum(axis=0) / np.float32(np.sqrt(max(len(basket), 1)))
        return None, self.vectors @ query + self.bias

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`."""
        return {name: getattr(self, name) for name in ("vectors", "bias", "n_items", "n_households")}
