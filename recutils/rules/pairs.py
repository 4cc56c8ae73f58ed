"""Rules between two items from pair counts alone: no compiler is needed (a reader's own shop)."""

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.rules.measures import interest_measures, pair_counts


def pair_rules(matrix: sparse.spmatrix, min_count: int, min_confidence: float) -> pd.DataFrame:
    """All rules left -> right of two items in at least `min_count` baskets and so confident, the strongest first.

    `matrix` is 0/1 (n_baskets, n_items). Returns `left` and `right` (columns of it) and the measures of
    `interest_measures`. Memory grows with the number of different pairs in the baskets.
    """
    counts = pair_counts(matrix).tocoo()
    sold = np.asarray(matrix.sum(axis=0)).ravel().astype(np.int64)
    keep = (counts.row != counts.col) & (counts.data >= min_count)
    left, right, both = counts.row[keep], counts.col[keep], counts.data[keep].astype(np.int64)
    keep = both / sold[left] >= min_confidence
    left, right, both = left[keep], right[keep], both[keep]
    measures = interest_measures(both, sold[left], sold[right], matrix.shape[0])
    rules = pd.DataFrame({"left": left, "right": right, **measures})
    order = ["confidence", "count", "left", "right"]
    return rules.sort_values(order, ascending=[False, False, True, True], ignore_index=True)
