"""Why this item? One object an offer (chapter 06)."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.explain.attribution import (
    _exact_parts,
    all_but_one,
    basket_contributions,
    family,
    tree_shap,
    without_items,
)
from recutils.explain.text import in_words
from recutils.models.base import Recommender
from recutils.models.rules import RuleRecommender
from recutils.ranker.ranker import HybridRanker


@dataclass
class Counterfactual:
    """The smallest change found: the items taken out, and what would be offered first then."""

    removed: list[int]
    offer: int


def counterfactual(model: Recommender, basket: Baskets, most: int = 2) -> Counterfactual | None:
    """The fewest items, `most` at most, whose removal from the basket changes the first offer; None where none does.

    All sets of one size are tried before the next size; what was taken out is itself never the new offer. Among
    changes of one size, the one after which the old offer falls furthest behind the new one.
    """
    columns = basket.matrix.indices
    first = int(model.recommend(basket, 1)[0, 0])
    for size in range(1, min(most, len(columns)) + 1):
        sets = np.array(list(itertools.combinations(range(len(columns)), size)))
        there = np.ones((len(sets), len(columns)), bool)
        np.put_along_axis(there, sets, False, axis=1)
        parts = []
        for start in range(0, len(sets), 256):  # bounded memory, however many pairs there are
            scores = model.score(without_items(basket, there[start : start + 256])).copy()
            scores[:, columns] = -np.inf  # what was taken out is not offered back
            parts.append(_offers(scores, first))
        offers, gap = (np.concatenate(part) for part in zip(*parts, strict=True))
        place = int(np.argmax(gap))
        if gap[place] > -np.inf:
            return Counterfactual([int(columns[p]) for p in sets[place]], int(offers[place]))
    return None


def _offers(scores: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The first offer of each row, and how far the old one has fallen behind it (-inf where it is still the first)."""
    offers = scores.argmax(axis=1)
    gap = scores[np.arange(len(offers)), offers] - scores[:, first]
    return offers, np.where((offers == first) | np.isnan(gap), -np.inf, gap)


@dataclass
class Shop:
    """What explanations name: a name an item, what households bought before, and the `neural.AttributeMatcher`, if any.

    `past` (n_households, n_items): how many training baskets of a household held an item; `visits` (n_households,).
    """

    names: Sequence[str]
    past: sparse.csr_matrix
    visits: np.ndarray
    matcher: Any = None

    @cached_property
    def sold(self) -> np.ndarray:
        """How many past baskets held each item: (n_items,)."""
        return np.asarray(self.past.sum(axis=0)).ravel()


