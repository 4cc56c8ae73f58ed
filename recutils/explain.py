"""Why this item? Explanations of recommendations, and measures of whether they are true (chapter 06).

An explanation gives each part (an item of the basket, a field of the text, a source of evidence) a number: how much
of the score is owed to it. Most here are exact; which are not, their docstrings say.
"""

import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import httpx
import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data import Baskets
from recutils.recommend import (
    EASE,
    EmbeddingRecommender,
    HybridRanker,
    ItemKNN,
    Recommender,
    RuleRecommender,
)

Worth = Callable[[np.ndarray], np.ndarray]  # which parts are there, (n_sets, n) bool -> scores (n_sets,)

# ---------------------------------------------------------------------------------------------- parts of a score


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


# ---------------------------------------------------------------------------------------------- baskets


def without_items(basket: Baskets, there: np.ndarray) -> Baskets:
    """Copies of one open basket in which only some of its items are left: `there` (n_copies, n_items_of_it) bool."""
    columns = basket.matrix.indices
    row, part = np.nonzero(there)
    shape = (len(there), basket.matrix.shape[1])
    matrix = sparse.csr_matrix((np.ones(len(row), np.float32), (row, columns[part])), shape)
    return Baskets(matrix, np.repeat(basket.households, len(there)), np.repeat(basket.timestamps, len(there)))


def basket_worth(model: Recommender, basket: Baskets, item: int) -> Worth:
    """The score of `item` for subsets of the basket's items, what `shapley_values` and `occlusion` ask for.

    A `HybridRanker` judges the item as if it had been proposed, so that its score does not jump where it was not.
    """

    def worth(there: np.ndarray) -> np.ndarray:
        queries = without_items(basket, there)
        if isinstance(model, HybridRanker):
            told = model.look(queries, np.full(len(queries), item))
            return np.asarray(model.booster.predict(told.to_numpy()))
        score = model.score(queries)[:, item].astype(float)
        return np.where(np.isneginf(score), 0.0, score)  # nothing to say: nothing offered

    return worth


def basket_contributions(model: Recommender, basket: Baskets, item: int) -> np.ndarray:
    """What each item of the open basket adds to the score of `item`: (n_items_of_it,), in the order of its columns.

    Exact for models that add up one number an item of the basket: EASE and item kNN (w_ji), `EmbeddingRecommender`
    (v_j . v_i / |sum of the v_j|), `BilinearRecommender`; what the score holds besides (a prior, a bias, the past) is
    not among the parts. For all others: `occlusion`.
    """
    exact = _exact_parts(model, basket, item)
    return occlusion(basket_worth(model, basket, item), basket.matrix.nnz) if exact is None else exact


def _exact_parts(model: Recommender, basket: Baskets, item: int) -> np.ndarray | None:
    columns = basket.matrix.indices
    if isinstance(model, EASE):
        return model.weights[columns, item].astype(float)
    if isinstance(model, ItemKNN):
        return model.similarity[columns, item].toarray().ravel()
    if isinstance(model, EmbeddingRecommender) and not model.household:
        vectors = model.vectors[columns]
        return vectors @ model.vectors[item] / max(float(np.linalg.norm(vectors.sum(axis=0))), 1e-9)
    if hasattr(model, "parts"):  # `neural.BilinearRecommender`
        return model.parts(basket, item)[: len(columns)].sum(axis=(1, 2))
    return None


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


# ---------------------------------------------------------------------------------------------- one recommendation

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


