"""How much of a score is owed to each part, exactly or by leaving it out (chapter 06)."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender
from recutils.ranker.ranker import HybridRanker

Worth = Callable[[np.ndarray], np.ndarray]  # which parts are there, (n_sets, n) bool -> scores (n_sets,)


def all_subsets(n: int) -> np.ndarray:
    """Every subset of n parts, (2^n, n) bool; row r holds the bits of r, so the last row holds all."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2 == 1


def shapley_values(worths: np.ndarray) -> np.ndarray:
    """Exact Shapley values from the worth of every subset: (..., 2^n) in the order of `all_subsets` -> (..., n).

    phi_i = sum over S without i of |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)); they sum to v(all) - v(none).
    Source: Shapley (1953).
    """
    n = int(worths.shape[-1]).bit_length() - 1
    if worths.shape[-1] != 2**n or n < 1:
        raise ValueError(f"{worths.shape[-1]} worths; give one for each subset of the parts, 2^n in all.")
    size = all_subsets(n).sum(axis=1)
    share = np.array([math.factorial(s) * math.factorial(n - s - 1) / math.factorial(n) for s in range(n)])
    values = np.empty((*worths.shape[:-1], n))
    for part in range(n):
        less = np.flatnonzero((np.arange(2**n) >> part) % 2 == 0)
        values[..., part] = (worths[..., less + 2**part] - worths[..., less]) @ share[size[less]]
    return values


def all_but_one(n: int, parts: np.ndarray | None = None) -> np.ndarray:
    """All of n parts, then all but each one, or but each of `parts`: (1 + their number, n) bool."""
    left_out = np.eye(n, dtype=bool)
    return np.concatenate([np.ones((1, n), bool), ~(left_out if parts is None else left_out[parts])])


def occlusion(worth: Worth, n: int) -> np.ndarray:
    """What each part adds to all the others: v(all) - v(all but it), (n,)."""
    worths = worth(all_but_one(n))
    return worths[0] - worths[1:]


def walk(worths: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deletion and insertion curves: the score as parts go, or come, the most important first.

    `worths` (n_examples, 2^n), `values` (n_examples, n) -> two arrays (n_examples, n + 1). A true explanation makes
    the first fall at once and the second rise at once. Ties go by place.
    """
    n = values.shape[1]
    order = np.argsort(-values, axis=1, kind="stable")
    bits = np.cumsum(np.pad(2**order, ((0, 0), (1, 0))), axis=1)  # the sets of the first 0, 1, ... n parts
    rows = np.arange(len(worths))[:, None]
    return worths[rows, 2**n - 1 - bits], worths[rows, bits]


def without_items(basket: Baskets, there: np.ndarray) -> Baskets:
    """Copies of one open basket in which only some of its items are left: `there` (n_copies, n_items_of_it) bool."""
    columns = basket.matrix.indices
    row, part = np.nonzero(there)
    shape = (len(there), basket.matrix.shape[1])
    matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, columns[part])), shape)
    return Baskets(matrix, np.repeat(basket.households, len(there)), np.repeat(basket.timestamps, len(there)))


def basket_worth(model: Recommender, basket: Baskets, item: int) -> Worth:
    """The score of `item` for subsets of the basket's items, what `shapley_values` and `occlusion` ask for.

    See `Recommender.score_items`: 0 where there is nothing to say; a `HybridRanker` judges the item as if retrieved.
    """

    def worth(there: np.ndarray) -> np.ndarray:
        return model.score_items(without_items(basket, there), np.full(len(there), item))

    return worth


def basket_contributions(model: Recommender, basket: Baskets, item: int) -> np.ndarray:
    """What each item of the open basket adds to the score of `item`: (n_items_of_it,), in the order of its columns.

    Exact for models that add up one number an item of the basket: EASE and item kNN (w_ji), `EmbeddingRecommender`
    (v_j . v_i / |sum of the v_j|), `BilinearRecommender`; what the score holds besides (a prior, a bias, the past) is
    not among the parts. For all others: `occlusion`.
    """
    exact = model.contributions(basket, item)
    return occlusion(basket_worth(model, basket, item), basket.matrix.nnz) if exact is None else exact


FAMILIES = {
    "habits": ("share", "recency", "lately", "own_baskets", "their_", "baskets"),
    "the open basket": ("ease", "item_knn", "same_", "size"),
    "rules": ("rules",),
    "words": ("text",),
    "graph": ("graph",),
}


def family(column: str) -> str:
    """The source of evidence that a column of a `HybridRanker`'s table belongs to; `context` for all others."""
    stem = column.removesuffix("_z")
    found = [f for f, names in FAMILIES.items() for n in names if stem == n or (n[-1] == "_" and stem.startswith(n))]
    return found[0] if found else "context"


def tree_shap(model: HybridRanker, features: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """TreeSHAP of candidates (`HybridRanker.features_for_items`): values like `features`, and the base.

    Their sum is the score. Exact for the trees, with what they saw in training as background. Source: Lundberg et
    al. (2020), as built into LightGBM.
    """
    values = np.asarray(model.trees.booster.predict(features.to_numpy(), pred_contrib=True))
    return pd.DataFrame(values[:, :-1], columns=features.columns), values[:, -1]
