"""Two ways to read basket and household together, and the baselines as they were tuned (chapters 05 and 05c)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender
from recutils.models.factors import ALS
from recutils.models.habits import TIFUKNN, HouseholdRecency, HouseholdSessionKNN
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN, UserKNN


class WithHistory(Recommender):
    """A sum over the basket's items that is asked about the household's past, too.

    score = base(basket + weight * h), h: the household's purchases, decayed, as shares (`HouseholdRecency`); 0 for an
    unknown household. For models that are linear in the basket (EASE, item kNN). A `base` that was fitted before stays
    as it is.
    """

    personal = True

    def __init__(self, base: Recommender, weight: float = 0.1, half_life: float = 90.0) -> None:
        self.base, self.weight, self.half_life = base, weight, half_life

    def _fit(self, train: Baskets) -> None:
        if self.base.n_items is None:
            self.base.fit(train)
        self.share = HouseholdRecency(self.half_life).fit(train).share  # csr (n_households, n_items)

    def _score(self, queries: Baskets) -> np.ndarray:
        known = self._known(queries)
        where = (np.ones(len(known)), (known, queries.households[known]))
        past = sparse.csr_matrix(where, (len(queries), self.n_households)) @ self.share
        matrix = sparse.csr_matrix(queries.matrix + self.weight * past)
        return self.base.score(replace(queries, matrix=matrix))


class Blend(Recommender):
    """A weighted sum of the raw scores of some models; one that says nothing of an item adds 0.

    score = sum over parts of weight * score of the part. Parts that were fitted before stay as they are.
    """

    def __init__(self, parts: Sequence[Recommender], weights: Sequence[float]) -> None:
        self.parts, self.weights = parts, weights

    def _fit(self, train: Baskets) -> None:
        for part in self.parts:
            if part.n_items is None:
                part.fit(train)

    def _score(self, queries: Baskets) -> np.ndarray:
        total = np.zeros(queries.matrix.shape, np.float32)
        for part, weight in zip(self.parts, self.weights, strict=True):
            total += weight * np.nan_to_num(part.score(queries), neginf=0)
        return total

    def refresh(self, train: Baskets) -> Self:
        """See `Recommender.refresh`: of the parts that know households."""
        other = copy.copy(self)
        other.n_households = int(train.households.max(initial=-1)) + 1
        other.parts = [part.refresh(train) for part in self.parts]
        return other


BASELINES: dict[str, type[Recommender]] = {
    "item_knn": ItemKNN,
    "ease": EASE,
    "household_recency": HouseholdRecency,
    "session_knn": HouseholdSessionKNN,
    "user_knn": UserKNN,
    "tifu_knn": TIFUKNN,
    "als": ALS,
}
BLENDED = ("ease", "household_recency", "session_knn")  # the parts of the blends, in order; the first weighs 1
# The best trials on the book's store (chapter 05c), so that a notebook runs where these are not at hand.
TUNED: dict[str, dict[str, Any]] = {
    "item_knn": {"neighbours": 200},
    "ease": {"regularisation": 100},
    "household_recency": {"half_life": 120},
    "session_knn": {"half_life": 180},
    "user_knn": {"neighbours": 19, "half_life": 19},
    "tifu_knn": {"group_size": 2, "within_decay": 0.6080873589761303, "group_decay": 0.9330479382191752}
    | {"neighbours": 328, "alpha": 0.8700121482468192},
    "als": {"factors": 97, "regularisation": 18.52078758503171}
    | {"confidence": 0.1110869934734282, "basket": 13.878288724695928},
    "ease_history": {"weight": 0.5, "half_life": 60},
    "item_knn_history": {"weight": 0.03, "half_life": 365},
    "blend_two": {"recency": 1.0},
    "blend_three": {"recency": 0.2, "session_knn": 0.02},
}


def make_baseline(name: str, settings: Mapping[str, Any], fitted: Mapping[str, Recommender]) -> Recommender:
    """A baseline by its name in `TUNED`, not yet fitted; one that is made of others takes them from `fitted`.

    >>> make_baseline("ease", TUNED["ease"], {}).regularisation
    100
    """
    if name in BASELINES:
        return BASELINES[name](**settings)
    if name.endswith("_history"):
        return WithHistory(fitted[name.removesuffix("_history")], **settings)
    parts = [fitted[part] for part in BLENDED[: 1 + len(settings)]]
    return Blend(parts, [1.0, *settings.values()])
