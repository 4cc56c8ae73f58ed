"""Factors of households and of items (chapter 05)."""

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender, purchases
from recutils.settings import TRAINING_SEED, n_threads


class ALS(Recommender):
    """Factors of households and of items: score = (x_u + basket * x_q) . y_i.

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
        bought = purchases(train, self.n_households).astype(float)
        bought.data = 1 + self.confidence * np.log1p(bought.data)  # c_ui where p_ui is 1
        self.user_factors, self.item_factors = _als(bought, self.factors, self.regularisation, self.seed)

    def _score(self, queries: Baskets) -> np.ndarray:
        taste = np.zeros((len(queries), self.factors), dtype=np.float32)
        known = self._known(queries)
        taste[known] = self.user_factors[queries.households[known]]
        y = self.item_factors
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
            factors, regularisation, alpha=1.0, iterations=10, random_state=seed, num_threads=n_threads()
        )
        model.fit(weights.astype(np.float32), show_progress=False)
    return model.user_factors, model.item_factors


class FeatureFactors(Recommender):
    """Q = H U V^T: a household's taste for an item through what is known of the item.

    `features` H (n_items, width) map to few factors by U, which households V weigh. With R = log(1 + purchases),
    each row of length 1, |R - V U^T H^T|^2 + regularisation |H U V^T|_H^2 has its least value in closed form: whiten
    H, project R, cut the singular values (reduced-rank regression; Izenman, 1975). Items never sold get scores too.
    Unknown households: -inf.
    """

    def __init__(self, features: np.ndarray, factors: int = 64, regularisation: float = 1.0) -> None:
        self.features, self.factors, self.regularisation = features, factors, regularisation

    def _fit(self, train: Baskets) -> None:
        ratings = purchases(train, self.n_households).astype(float)
        ratings.data = np.log1p(ratings.data)
        length = np.sqrt(np.asarray(ratings.multiply(ratings).sum(axis=1)).ravel())
        ratings = sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-9)) @ ratings)
        h = self.features.astype(np.float64)
        values, axes = np.linalg.eigh(h.T @ h + self.regularisation * np.eye(h.shape[1]))
        white = axes / np.sqrt(values)  # (width, width): (H white)^T (H white) is I, but for the regularisation
        left, weight, right = np.linalg.svd(ratings @ (h @ white), full_matrices=False)
        k = self.factors
        self.user_factors = (left[:, :k] * weight[:k]).astype(np.float32)  # V
        self.item_factors = (h @ white @ right[:k].T).astype(np.float32)  # H U

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        known = self._known(queries)
        scores[known] = self.user_factors[queries.households[known]] @ self.item_factors.T
        return scores
