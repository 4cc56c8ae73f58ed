"""Explanations that look inside networks: a bilinear model, the fields of a text, a second task (chapter 06).

What they share with the other explanations (parts, Shapley values, walks) is in `recutils.explain`.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from recutils.data.schema import Baskets
from recutils.explain.attribution import all_subsets
from recutils.models.base import Recommender
from recutils.settings import TRAINING_SEED, cached, release_memory, scale_steps, seed_everything
from recutils.text.encoder import LIBRARIES, Encoder, best_device, encode, load_encoder, pool
from recutils.text.training import TrainingSettings, fine_tune, train_steps

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
        self,
        blocks: Sequence[np.ndarray],
        groups: np.ndarray,
        rank: int = 4,
        steps: int = 200,
        seed: int = TRAINING_SEED,
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


@cached(libraries=("torch",))
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
    seed_everything(seed)
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


def randomised(encoder: Encoder, layers: int, words: bool = False, seed: int = TRAINING_SEED) -> Encoder:
    """A copy with fresh random numbers in its upper `layers` layers and, with `words`, in its word vectors.

    Source: Adebayo et al. (2018).
    """
    other = load_encoder(encoder.name)
    other.model.load_state_dict(encoder.model.state_dict())
    seed_everything(seed)
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
    steps: int | None = None,
    seed: int = TRAINING_SEED,
) -> AttributeMatcher:
    """An encoder taught two tasks at once: loss = purchase + weight * reason, kept on disk.

    Purchase: `leave_one_out_loss`, as in chapter 02. Reason: from the rest of a basket name each attribute of the
    item that was left out (softmax over its values, mean over the columns of `attributes` (n_items rows)).
    """
    codes = {name: pd.factorize(attributes[name].fillna(""), sort=True)[0] for name in attributes}
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    usual = {name: np.bincount(c, sold) / sold.sum() for name, c in codes.items()}
    steps = scale_steps(150) if steps is None else steps
    vectors, heads = _two_tasks(texts, matrix, codes, usual, weight, steps, seed)
    return AttributeMatcher(vectors, heads, codes, usual)


@cached(libraries=LIBRARIES)
def _two_tasks(
    texts: list[str],
    matrix: sparse.csr_matrix,
    codes: dict[str, np.ndarray],
    usual: dict[str, np.ndarray],
    weight: float,
    steps: int,
    seed: int,
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    encoder = load_encoder()
    device, width = encoder.device, encoder.model.config.hidden_size
    heads = {name: nn.Linear(width, len(share)).to(device) for name, share in usual.items()}
    for name, head in heads.items():  # at first each names what is usual
        nn.init.zeros_(head.weight)
        head.bias.data = torch.as_tensor(np.log(np.maximum(usual[name], 1e-9)), dtype=torch.float32, device=device)

    def reason(query: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
        of = {name: torch.as_tensor(codes[name][wanted], device=device) for name in heads}
        losses = [functional.cross_entropy(head(query), of[name]) for name, head in heads.items()]
        return weight * torch.stack(losses).mean()

    numbers = [p for head in heads.values() for p in head.parameters()]
    groups = [{"params": numbers, "lr": 2e-2, "weight_decay": 0.0}]
    training = TrainingSettings(steps=steps, seed=seed)
    fine_tune(encoder, texts, matrix, training, auxiliary_loss=reason, auxiliary_groups=groups)
    learned = {name: (h.weight.detach().cpu().numpy(), h.bias.detach().cpu().numpy()) for name, h in heads.items()}
    return encode(encoder, texts), learned
