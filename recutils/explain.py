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
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

import httpx
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from recutils.data import Baskets
from recutils.recommend import (
    EASE,
    EmbeddingRecommender,
    HybridRanker,
    ItemKNN,
    Recommender,
    RuleRecommender,
)
from recutils.settings import SEED, release_memory, stage
from recutils.text import (
    Encoder,
    best_device,
    draw_baskets,
    embed,
    encode,
    leave_one_out_loss,
    load_encoder,
    pool,
    rest_of_basket,
    train_steps,
    trainable,
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


def occlusion(worth: Worth, n: int) -> np.ndarray:
    """What each part adds to all the others: v(all) - v(all but it), (n,)."""
    worths = worth(np.concatenate([np.ones((1, n), bool), ~np.eye(n, dtype=bool)]))
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
    columns = basket.matrix.indices
    if isinstance(model, EASE):
        return model.weights[columns, item].astype(float)
    if isinstance(model, ItemKNN):
        return model.similarity[columns, item].toarray().ravel()
    if isinstance(model, EmbeddingRecommender) and not model.household:
        vectors = model.vectors[columns]
        return vectors @ model.vectors[item] / max(float(np.linalg.norm(vectors.sum(axis=0))), 1e-9)
    if isinstance(model, BilinearRecommender):
        return model.parts(basket, item)[: len(columns)].sum(axis=(1, 2))
    return occlusion(basket_worth(model, basket, item), len(columns)) if len(columns) else np.zeros(0)


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


# ---------------------------------------------------------------------------------------------- a bilinear model


class BilinearRecommender(Recommender):
    """score_ui = h_u^T (W + U_c V_c^T) h_i + b_i, exact by basket item and by pair of fields. Chapter 06.

    h_i (n_fields blocks): what is known of item i, a block of numbers a field; h_u: the mean of the basket's h_j and
    the mean of what the household bought before, side by side. W is shared; each group c of items (its department)
    adds a product of rank `rank`, because one dense matrix an item would take gigabytes. b_i starts as the log of
    the item's sales. Learned from baskets with one item hidden, softmax over all items that do not lie open.

    `blocks`: a list of (n_items, width) arrays, one a field; `groups` (n_items,) labels.
    """

    def __init__(
        self, blocks: Sequence[np.ndarray], groups: np.ndarray, rank: int = 4, steps: int = 200, seed: int = SEED
    ) -> None:
        self.ends = np.cumsum([0, *(b.shape[1] for b in blocks)])
        self.features = np.hstack(blocks).astype(np.float32)  # (n_items, width)
        self.groups, self.rank, self.steps, self.seed = pd.factorize(groups)[0], rank, steps, seed

    def _fit(self, train: Baskets) -> None:
        self.past = self._purchases(train)  # (n_households, n_items), csr
        matrix, owner = train.matrix, train.households.astype(np.int64)
        how = (self.rank, self.steps, self.seed)
        learned = _bilinear_weights(matrix, owner, self.past, self.features, self.groups, *how)
        self.shared, self.left, self.right, self.bias = learned
        answers = self.features @ self.shared.T  # (n_items, 2 width)
        for group in np.unique(self.groups):
            of = np.flatnonzero(self.groups == group)
            answers[of] += self.features[of] @ self.right[group] @ self.left[group].T
        self.answers = answers
        size = np.maximum(np.asarray(self.past.sum(axis=1)), 1)
        self.taste = self.past @ self.features / size  # (n_households, width)

    def _ask(self, queries: Baskets) -> np.ndarray:
        size = np.maximum(np.diff(queries.matrix.indptr), 1)[:, None]
        taste = np.zeros((len(queries), self.features.shape[1]))
        known = self._known(queries)
        taste[known] = self.taste[queries.households[known]]
        return np.hstack([queries.matrix @ self.features / size, taste])  # (n_queries, 2 width)

    def _score(self, queries: Baskets) -> np.ndarray:
        return self._ask(queries) @ self.answers.T + self.bias

    def parts(self, basket: Baskets, item: int) -> np.ndarray:
        """The score but b_i, split exactly: (n_items_of_the_basket + 1, n_fields, n_fields); the last: the past.

        Axis 1: the field of the basket's item (or of what was bought before), axis 2: the field of the offered item.
        """
        width = self.features.shape[1]
        columns = basket.matrix.indices
        asked = self._ask(basket)[0, width:]
        rows = np.vstack([self.features[columns] / max(len(columns), 1), asked])  # (n + 1, width)
        full = self.matrix_of(item)  # (2 width, width)
        result = np.empty((len(rows), len(self.ends) - 1, len(self.ends) - 1))
        for f, g in itertools.product(range(len(self.ends) - 1), repeat=2):
            left, right = slice(*self.ends[f : f + 2]), slice(*self.ends[g : g + 2])
            part = full[:, right] @ self.features[item, right]  # (2 width,)
            result[:-1, f, g] = rows[:-1, left] @ part[:width][left]
            result[-1, f, g] = rows[-1, left] @ part[width:][left]
        return result

    def matrix_of(self, item: int) -> np.ndarray:
        """W + U_c V_c^T of the item's group: (2 width, width)."""
        group = self.groups[item]
        return self.shared + self.left[group] @ self.right[group].T


@stage
def _bilinear_weights(
    matrix: sparse.csr_matrix,
    owner: np.ndarray,
    past: sparse.csr_matrix,
    features: np.ndarray,
    groups: np.ndarray,
    rank: int,
    steps: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W (2 width, width), U (n_groups, 2 width, rank), V (n_groups, width, rank), b (n_items,)."""
    torch.manual_seed(seed)
    rng, device = np.random.default_rng(seed), best_device()
    width, n_groups = features.shape[1], int(groups.max()) + 1
    h = torch.as_tensor(features, device=device)
    of = [torch.as_tensor(np.flatnonzero(groups == g), device=device) for g in range(n_groups)]
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    shared = nn.Parameter(0.01 * torch.randn(2 * width, width, device=device))
    left = nn.Parameter(torch.zeros(n_groups, 2 * width, rank, device=device))
    right = nn.Parameter(0.1 * torch.randn(n_groups, width, rank, device=device))
    bias = nn.Parameter(torch.as_tensor(np.log(sold + 1), dtype=torch.float32, device=device))
    rows_of = np.flatnonzero((np.diff(matrix.indptr) >= 2) & (owner >= 0))
    bought = np.asarray(past.sum(axis=1)).ravel()
    taste = past @ features  # (n_households, width), sums

    def loss(step: int) -> torch.Tensor:
        rows = rng.choice(rows_of, 512)
        batch = matrix[rows].copy()
        size = np.diff(batch.indptr)
        whole = np.asarray(batch @ features)
        # The past without the basket itself, which would give the answer away.
        before = (taste[owner[rows]] - whole) / np.maximum(bought[owner[rows]] - size, 1)[:, None]
        place = batch.indptr[:-1] + np.floor(rng.random(len(rows)) * size).astype(int)
        hidden = batch.indices[place]
        rest = (whole - features[hidden]) / (size - 1)[:, None]
        asked = torch.as_tensor(np.hstack([rest, before]), dtype=torch.float32, device=device)
        scores = asked @ shared @ h.T + bias  # (512, n_items)
        own = torch.zeros_like(scores)
        for group, columns in enumerate(of):
            own[:, columns] = asked @ left[group] @ (h[columns] @ right[group]).T
        batch.data[place] = 0
        batch.eliminate_zeros()
        row, column = (torch.as_tensor(part, device=device).long() for part in batch.nonzero())
        scores = (scores + own).index_put((row, column), torch.tensor(-1e4, device=device))
        return functional.cross_entropy(scores, torch.as_tensor(hidden, device=device).long())

    groups_of = [{"params": [shared, left, right], "lr": 0.02, "weight_decay": 0.0}, {"params": [bias], "lr": 0.01}]
    train_steps(groups_of, loss, steps)
    return tuple(p.detach().cpu().numpy() for p in (shared, left, right, bias))  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------- fields of a text


def field_texts(fields: Sequence[str], there: np.ndarray) -> list[str]:
    """The item's text with only some of its fields: `there` (n_sets, n_fields) bool; an empty field is never there."""
    return [", ".join(f for f, t in zip(fields, row, strict=True) if t and f) for row in there]


def field_worths(read: Callable[[list[str]], np.ndarray], asked: np.ndarray, fields: Sequence[Sequence[str]]) -> Any:
    """Cosine of each question with its item's text for every subset of the fields: (n_examples, 2^n_fields).

    `read` gives unit vectors of texts (zeros for an empty one), `asked` (n_examples, width) unit vectors,
    `fields` the field texts of each example's item. Every different text is read once.
    """
    masks = all_subsets(len(fields[0]))
    texts = [field_texts(row, masks) for row in fields]
    different = sorted({t for row in texts for t in row})
    place = {t: i for i, t in enumerate(different)}
    vectors = read(different)
    at = np.array([[place[t] for t in row] for row in texts])  # (n_examples, 2^n_fields)
    return np.einsum("new,nw->ne", vectors[at], asked)


def field_tokens(encoder: Encoder, fields: Sequence[Sequence[str]]) -> tuple[Any, np.ndarray]:
    """Tokens of the items' whole texts, padded, and whose they are: (n_items, n_tokens), -1 for no field."""
    texts = [", ".join(f for f in row if f) for row in fields]
    inputs = encoder.tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
    spans = inputs.pop("offset_mapping").numpy()  # (n_items, n_tokens, 2), characters
    owner = np.full(spans.shape[:2], -1)
    for row, parts in enumerate(fields):
        start = 0
        for number, part in enumerate(parts):
            if part:
                inside = (spans[row, :, 0] >= start) & (spans[row, :, 1] <= start + len(part))
                owner[row, inside & (spans[row, :, 1] > spans[row, :, 0])] = number
                start += len(part) + 2
    return inputs.to(encoder.device), owner


def by_field(values: np.ndarray, owner: np.ndarray, n_fields: int) -> np.ndarray:
    """Sums over the tokens of each field: (n_items, n_tokens) -> (n_items, n_fields)."""
    return np.stack([np.where(owner == f, values, 0).sum(axis=1) for f in range(n_fields)], axis=1)


def integrated_gradients(
    encoder: Encoder, asked: np.ndarray, fields: Sequence[Sequence[str]], steps: int = 16
) -> np.ndarray:
    """Integrated gradients of the cosine, from a text of [PAD] tokens to the item's: (n_examples, n_fields).

    By captum, over the word-piece vectors, summed over width and over each field's tokens. Special tokens, commas
    and positions stay as they are. Source: Sundararajan et al. (2017).
    """
    from captum.attr import LayerIntegratedGradients

    def cosine(ids: torch.Tensor, mask: torch.Tensor, question: torch.Tensor) -> torch.Tensor:
        hidden = encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return functional.cosine_similarity(pool(hidden, mask), question)

    method = LayerIntegratedGradients(cosine, encoder.model.embeddings.word_embeddings)
    found = []
    for start in range(0, len(fields), 16):  # memory grows with examples times steps
        part = fields[start : start + 16]
        inputs, owner = field_tokens(encoder, part)
        there = torch.as_tensor(owner >= 0, device=encoder.device)
        blank = torch.where(there, encoder.tokenizer.pad_token_id, inputs["input_ids"])
        question = torch.as_tensor(asked[start : start + 16], dtype=torch.float32, device=encoder.device)
        more = (inputs["attention_mask"], question)
        with torch.enable_grad():
            slopes = method.attribute(
                inputs["input_ids"], blank, additional_forward_args=more, n_steps=steps, internal_batch_size=32
            )
        found.append(by_field(slopes.sum(dim=2).detach().cpu().numpy(), owner, len(part[0])))
    if len(fields) > 16:
        release_memory()
    return np.concatenate(found)


@torch.inference_mode()
def attention_received(encoder: Encoder, fields: Sequence[Sequence[str]], layer: int = -1) -> np.ndarray:
    """The attention that each field's tokens receive in a layer, averaged over heads and asking tokens.

    (n_items, n_fields). What many call an explanation; it knows neither the question nor a sign. Needs attention
    written out ("eager"), as `load_encoder` does on a CPU.
    """
    before = encoder.model.config._attn_implementation
    encoder.model.set_attn_implementation("eager")
    found = []
    for start in range(0, len(fields), 64):
        part = fields[start : start + 64]
        inputs, owner = field_tokens(encoder, part)
        weights = encoder.model(**inputs, output_attentions=True).attentions[layer]  # (n, heads, asking, asked)
        mask = inputs["attention_mask"].float()
        received = (weights.mean(dim=1) * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        found.append(by_field(received.float().cpu().numpy(), owner, len(part[0])))
    encoder.model.set_attn_implementation(before)
    return np.concatenate(found)


def randomised(encoder: Encoder, layers: int, words: bool = False, seed: int = SEED) -> Encoder:
    """A copy with fresh random numbers in its upper `layers` layers and, with `words`, in its word vectors.

    Source: Adebayo et al. (2018).
    """
    other = load_encoder(encoder.name)
    other.model.load_state_dict(encoder.model.state_dict())
    torch.manual_seed(seed)
    for layer in list(other.model.encoder.layer)[::-1][:layers]:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=encoder.model.config.initializer_range)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                part.reset_parameters()
    if words:
        nn.init.normal_(other.model.embeddings.word_embeddings.weight, std=encoder.model.config.initializer_range)
    return other


# ---------------------------------------------------------------------------------------------- purchase and reason


@dataclass
class AttributeMatcher:
    """Which attributes a basket calls for: one encoder taught purchase and reason together.

    `vectors` (n_items, width) unit vectors; for each attribute: `heads` (weights (n_values, width), bias), the
    items' values as numbers `codes` (n_items,), and `usual` (n_values,), their shares of all purchases.
    """

    vectors: np.ndarray
    heads: dict[str, tuple[np.ndarray, np.ndarray]]
    codes: dict[str, np.ndarray]
    usual: dict[str, np.ndarray]

    def chances(self, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
        """For each attribute the chances of its values, given the open baskets (n_queries, n_items): (n_queries, n)."""
        asked = matrix @ self.vectors
        asked = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
        result = {}
        for name, (weights, bias) in self.heads.items():
            logits = asked @ weights.T + bias
            logits = np.exp(logits - logits.max(axis=1, keepdims=True))
            result[name] = logits / logits.sum(axis=1, keepdims=True)
        return result

    def matches(self, matrix: sparse.csr_matrix, item: int) -> dict[str, float]:
        """How much likelier than usual the basket (one row) makes each of the item's attributes: 1 is as usual.

        An attribute whose value was never sold is left out.
        """
        chances, code = self.chances(matrix), {name: c[item] for name, c in self.codes.items()}
        known = [name for name in chances if self.usual[name][code[name]] > 0]
        return {n: float(chances[n][0, code[n]] / self.usual[n][code[n]]) for n in known}


def attribute_matcher(
    texts: list[str],
    matrix: sparse.csr_matrix,
    attributes: pd.DataFrame,
    weight: float = 0.3,
    steps: int = 150,
    seed: int = SEED,
) -> AttributeMatcher:
    """An encoder taught two tasks at once: loss = purchase + weight * reason, kept on disk.

    Purchase: `leave_one_out_loss`, as in chapter 02. Reason: from the rest of a basket name each attribute of the
    item that was left out (softmax over its values, mean over the columns of `attributes` (n_items rows)).
    """
    codes = {name: pd.factorize(attributes[name].fillna(""), sort=True)[0] for name in attributes}
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    usual = {name: np.bincount(c, sold) / sold.sum() for name, c in codes.items()}
    vectors, heads = _two_tasks(texts, matrix, codes, weight, steps, seed)
    return AttributeMatcher(vectors, heads, codes, usual)


@partial(stage, apart=True)
def _two_tasks(
    texts: list[str], matrix: sparse.csr_matrix, codes: dict[str, np.ndarray], weight: float, steps: int, seed: int
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    encoder = load_encoder()
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    device = encoder.device
    encoder.model.eval().embeddings.requires_grad_(False)
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    log_share = torch.as_tensor(np.log(np.maximum(sold / sold.sum(), 1e-9)), dtype=torch.float32, device=device)
    width = encoder.model.config.hidden_size
    heads = {name: nn.Linear(width, int(c.max()) + 1).to(device) for name, c in codes.items()}
    for name, head in heads.items():
        nn.init.zeros_(head.weight)
        usual = np.bincount(codes[name], sold) / sold.sum()
        head.bias.data = torch.as_tensor(np.log(np.maximum(usual, 1e-9)), dtype=torch.float32, device=device)

    def loss(step: int) -> torch.Tensor:
        columns, baskets = draw_baskets(matrix, 128, rng)
        vectors = embed(encoder, [texts[c] for c in columns])
        purchase = leave_one_out_loss(vectors, baskets, log_share=log_share[columns])
        row, _, query = rest_of_basket(vectors, baskets)
        wanted = columns[row.cpu().numpy()]
        reason = sum(
            functional.cross_entropy(head(query), torch.as_tensor(codes[name][wanted], device=device))
            for name, head in heads.items()
        )
        return purchase + weight * reason / len(heads)

    groups = [
        trainable(encoder.model, 2e-4),
        {"params": [p for h in heads.values() for p in h.parameters()], "lr": 2e-2, "weight_decay": 0.0},
    ]
    train_steps(groups, loss, steps)
    learned = {name: (h.weight.detach().cpu().numpy(), h.bias.detach().cpu().numpy()) for name, h in heads.items()}
    return encode(encoder, texts), learned


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
    """What explanations name: a name an item, what households bought before, and the attribute matcher, if any.

    `past` (n_households, n_items): how many training baskets of a household held an item; `visits` (n_households,).
    """

    names: Sequence[str]
    past: sparse.csr_matrix
    visits: np.ndarray
    matcher: AttributeMatcher | None = None

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
    - `matches`: how much likelier than usual the basket makes the item's attributes (`AttributeMatcher`)
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
    sentence: str = field(default="")

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
    there = np.ones((len(chosen) + 1, basket.matrix.nnz), bool)
    there[np.arange(1, len(there)), chosen] = False
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
    n = basket.matrix.nnz
    scores = model.score(without_items(basket, np.vstack([np.ones((1, n), bool), ~np.eye(n, dtype=bool)]))).copy()
    if np.isneginf(scores[0, item]):
        raise ValueError(f"{type(model).__name__} has nothing to say about item {item} here.")
    added = basket_contributions(model, basket, item)
    exact = isinstance(model, (EASE, ItemKNN, EmbeddingRecommender, BilinearRecommender))
    base = float(scores[0, item] - added.sum()) if exact else 0.0
    return scores, basket.matrix.indices, added, base, {}, True


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
