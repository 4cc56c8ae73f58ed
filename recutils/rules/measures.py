"""Measures of interest of a rule, and pairs (chapter 04)."""

from typing import Any

import numpy as np
from scipy import sparse

MEASURES = ["support", "count", "confidence", "lift", "leverage", "conviction", "zhang"]


def interest_measures(count: Any, count_antecedent: Any, count_consequent: Any, n: int) -> dict[str, np.ndarray]:
    """Measures of rules A -> C from how many of `n` baskets hold A and C, A, and C.

    - support = P(A, C), 0..1, and `count` = n P(A, C)
    - confidence = P(C | A), 0..1
    - lift = P(A, C) / (P(A) P(C)), 0..inf, 1 where A and C are independent
    - leverage = P(A, C) - P(A) P(C), -0.25..0.25, 0 where independent
    - conviction = P(A) P(not C) / P(A, not C), 0..inf, 1 where independent, inf where the rule never fails
    - zhang = leverage / max(P(A, C) P(not A), P(A) (P(C) - P(A, C))), -1..1, 0 where independent

    Sources: Brin et al. (1997) for lift and conviction, Piatetsky-Shapiro (1991), Zhang (2000).
    """
    both, left, right = (np.asarray(c, dtype=float) / n for c in (count, count_antecedent, count_consequent))
    confidence = np.asarray(count, dtype=float) / count_antecedent
    leverage = both - left * right
    with np.errstate(divide="ignore", invalid="ignore"):
        conviction = np.where(confidence < 1, (1 - right) / (1 - confidence), np.inf)
        bound = np.maximum(both * (1 - left), left * (right - both))
        zhang = np.where(bound > 0, leverage / bound, 0.0)
    return {
        "support": both,
        "count": np.asarray(count),
        "confidence": confidence,
        "lift": confidence / right,
        "leverage": leverage,
        "conviction": conviction,
        "zhang": zhang,
    }


def pair_counts(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    """How many baskets hold each pair of items: X^T X, (n_items, n_items), the diagonal holding the items' own."""
    x = sparse.csr_matrix(matrix, dtype=np.int32)
    return sparse.csr_matrix(x.T @ x)


def shrunk_log_lift(joint: Any, expected: Any) -> np.ndarray:
    """log((n_ij + 1) / (E_ij + 1)) with n_ij joint baskets where chance would give E_ij; float32.

    The ones hold back pairs of which little is known: 0 where nothing was expected and nothing seen.
    """
    return np.log((np.asarray(joint) + 1) / (np.asarray(expected) + 1)).astype(np.float32)
