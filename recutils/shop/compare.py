"""Which model serves a shop best, on its own later weeks."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets, Split
from recutils.evaluate import Evaluation, bootstrap_ci, complete_the_basket
from recutils.models import (
    ANONYMOUS,
    EASE,
    HouseholdFrequency,
    HouseholdRecency,
    ItemKNN,
    Popularity,
    Recommender,
    RuleRecommender,
)
from recutils.models.base import OneScore, largest_of_rows, row_of
from recutils.ranker import HybridRanker, RankerSettings
from recutils.rules import interest_measures, pair_counts
from recutils.shop.periods import sample_of
from recutils.shop.words import kind_labels

MOST_QUERIES = 3000
FEWEST_LABELS = 300  # baskets from which trees can learn an order
METRIC = "ndcg@10"


class Blend(Recommender):
    """Two fitted models: z(first) + weight z(second), each standardised within a query; no score is the lowest."""

    def __init__(self, first: Recommender, second: Recommender, weight: float) -> None:
        self.first, self.second, self.weight = first, second, weight

    def _fit(self, train: Baskets) -> None:
        pass  # both come fitted

    def _score(self, queries: Baskets) -> np.ndarray:
        return self._standard(self.first, queries) + self.weight * self._standard(self.second, queries)

    @staticmethod
    def _standard(model: Recommender, queries: Baskets) -> np.ndarray:
        scores = model.score(queries).astype(np.float32)  # (n_queries, n_items)
        finite = np.isfinite(scores)
        low = np.where(finite.any(axis=1), np.where(finite, scores, np.inf).min(axis=1), 0)
        scores = np.where(finite, scores, np.minimum(low, 0)[:, None])
        return (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(scores.std(axis=1, keepdims=True), 1e-9)


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


class PairRules(RuleRecommender):
    """`RuleRecommender` on rules of two items, counted without a compiler; kept as one."""

    saved_as = "RuleRecommender"

    def __init__(self, min_count: int, min_confidence: float) -> None:
        super().__init__(min_confidence=min_confidence, max_len=2)
        self.min_count = min_count

    def _fit(self, train: Baskets) -> None:
        n = train.matrix.shape[1]
        rules = pair_rules(train.matrix, self.min_count, self.min_confidence)[::-1]  # weakest first
        left, self.right = rules["left"].to_numpy(), rules["right"].to_numpy()
        self.rules = rules[["support", "confidence", "lift"]].reset_index(drop=True)
        self.weights = rules["confidence"].to_numpy(dtype=np.float32)
        ones = np.ones(len(rules), np.float32)
        self.left = sparse.csr_matrix((ones, (left, np.arange(len(rules)))), (n, len(rules)))
        self.left_sizes = np.ones(len(rules), int)
        self.table = sparse.csr_matrix((self.weights, (left, self.right)), (n, n))  # confidence of row -> column

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        for row in range(len(queries)):
            columns, values = self.score_one(row_of(queries.matrix, row)[0])
            scores[row, columns] = values
        return scores

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        best = largest_of_rows(self.table, basket)
        columns = np.flatnonzero(best)
        return columns, best[columns]

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`: that of a `RuleRecommender`."""
        return {name: value for name, value in super().state().items() if name not in ("table", "min_count")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Recommender.from_state`: the table is made again from the rules."""
        model = cast(Self, super().from_state(state))
        items, rules = model.left.nonzero()
        shape = (model.left.shape[0],) * 2
        model.table = sparse.csr_matrix((model.weights[rules], (items, model.right[rules])), shape)
        return model


def candidates(households: bool, n_baskets: int) -> dict[str, list[Recommender]]:
    """The models by name, each with the settings among which validation chooses (three where there is a choice)."""
    least = max(3, round(0.001 * n_baskets))
    found: dict[str, list[Recommender]] = {"popularity": [Popularity()]}
    if households:
        found["household frequency"] = [HouseholdFrequency()]
        found["household recency"] = [HouseholdRecency(days) for days in (30, 90, 365)]
    found["item kNN"] = [ItemKNN(n) for n in (20, 100, None)]
    found["EASE"] = [EASE(penalty) for penalty in (30.0, 100.0, 500.0)]
    found["pair rules"] = [PairRules(least, share) for share in (0.05, 0.1, 0.2)]
    return found


def compare_models(split: Split, progress: Callable[[str], None] = lambda step: None) -> pd.DataFrame:
    """Every model on the test: `model`, `ndcg`, `low`, `high`, `hits` (HR@10), `over`, `over_low`, `over_high`, `best`.

    A setting is chosen on the second half of validation, as is `best`, the model to serve; the first half teaches the
    ranker. `over` is the paired difference to popularity with its 95 % interval (households drawn, baskets where none
    are known). `tied`: the difference to the best model has an interval that holds zero. Empty where the test has no
    basket of three items.
    """
    parts = np.array_split(np.arange(len(split.validation)), 2)
    labels, choice = split.validation[parts[0]], sample_of(split.validation[parts[1]], MOST_QUERIES // 2)
    test = sample_of(split.test, MOST_QUERIES)
    if len(test) < 5 or len(choice) < 5:
        return pd.DataFrame(columns=["model", "ndcg", "low", "high", "hits", "over", "over_low", "over_high", "best"])
    small = replace(split, validation=choice, test=test)
    households = bool((split.train.households >= 0).any())
    fitted, chosen = {}, {}
    tried = candidates(households, len(split.train))
    for place, (name, grid) in enumerate(tried.items(), 1):
        progress(f"trying {name} (model {place} of {len(tried)}, {len(grid)} setting{'s' * (len(grid) > 1)})")
        fitted[name], chosen[name] = _best(small, [model.fit(split.train) for model in grid])
    progress("trying a blend")
    other = "household recency" if households else "popularity"
    blends: list[Recommender] = [Blend(fitted["EASE"], fitted[other], w).fit(split.train) for w in (0.25, 0.5, 1.0)]
    fitted[f"EASE + {other}"], chosen[f"EASE + {other}"] = _best(small, blends)
    if households and (ranker := _ranker(split, fitted, labels, progress)) is not None:
        fitted["ranker"], chosen["ranker"] = _best(small, [ranker])
    progress("measuring on the later weeks")
    return _measure(small, fitted, max(chosen, key=lambda name: chosen[name]))


def _best(split: Split, models: list[Recommender]) -> tuple[Recommender, float]:
    """The model with the highest NDCG@10 on validation, and that."""
    values = [complete_the_basket(model, split, on="validation").mean(METRIC) for model in models]
    place = int(np.argmax(values))
    return models[place], values[place]


def _ranker(split: Split, fitted: dict[str, Any], labels: Baskets, progress: Callable[[str], None]) -> Any:
    """Boosted trees over the others' candidates; None where LightGBM is not installed or the baskets are too few."""
    labels = sample_of(labels, 2000)
    if len(labels) < FEWEST_LABELS:
        return None
    try:
        import lightgbm  # noqa: F401  what `fit` needs
    except ImportError:
        return None
    progress("growing the ranker's trees")
    names = {"ease": "EASE", "item_knn": "item kNN", "rules": "pair rules", "recency": "household recency"}
    names["frequency"] = "household frequency"
    members = {short: fitted[name] for short, name in names.items()}
    settings = RankerSettings(30, fallback="ease", n_holdouts=2, n_trees=60)
    return HybridRanker(members, item_groups(split.items), None, labels, settings).fit(split.train)


def item_groups(items: pd.DataFrame) -> pd.DataFrame:
    """What the ranker takes for groups of items: the department where known, and the kind by words."""
    groups = pd.DataFrame({"kind": kind_labels(items["name"].to_list())})
    return groups.assign(department=items["department"].to_numpy()) if "department" in items else groups


def _measure(split: Split, fitted: dict[str, Recommender], best: str) -> pd.DataFrame:
    found: dict[str, Evaluation] = {name: complete_the_basket(model, split) for name, model in fitted.items()}
    values = {name: evaluation.values(METRIC) for name, evaluation in found.items()}
    groups, rows = next(iter(found.values())).households, []
    for name, evaluation in found.items():
        over = values[name] - values["popularity"]
        behind = bootstrap_ci(values[best] - values[name], groups)
        rows.append(
            {
                "model": name,
                "ndcg": float(values[name].mean()),
                **dict(zip(("low", "high"), bootstrap_ci(values[name], groups), strict=True)),
                "hits": evaluation.mean("hr@10"),
                "over": float(over.mean()),
                **dict(zip(("over_low", "over_high"), bootstrap_ci(over, groups), strict=True)),
                "tied": behind[0] <= 0 <= behind[1],
                "best": name == best,
                "n": len(groups),
            }
        )
    return pd.DataFrame(rows).sort_values("ndcg", ignore_index=True)
