"""Why this item? One object an offer (chapter 06)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.explain.attribution import (
    basket_contributions,
    feature_group,
    leave_one_out_masks,
    perturb_basket,
    tree_shap,
)
from recutils.explain.text import MINIMUM_EFFECT, sentence_template
from recutils.models.base import Recommender

MOST_ITEMS = 8  # of a larger basket, so many items are left out one by one


@dataclass
class ExplanationContext:
    """What an explanation names besides the model's scores.

    - `item_names`: one an item
    - `purchases` (n_households, n_items): how many training baskets of a household held an item
    - `household_baskets` (n_households,): how many training baskets a household has
    - `attribute_lift`: a function of an open basket (1, n_items) and an item that gives, for each of the item's
      attributes, how much likelier than usual the basket makes it; None where there is none
    - `minimum_effect`, `shown`: which reasons are spoken, see `sentence_template`; chapter 06 calibrates the effects
    """

    item_names: Sequence[str]
    purchases: sparse.csr_matrix
    household_baskets: np.ndarray
    attribute_lift: Callable[[sparse.csr_matrix, int], dict[str, float]] | None = None
    minimum_effect: Mapping[str, float] = field(default_factory=MINIMUM_EFFECT.copy)
    shown: int = 5

    @cached_property
    def item_counts(self) -> np.ndarray:
        """How many training baskets of known households held each item: (n_items,)."""
        return np.asarray(self.purchases.sum(axis=0)).ravel()


@dataclass
class Explanation:
    """Why one item is offered; every number in it was measured, and `sentence` says nothing else.

    - `rank`: its rank among the offers, from 1; None where it is no candidate of a `HybridRanker`
    - `score` = `base` + the sum of `evidence` for a `HybridRanker` (scored as if it were a candidate); for models
      that sum over the basket's items, `base` + the sum of `basket`
    - `basket`: (item, name, what it adds to the score), the largest first, see `basket_contributions`
    - `rules`: the rules that fired: antecedents (names), support, confidence, lift
    - `household_count`, `household_baskets`: how many of the household's training baskets held it, out of how many
    - `item_count`, `n_baskets`: how many training baskets of known households held it, out of how many
    - `attribute_lift`: how much likelier than usual the basket makes the item's attributes (1: as usual)
    - `counterfactual`: for the first offer: (an item of the basket, what would be first without it), if that
      changes it
    - `basket_ranks`: for each of `basket`, the rank without it
    """

    item: int
    name: str
    rank: int | None
    score: float
    base: float
    evidence: dict[str, float]
    basket: list[tuple[int, str, float]]
    rules: list[dict[str, Any]]
    household_count: int
    household_baskets: int
    item_count: int
    n_baskets: int
    attribute_lift: dict[str, float]
    counterfactual: tuple[str, str] | None
    sentence: str = ""
    basket_ranks: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings and lists, ready for JSON."""
        return asdict(self)


@dataclass
class _Breakdown:
    """A score in parts.

    - `scores` (1 + n_left_out, n_items): of the whole basket, then without each of the items `left_out`
    - `left_out` (n_left_out,): columns; `contributions` (n_left_out,): what each adds to the score
    - `evidence`: what each group of features adds, where the model has them
    - `is_candidate`: whether the model would consider the item at all
    """

    scores: np.ndarray
    left_out: np.ndarray
    contributions: np.ndarray
    base: float
    evidence: dict[str, float]
    is_candidate: bool


