"""How much of a score is owed to each part, exactly or by leaving it out (chapter 06)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender

ValueFunction = Callable[[np.ndarray], np.ndarray]  # masks of the parts kept, (n_sets, n_parts) bool -> (n_sets,)


def leave_one_out_masks(n_parts: int, parts: np.ndarray | None = None) -> np.ndarray:
    """All parts, then all but each one, or but each of `parts`: (1 + their number, n_parts) bool."""
    left_out = np.eye(n_parts, dtype=bool)
    return np.concatenate([np.ones((1, n_parts), bool), ~(left_out if parts is None else left_out[parts])])


def occlusion(value_function: ValueFunction, n_parts: int) -> np.ndarray:
    """What each part adds to all the others: v(all) - v(all but it), (n_parts,)."""
    values = value_function(leave_one_out_masks(n_parts))
    return values[0] - values[1:]


def perturb_basket(basket: Baskets, mask: np.ndarray) -> Baskets:
    """Copies of one open basket in which only some of its items are left: `mask` (n_copies, n_items_of_it) bool."""
    columns = basket.matrix.indices
    row, part = np.nonzero(mask)
    shape = (len(mask), basket.matrix.shape[1])
    matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, columns[part])), shape)
    return Baskets(matrix, np.repeat(basket.households, len(mask)), np.repeat(basket.timestamps, len(mask)))


def basket_value_function(model: Recommender, basket: Baskets, item: int) -> ValueFunction:
    """The score of `item` as a function of the basket's items that are kept, for `occlusion` and Shapley values.

    See `Recommender.score_items`: 0 where there is no score; a `HybridRanker` scores the item as if retrieved.
    """

    def value(mask: np.ndarray) -> np.ndarray:
        return model.score_items(perturb_basket(basket, mask), np.full(len(mask), item))

    return value


def basket_contributions(model: Recommender, basket: Baskets, item: int) -> np.ndarray:
    """What each item of the open basket adds to the score of `item`: (n_items_of_it,), in the order of its columns.

    Exact for models whose score is a sum over the basket's items: EASE and item kNN (w_ji), `EmbeddingRecommender`
    (v_j . v_i / |sum of the v_j|); what the score holds besides (a prior, a bias, the past) is not among the parts.
    For all others: `occlusion`.
    """
    exact = model.contributions(basket, item)
    return occlusion(basket_value_function(model, basket, item), basket.matrix.nnz) if exact is None else exact


FEATURE_GROUPS = {
    "habits": ("frequency_share", "recency", "recency_30", "session_knn", "their_", "baskets", "bought_"),
    "the open basket": ("ease", "item_knn", "same_", "size"),
    "rules": ("rules",),
    "words": ("text",),
    "graph": ("graph",),
}


def feature_group(name: str) -> str:
    """The source of evidence that a feature of a `HybridRanker` belongs to; `context` for all others."""
    stem = name.removesuffix("_z").removesuffix("_max")
    found = [
        group
        for group, stems in FEATURE_GROUPS.items()
        for s in stems
        if stem == s or (s[-1] == "_" and stem.startswith(s))
    ]
    return found[0] if found else "context"


def tree_shap(model: Any, features: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """TreeSHAP of a ranker's candidates: values shaped like their `features`, and the base; their sum is the score.

    Exact, with what the trees saw in training as background. Source: Lundberg et al. (2020), as built into LightGBM.
    """
    values = np.asarray(model.trees.booster.predict(features.to_numpy(), pred_contrib=True))
    return pd.DataFrame(values[:, :-1], columns=features.columns), values[:, -1]