def tree_shap(model: HybridRanker, told: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """TreeSHAP of candidates (`HybridRanker.look`): values like `told` and the base; their sum is the score.

    Exact for the trees, with what the trees saw in training as background. Source: Lundberg et al. (2020), as
    built into LightGBM.
    """
    values = np.asarray(model.booster.predict(told.to_numpy(), pred_contrib=True))
    return pd.DataFrame(values[:, :-1], columns=told.columns), values[:, -1]


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
    left_sides = ruler.rules["antecedents"].to_numpy()
    rows = ruler.rules.iloc[[r for r in which[::-1] if left_sides[r] <= held]]
    keep = ["support", "confidence", "lift"]
    return [
        {"if": [shop.names[i] for i in sorted(left)], **{k: float(v) for k, v in zip(keep, row, strict=True)}}
        for left, row in zip(rows["antecedents"], rows[keep].to_numpy(), strict=True)
    ]


# ---------------------------------------------------------------------------------------------- words


def in_words(found: Explanation) -> tuple[str, list[str]]:
    """A template with places {0}, {1}, ... and the measured facts that belong there.

    Of habits, rules and the open basket the two strongest speak, if they speak for the item; where none does, how
    many baskets held it.
    """
    facts: list[str] = [found.name]

    def put(*values: str) -> list[str]:
        facts.extend(values)
        return [f"{{{n}}}" for n in range(len(facts) - len(values), len(facts))]

    said = []
    sources = list(found.evidence) or ["the open basket", "rules"]
    for source in [s for s in sources if not found.evidence or found.evidence[s] > 0]:
        if source == "habits" and found.bought:
            number, of = put(str(found.bought), str(found.visits))
            said.append(f"you had it in {number} of your {of} baskets so far")
        elif source == "rules" and found.rules and found.rules[0]["lift"] > 1:
            rule = found.rules[0]
            left, share, lift = put(" and ".join(rule["if"]), f"{rule['confidence']:.0%}", f"{rule['lift']:.1f}")
            said.append(f"of the baskets with {left}, {share} hold it, {lift} times as many as usual")
        elif source == "the open basket" and found.basket and found.basket[0][2] > 0:
            (name,) = put(found.basket[0][1])
            said.append(f"{name} in your basket speaks for it")
        if len(said) == 2:
            break
    if not said:
        number, of = put(str(found.sold), str(found.baskets))
        said.append(f"{number} of {of} baskets held it")
    return f"We offer {{0}}: {'; '.join(said)}.", facts


class RewriteRefused(ValueError):
    """A rewritten sentence that may not be shown; says why."""


# Words that a rewrite may add or leave out: they bind, and claim nothing.
BINDING = """a also an and as because for here in is it its may maybe our perhaps please since so that the then there
this to too we well which with you your"""
CONNECTIVES = frozenset(BINDING.split())


def check_rewrite(text: str, template: str, facts: Sequence[str]) -> str:
    """A rewritten template, filled with the facts. Raises RewriteRefused for anything that adds, drops or moves one.

    Each place {0}, {1}, ... must come once and in order, and between two places the same words must stand as in the
    template, in the same order, but for `CONNECTIVES` and punctuation: no number, product, attribute or claim can
    slip in, and none can change its role, since no other word can.
    """
    if len(text) > 2 * len(template):
        raise RewriteRefused("it is more than twice as long")
    parts, wanted = (re.split(r"(\{\d+\})", t) for t in (text, template))
    if parts[1::2] != wanted[1::2]:
        raise RewriteRefused(f"its facts stand as {' '.join(parts[1::2]) or 'none'}, not as in the template")
    strange = re.search(r"[^A-Za-z\s.,;:'’!?()-]", " ".join(parts[::2]))
    if strange:
        raise RewriteRefused(f"it holds {strange[0]!r}, which is not in the evidence")
    for part, want in zip(parts[::2], wanted[::2], strict=True):
        said, due = ([w for w in re.findall(r"[a-z]+", t.lower()) if w not in CONNECTIVES] for t in (part, want))
        if said != due:
            new = [w for w in said if w not in due]
            raise RewriteRefused(f"it says {new[0]!r} there" if new else f"it does not say {' '.join(due)!r} there")
    return "".join(facts[int(p[1:-1])] if n % 2 else p for n, p in enumerate(parts)).strip()


def rewrite(found: Explanation, timeout: float = 10.0) -> tuple[str, str | None]:
    """The sentence in other words by an OpenAI-compatible endpoint, and None; or as it was, and why.

    Address, key and model come from `RECUTILS_LLM_URL` (up to and with /v1), `RECUTILS_LLM_KEY`, `RECUTILS_LLM_MODEL`.
    The endpoint sees the template only: no fact, no product, no household leaves the shop. Never raises for what the
    endpoint does; a key is not sent over plain http, except to this machine itself.
    """
    url = os.environ.get("RECUTILS_LLM_URL", "")
    if not url:
        return found.sentence, "no endpoint is set (RECUTILS_LLM_URL)"
    template, facts = in_words(found)
    ask = "Say it in plain, friendly words. Keep {0}, {1}, ... once each, in order. Add no claim. Answer with text."
    body = {
        "model": os.environ.get("RECUTILS_LLM_MODEL", "default"),
        "messages": [{"role": "system", "content": ask}, {"role": "user", "content": template}],
        "temperature": 0.3,
        "max_tokens": 120,
    }
    try:
        address = httpx.URL(url)
        if address.scheme != "https" and address.host not in ("127.0.0.1", "localhost", "::1"):
            raise RewriteRefused("its address is not https")
        key = os.environ.get("RECUTILS_LLM_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        until, answer = time.monotonic() + timeout, b""
        address_of = f"{url.rstrip('/')}/chat/completions"
        with httpx.stream("POST", address_of, json=body, headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                answer += part
                if len(answer) > 65536 or time.monotonic() > until:
                    raise RewriteRefused("its answer is too long, or too long in coming")
        text = json.loads(answer)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise RewriteRefused("its answer holds no text")
        return check_rewrite(text, template, facts), None
    except RewriteRefused as error:
        return found.sentence, f"the rewrite was refused: {error}"
    except httpx.HTTPStatusError as error:
        return found.sentence, f"the endpoint answered {error.response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return found.sentence, f"the endpoint did not answer ({type(error).__name__})"
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return found.sentence, "the endpoint's answer was not in the expected form"