def explain(model: Recommender, basket: Baskets, item: int, context: ExplanationContext) -> Explanation:
    """Why `model` offers `item` (a column) to one open basket.

    For a `HybridRanker`: TreeSHAP by group of features, and the basket's items by occlusion (of more than 8, the
    8 to which its member `ease` gives most weight, without it the first 8); for others the basket's items by
    `basket_contributions`.
    Raises ValueError for more or fewer baskets than one, an unknown item, one that is in the basket, and one that
    the model does not score.
    """
    item = _checked(basket, int(item), context)
    parts = _breakdown(model, basket, item)
    parts.scores[:, basket.matrix.indices] = -np.inf  # what is in the basket is not offered
    names = context.item_names
    own, order = parts.scores[:, [item]], np.argsort(-parts.contributions, kind="stable")
    ranks = np.where(np.isneginf(own[:, 0]), len(names), 1 + (parts.scores > own).sum(axis=1))
    rank = int(ranks[0]) if parts.is_candidate else None
    household = int(basket.households[0])
    known = 0 <= household < context.purchases.shape[0]
    added = zip(parts.left_out[order], parts.contributions[order], strict=True)
    found = Explanation(
        item=item,
        name=names[item],
        rank=rank,
        score=float(parts.scores[0, item]),
        base=parts.base,
        evidence=parts.evidence,
        basket=[(int(c), names[c], float(v)) for c, v in added],
        basket_ranks=ranks[1:][order].tolist(),
        rules=_fired_rules(model, basket, item, names),
        household_count=int(context.purchases[household, item]) if known else 0,
        household_baskets=int(context.household_baskets[household]) if known else 0,
        item_count=int(context.item_counts[item]),
        n_baskets=int(context.household_baskets.sum()),
        attribute_lift=context.attribute_lift(basket.matrix, item) if context.attribute_lift else {},
        counterfactual=_counterfactual(parts, item, names) if rank == 1 else None,
    )
    template, facts = sentence_template(found, context.minimum_effect, context.shown)
    found.sentence = template.format(*facts)
    return found


def _checked(basket: Baskets, item: int, context: ExplanationContext) -> int:
    n_items = basket.matrix.shape[1]
    if len(basket) != 1:
        raise ValueError(f"{len(basket)} baskets came; explain one at a time.")
    if not 0 <= item < n_items:
        raise ValueError(f"Item {item} is unknown; columns run from 0 to {n_items - 1}.")
    if item in basket.matrix.indices:
        raise ValueError(f"{context.item_names[item]!r} lies in the basket already, so it is not offered.")
    return item


def _counterfactual(parts: _Breakdown, item: int, names: Sequence[str]) -> tuple[str, str] | None:
    """The item without which another is first by the widest margin, and that other; None where none changes it."""
    without = parts.scores[1:]
    if not len(without):
        return None
    offers = without.argmax(axis=1)
    margin = without[np.arange(len(offers)), offers] - without[:, item]
    margin = np.where((offers == item) | np.isnan(margin), -np.inf, margin)
    best = int(margin.argmax())
    return None if margin[best] == -np.inf else (names[parts.left_out[best]], names[offers[best]])


def _breakdown(model: Recommender, basket: Baskets, item: int) -> _Breakdown:
    chosen, exact = _left_out(model, basket, item), model.contributions(basket, item)
    found = model.score_with_item(perturb_basket(basket, leave_one_out_masks(basket.matrix.nnz, chosen)), item)
    own = found.scores[:, item].astype(float)
    if np.isneginf(own[0]):
        raise ValueError(f"{type(model).__name__} gives item {item} no score for this basket.")
    if exact is None:
        own[np.isneginf(own)] = 0  # as in `basket_value_function`: no score, not offered
    base, added = (0.0, own[0] - own[1:]) if exact is None else (float(own[0] - exact.sum()), exact)
    evidence = {}
    if found.features is not None:
        values, bases = tree_shap(model, found.features)
        sums = values.iloc[0].groupby([feature_group(c) for c in values]).sum().sort_values(ascending=False)
        base, evidence = float(bases[0]), {str(n): float(v) for n, v in sums.items()}
    return _Breakdown(found.scores, basket.matrix.indices[chosen], added, base, evidence, found.is_candidate)


def _left_out(model: Recommender, basket: Baskets, item: int) -> np.ndarray:
    """Which items of the basket are left out one by one, as places in it: all, but for a model of many members."""
    every = np.arange(basket.matrix.nnz)
    if not model.members or len(every) <= MOST_ITEMS:
        return every
    ease = model.members.get("ease")
    weight = np.ones(len(every)) if ease is None else basket_contributions(ease, basket, item)
    return np.sort(np.argsort(-np.abs(weight), kind="stable")[:MOST_ITEMS])


def _fired_rules(model: Recommender, basket: Baskets, item: int, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = model.fired_rules(basket.matrix.indices, item)
    if rows is None:
        return []
    keep = ["support", "confidence", "lift"]
    return [
        {"if": [names[i] for i in sorted(left)], **{k: float(v) for k, v in zip(keep, row, strict=True)}}
        for left, row in zip(rows["antecedents"], rows[keep].to_numpy(), strict=True)
    ]
