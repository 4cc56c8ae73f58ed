"""EASE, a linear model in closed form (chapters 01 and 05)."""

from typing import Any

import numpy as np
from scipy import linalg

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, OneScore, Recommender
from recutils.rules.measures import pair_counts


class EASE(Recommender):
    """A linear model of an item from the rest of the basket, in closed form.

    minimise |X - X B|^2 + regularisation |B|^2 with diag(B) = 0. With P = (X^T X + regularisation I)^-1:
    B_ij = -P_ij / P_jj off the diagonal. Scores are basket @ B. Dense: n_items^2 numbers of 8 bytes while
    fitting, of 4 bytes after. Raises ValueError for a penalty that is not above zero, and where the matrix to invert
    is singular. Source: Steck (2019); derived in chapter 05.
    """

    pairwise = True

    def __init__(self, regularisation: float = 500.0) -> None:
        self.regularisation = regularisation

    def _fit(self, train: Baskets) -> None:
        if not 0 < self.regularisation < np.inf:
            raise ValueError(f"EASE's regularisation is {self.regularisation}; give a finite number above 0.")
        gram = pair_counts(train.matrix).astype(np.float64).toarray(order="F")  # (n_items, n_items)
        gram[np.diag_indices_from(gram)] += self.regularisation
        smallest = len(gram) * np.finfo(float).eps * gram.diagonal().max()  # a pivot below is nothing but rounding
        factor, failed = linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)  # gram = L L^T
        if failed or (factor.diagonal() ** 2).min() <= smallest:
            raise ValueError(
                f"EASE: with regularisation {self.regularisation} the items' matrix of joint purchases is singular to "
                "the computer's precision; give a larger penalty (chapter 01 uses hundreds)."
            )
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

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        return None, self.weights[basket].sum(axis=0)

    def strongest(self, basket: np.ndarray) -> np.ndarray:
        """See `Recommender.strongest`."""
        return self.weights[basket].max(axis=0) if len(basket) else np.zeros(len(self.weights), np.float32)

    def contributions(self, basket: Baskets, item: int) -> np.ndarray:
        """B_ji for each item j of the basket."""
        return self.weights[basket.matrix.indices, item].astype(float)