@dataclass
class Explanation:
    """Why one item is offered; every number in it was measured, and `sentence` says nothing else.

    - `place`: its place among the offers, from 1; None where a `HybridRanker` would not have proposed it
    - `score` = `base` + the sum of `evidence` for a `HybridRanker` (as if it had been proposed); for models that add
      up the basket's items, `base` + the sum of `basket`
    - `basket`: (item, name, what it adds to the score), the strongest first, see `basket_contributions`
    - `rules`: the rules that fired: left side (names), support, confidence, lift
    - `bought`, `visits`: how many of the household's past baskets held it, out of how many
    - `sold`, `baskets`: how many of all past baskets held it, out of how many
    - `matches`: how much likelier than usual the basket makes the item's attributes (`neural.AttributeMatcher`)
    - `instead`: for the first offer: (an item of the basket, what would be first without it), if that changes it
    """

    item: int
    name: str
    place: int | None
    score: float
    base: float
    evidence: dict[str, float]
    basket: list[tuple[int, str, float]]
    rules: list[dict[str, Any]]
    bought: int
    visits: int
    sold: int
    baskets: int
    matches: dict[str, float]
    instead: tuple[str, str] | None
    sentence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings and lists, ready for JSON."""
        return asdict(self)


def explain(model: Recommender, basket: Baskets, item: int, shop: Shop) -> Explanation:
    """Why `model` offers `item` (a column) to one open basket. Raises ValueError for what cannot be explained.

    For a `HybridRanker`: TreeSHAP by source of evidence, and the basket's items by occlusion (of more than 16, the
    16 to which its member `ease` gives most weight); for others the basket's items by `basket_contributions`.
    """
    item, n_items = int(item), basket.matrix.shape[1]
    if len(basket) != 1:
        raise ValueError(f"{len(basket)} baskets came; explain one at a time.")
    if not 0 <= item < n_items:
        raise ValueError(f"Item {item} is unknown; columns run from 0 to {n_items - 1}.")
    if item in basket.matrix.indices:
        raise ValueError(f"{shop.names[item]!r} lies in the basket already, so it is not offered.")
    look = _look_at_ranker if isinstance(model, HybridRanker) else _look_at_scores
    scores, columns, added, base, evidence, proposed = look(model, basket, item)
    scores[:, basket.matrix.indices] = -np.inf  # row 0: the whole basket; then without each of `columns`
    place = int((scores[0] > scores[0, item]).sum()) + 1 if proposed else None
    instead = None
    if place == 1 and len(columns):
        offers, gap = _offers(scores[1:], item)
        if gap.max() > -np.inf:
            instead = (shop.names[columns[gap.argmax()]], shop.names[offers[gap.argmax()]])
    household = int(basket.households[0])
    known = 0 <= household < shop.past.shape[0]
    parts = [(int(c), shop.names[c], float(v)) for c, v in zip(columns, added, strict=True)]
    found = Explanation(
        item=item,
        name=shop.names[item],
        place=place,
        score=float(scores[0, item]),
        base=base,
        evidence=evidence,
        basket=sorted(parts, key=lambda part: -part[2]),
        rules=_fired(model, basket, item, shop),
        bought=int(shop.past[household, item]) if known else 0,
        visits=int(shop.visits[household]) if known else 0,
        sold=int(shop.sold[item]),
        baskets=int(shop.visits.sum()),
        matches={} if shop.matcher is None else shop.matcher.matches(basket.matrix, item),
        instead=instead,
    )
    template, facts = in_words(found)
    found.sentence = template.format(*facts)
    return found


Looked = tuple[np.ndarray, np.ndarray, np.ndarray, float, dict[str, float], bool]


def _look_at_ranker(model: Any, basket: Baskets, item: int) -> Looked:
    """Scores of the basket and of the basket without each item, the items, their parts, base, evidence, proposed?"""
    chosen = np.arange(basket.matrix.nnz)
    if len(chosen) > 16:
        heavy = basket_contributions(model.members["ease"], basket, item) if "ease" in model.members else -chosen
        chosen = np.sort(np.argsort(-np.abs(heavy), kind="stable")[:16])
    there = all_but_one(basket.matrix.nnz, chosen)
    table = model.table(without_items(basket, there), also=item)
    scores = np.full((len(there), basket.matrix.shape[1]), -np.inf)
    scores[table.rows, table.columns] = model.booster.predict(table.told[model.names].to_numpy())
    own = np.flatnonzero((table.rows == 0) & (table.columns == item))
    values, bases = tree_shap(model, table.told.iloc[own][model.names])
    sums = values.iloc[0].groupby([family(c) for c in values]).sum().sort_values(ascending=False)
    evidence = {str(n): float(v) for n, v in sums.items()}
    added = scores[0, item] - scores[1:, item]
    return scores, basket.matrix.indices[chosen], added, float(bases[0]), evidence, bool(table.proposed[own].any())


def _look_at_scores(model: Recommender, basket: Baskets, item: int) -> Looked:
    scores = model.score(without_items(basket, all_but_one(basket.matrix.nnz))).copy()
    own = scores[:, item].astype(float)
    if np.isneginf(own[0]):
        raise ValueError(f"{type(model).__name__} has nothing to say about item {item} here.")
    exact = _exact_parts(model, basket, item)
    if exact is not None:
        return scores, basket.matrix.indices, exact, float(own[0] - exact.sum()), {}, True
    own[np.isneginf(own)] = 0  # as in `basket_worth`: nothing to say, nothing offered
    return scores, basket.matrix.indices, own[0] - own[1:], 0.0, {}, True


def _fired(model: Recommender, basket: Baskets, item: int, shop: Shop) -> list[dict[str, Any]]:
    ruler = model.members.get("rules") if isinstance(model, HybridRanker) else model
    if not isinstance(ruler, RuleRecommender) or ruler.groups is not None:
        return []
    which = np.flatnonzero(ruler.right == item)
    held = set(basket.matrix.indices.tolist())
    antecedent_matrix = ruler.rules["antecedents"].to_numpy()
    rows = ruler.rules.iloc[[r for r in which[::-1] if antecedent_matrix[r] <= held]]
    keep = ["support", "confidence", "lift"]
    return [
        {"if": [shop.names[i] for i in sorted(left)], **{k: float(v) for k, v in zip(keep, row, strict=True)}}
        for left, row in zip(rows["antecedents"], rows[keep].to_numpy(), strict=True)
    ]
