"""Association rules as a recommender (chapter 04)."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, OneScore, Recommender
from recutils.rules.association import association_rules
from recutils.rules.matching import add_group_columns, antecedent_matrix, matching_rules, prune_generalised_rules


class RuleRecommender(Recommender):
    """What the rules say: score_i = the highest confidence of a rule A -> i with all of A in the basket.

    Rules are mined from the training baskets (`association_rules`, one consequent); `measure` may name
    another of their columns. With `groups` (n_items,), left sides may hold groups of items (`add_group_columns`).
    No rule fires: -inf. Chapter 04.
    """

    def __init__(
        self,
        min_support: float = 0.0001,
        min_confidence: float = 0.05,
        max_len: int | None = 2,
        measure: str = "confidence",
        groups: np.ndarray | None = None,
    ) -> None:
        self.min_support, self.min_confidence = min_support, min_confidence
        self.max_len, self.measure, self.groups = max_len, measure, groups

    def _fit(self, train: Baskets) -> None:
        matrix = self._seen(train)
        rules = association_rules(matrix, self.min_support, self.min_confidence, self.max_len)
        if self.groups is not None:
            rules = prune_generalised_rules(rules, self.groups)
        # Weakest first, so that among the rules for one item the strongest is written last.
        self.rules = rules.sort_values(self.measure, kind="stable", ignore_index=True)
        self.left = antecedent_matrix(self.rules, matrix.shape[1])
        self.left_sizes = np.bincount(self.left.indices, minlength=self.left.shape[1])
        self.right = np.array([next(iter(c)) for c in self.rules["consequents"]], dtype=int)
        self.weights = self.rules[self.measure].to_numpy(dtype=np.float32)

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        row, rule = matching_rules(self._seen(queries), self.left)
        scores[row, self.right[rule]] = self.weights[rule]
        return scores

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        columns, scores = self._fired(basket), np.full(self.n_items or 0, -np.inf, dtype=np.float32)
        scores[self.right[columns]] = self.weights[columns]
        items = np.flatnonzero(scores > -np.inf)
        return items, scores[items]

    def fired_rules(self, basket: np.ndarray, item: int) -> pd.DataFrame | None:
        """The rules that offer `item` to the basket, the strongest first; None for rules between groups."""
        if self.groups is not None:
            return None
        fired = self._fired(basket)
        return self.rules.iloc[fired[self.right[fired] == item][::-1]]

    def _fired(self, basket: np.ndarray) -> np.ndarray:
        """The rules whose whole left side lies in the basket, ascending."""
        if self.groups is not None:
            basket = np.union1d(basket, self.groups[basket] + len(self.groups)).astype(int)
        left, n_rules = self.left, self.left.shape[1]
        met = [left.indices[left.indptr[i] : left.indptr[i + 1]] for i in basket]
        held = np.bincount(np.concatenate(met), minlength=n_rules) if met else np.zeros(n_rules, int)
        return np.flatnonzero((held > 0) & (held == self.left_sizes))

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`; of the rules' table what explanations show."""
        return dict(vars(self)) | {
            "rules": {c: self.rules[c].to_numpy(float) for c in ("support", "confidence", "lift")}
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RuleRecommender":
        """See `Recommender.from_state`."""
        left = state["left"].tocsc()
        sides = [frozenset(left.indices[a:b].tolist()) for a, b in pairwise(left.indptr)]
        return super().from_state(state | {"rules": pd.DataFrame({"antecedents": sides, **state["rules"]})})

    def _seen(self, baskets: Baskets) -> sparse.csr_matrix:
        return baskets.matrix if self.groups is None else add_group_columns(baskets.matrix, self.groups)
