"""Which rules match a basket, and rules between groups of items (chapters 04 and 04b)."""

import numpy as np
import pandas as pd
from scipy import sparse


def antecedent_matrix(rules: pd.DataFrame, n_items: int) -> sparse.csr_matrix:
    """The antecedents as a 0/1 matrix (n_items, n_rules), for rules over the columns of a basket matrix."""
    sizes = rules["antecedents"].map(len).to_numpy(dtype=int)
    column = np.fromiter((i for left in rules["antecedents"] for i in left), dtype=int, count=sizes.sum())
    rule = np.repeat(np.arange(len(sizes)), sizes)
    return sparse.csr_matrix((np.ones(len(rule), np.float32), (column, rule)), shape=(n_items, len(sizes)))


def matching_rules(matrix: sparse.csr_matrix, antecedents: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Which rules match which baskets: (basket numbers, rule numbers), in ascending order of the rules.

    `matrix` is 0/1 (n_baskets, n_items), `antecedents` comes from `antecedent_matrix`; a rule matches when all of its
    antecedent is in the basket.
    """
    sizes = np.asarray(antecedents.sum(axis=0)).ravel()
    found = []
    for start in range(0, matrix.shape[0], 1024):  # partly held antecedents are many, so not all at once
        held = sparse.coo_matrix(matrix[start : start + 1024] @ antecedents)
        whole = held.data == sizes[held.col]
        found.append((held.row[whole] + start, held.col[whole]))
    empty = np.empty(0, int)
    basket, rule = (np.concatenate(part) for part in zip((empty, empty), *found, strict=True))
    order = np.argsort(rule, kind="stable")
    return basket[order], rule[order]


def rule_hits(rules: pd.DataFrame, matrix: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every time a rule with one consequent fires in other baskets: (basket, rule, whether it was right there).

    `matrix` is 0/1 (n_baskets, n_items); rules are numbered by their rows, in ascending order.
    """
    basket, rule = matching_rules(matrix, antecedent_matrix(rules, matrix.shape[1]))
    consequent = np.array([next(iter(side)) for side in rules["consequents"]], dtype=int)
    if not len(basket):  # scipy gives no array for no places
        return basket, rule, np.empty(0, dtype=bool)
    return basket, rule, np.asarray(matrix[basket, consequent[rule]]).ravel() > 0


def add_group_columns(matrix: sparse.csr_matrix, groups: np.ndarray) -> sparse.csr_matrix:
    """Baskets with a column more for each group of items: 0/1 (n_baskets, n_items + n_groups).

    `groups` (n_items,) numbers each item's group from 0; a basket holds a group when it holds one of its items.
    Mining this matrix finds generalised rules (Srikant and Agrawal, 1995).
    """
    n_items = matrix.shape[1]
    if len(groups) != n_items:
        raise ValueError(f"{len(groups)} groups for {n_items} items; give one an item.")
    member = sparse.csr_matrix((np.ones(n_items, np.float32), (np.arange(n_items), groups)))
    held = sparse.csr_matrix(matrix @ member)
    held.data[:] = 1
    return sparse.hstack([matrix, held]).tocsr()


def prune_generalised_rules(rules: pd.DataFrame, groups: np.ndarray) -> pd.DataFrame:
    """Of rules over `add_group_columns` with one consequent, those that recommend an item and are not redundant.

    Antecedents may hold items and groups, but neither the group of the item offered, nor an item together with its
    own group, nor a group of one item, which says what the item says.
    """
    n_items = len(groups)
    single = set((np.flatnonzero(np.bincount(groups) == 1) + n_items).tolist())

    def says(left: frozenset, right: frozenset) -> bool:
        offered = min(right)
        within = {groups[i] + n_items for i in left if i < n_items}
        return offered < n_items and groups[offered] + n_items not in left and not (within | single) & left

    keep = [says(left, right) for left, right in zip(rules["antecedents"], rules["consequents"], strict=True)]
    return rules[np.array(keep, dtype=bool)].reset_index(drop=True)
