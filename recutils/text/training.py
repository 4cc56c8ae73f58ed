"""Fine-tuning an encoder on the baskets of a shop (chapter 02)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from recutils.settings import TRAINING_SEED, cached, release_memory, scale_steps, seed_everything, set_deterministic
from recutils.text.encoder import DEFAULT_MODEL, LIBRARIES, Encoder, embed, encode, load_encoder


def train_steps(
    groups: list[dict],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    warmup_ratio: float = 0.1,
    accumulation_steps: int = 1,
    callback: Callable[[int], bool] | None = None,
    max_grad_norm: float = 1.0,
) -> list[float]:
    """AdamW with a learning rate that rises over the first `warmup_ratio` of the steps, then falls linearly to 0.

    `groups` are AdamW's parameter groups, each with its `lr`; `loss(step)` draws a batch and returns its loss. The
    gradients of `accumulation_steps` losses are averaged into one update and clipped to the norm `max_grad_norm`.
    `callback(step)`, called after each update with the gradients still there, may return True to stop early.
    Returns the loss of each update.
    """
    set_deterministic()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    warmup_steps = max(1, round(warmup_ratio * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup_steps, (steps - step) / max(1, steps - warmup_steps))
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history = []
    for step in range(steps):
        history.append(0.0)
        for part in range(accumulation_steps):
            value = loss(step * accumulation_steps + part) / accumulation_steps
            value.backward()
            history[-1] += value.item()
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        schedule.step()
        stop = callback is not None and callback(step)
        optimizer.zero_grad()
        if stop:
            break
    optimizer.state.clear()
    release_memory()
    return history


def trainable(model: Any, lr: float) -> dict:
    """AdamW's parameter group of everything in `model` that is not frozen."""
    return {"params": [p for p in model.parameters() if p.requires_grad], "lr": lr}


def leave_one_out_loss(
    vectors: torch.Tensor,
    baskets: Sequence[np.ndarray],
    inverse_temperature: float = 10.0,
    log_share: torch.Tensor | None = None,
) -> torch.Tensor:
    """In-batch softmax: from the rest of its basket, each item is to be told from the batch's other items.

    For item i of basket b, with q the normalised sum of the other vectors of b and j over the batch's items
    that are not in b: loss = -log(exp(s_i) / (exp(s_i) + sum_j exp(s_j))), s_j = inverse_temperature * cos(q, v_j).
    A batch of baskets holds item j in proportion to its share p_j of all purchases; with `log_share` (n,) given,
    s_j - log p_j takes the place of s_j, which undoes that (chapter 02; Yi et al., 2019).

    `vectors` (n, width) of the batch's distinct items; `baskets`: arrays of two or more of their rows.
    """
    row, basket, query = rest_of_basket(vectors, baskets)
    scores = inverse_temperature * query @ vectors.T  # (n_pairs, n)
    if log_share is not None:
        scores = scores - log_share
    in_basket = torch.zeros(len(baskets), len(vectors), dtype=torch.bool, device=vectors.device)
    in_basket[basket, row] = True
    ignored = in_basket[basket]  # (n_pairs, n): what the same basket holds is no negative
    ignored[torch.arange(len(row), device=vectors.device), row] = False
    return functional.cross_entropy(scores.masked_fill(ignored, -torch.inf), row)


def rest_of_basket(
    vectors: torch.Tensor, baskets: Sequence[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For every item of every basket: its row of `vectors`, its basket, and the normalised sum of the other vectors."""
    row = torch.as_tensor(np.concatenate(baskets), device=vectors.device)  # (n_pairs,)
    owner = np.repeat(np.arange(len(baskets)), [len(b) for b in baskets])
    basket = torch.as_tensor(owner, device=vectors.device)  # (n_pairs,)
    own = vectors[row]  # (n_pairs, width)
    total = torch.zeros(len(baskets), vectors.shape[1], device=vectors.device).index_add(0, basket, own)
    return row, basket, functional.normalize(total[basket] - own, dim=1)


def sample_baskets(
    matrix: sparse.csr_matrix, n_items: int, rng: np.random.Generator, max_size: int = 12
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random baskets of two items or more until they hold `n_items` distinct items; the last one is cut to fit.

    Returns the distinct columns (n,) and the baskets as arrays of places in them; of a basket larger than
    `max_size`, that many items are drawn. Fewer items come back where the baskets hold hardly more than `n_items`.
    Raises ValueError where no basket holds two.
    """
    baskets: list[np.ndarray] = []
    seen: set[int] = set()
    for _ in range(20 * n_items):
        if len(seen) >= n_items:
            break
        row = int(rng.integers(matrix.shape[0]))
        items = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
        if len(items) > 1:
            basket = rng.permutation(items)[:max_size]
            new = np.cumsum([item not in seen for item in basket])  # how many of them are new, up to each
            basket = basket[new <= n_items - len(seen)]
            if len(basket) > 1:
                baskets.append(basket)
                seen.update(basket.tolist())
    if not baskets:
        raise ValueError("No basket with two items or more was drawn; text learns from what is bought together.")
    columns = np.array(sorted(seen))
    return columns, [np.searchsorted(columns, basket) for basket in baskets]


@dataclass(frozen=True)
class TrainingSettings:
    """How `fine_tune` trains: distinct items a batch, the loss of `leave_one_out_loss`, and the seed of its draws."""

    steps: int = 150
    batch_size: int = 128
    learning_rate: float = 2e-4
    inverse_temperature: float = 10.0
    correct_popularity: bool = True  # subtract log p_j, because popular items are negatives more often
    seed: int = TRAINING_SEED


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    matrix: sparse.csr_matrix,
    training: TrainingSettings,
    callback: Callable[[int], bool] | None = None,
    auxiliary_loss: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
    auxiliary_groups: Sequence[dict] = (),
) -> list[float]:
    """Train the encoder, in place, on what goes with what: `leave_one_out_loss` on random training baskets.

    `texts` has one text a column of `matrix` (n_baskets, n_items). The word-piece embeddings stay as they are (half
    of the parameters, nothing lost by it) and there is no dropout. `callback` as in `train_steps`. Returns the loss
    of each step.

    A second task adds `auxiliary_loss(queries, columns)`, from the rest of each basket (n_pairs, width) and the
    column of the item that it lacks (n_pairs,); `auxiliary_groups` are AdamW's groups of what only that task needs.
    """
    rng = np.random.default_rng(training.seed)
    seed_everything(training.seed)
    encoder.model.eval().embeddings.requires_grad_(False)
    log_share = _log_share(matrix, encoder.device) if training.correct_popularity else None

    def loss(step: int) -> torch.Tensor:
        columns, baskets = sample_baskets(matrix, training.batch_size, rng)
        vectors = embed(encoder, [texts[c] for c in columns])
        shares = None if log_share is None else log_share[columns]
        value = leave_one_out_loss(vectors, baskets, training.inverse_temperature, shares)
        if auxiliary_loss is not None:
            row, _, query = rest_of_basket(vectors, baskets)
            value = value + auxiliary_loss(query, columns[row.cpu().numpy()])
        return value

    groups = [trainable(encoder.model, training.learning_rate), *auxiliary_groups]
    return train_steps(groups, loss, training.steps, callback=callback)


def _log_share(matrix: sparse.csr_matrix, device: torch.device) -> torch.Tensor:
    """log p_j, the logarithm of each item's share of all purchases: (n_items,)."""
    share = np.asarray(matrix.sum(axis=0)).ravel() / matrix.sum()
    return torch.as_tensor(np.log(np.maximum(share, 1e-9)), dtype=torch.float32, device=device)


def shop_encoder(
    texts: list[str],
    matrix: sparse.csr_matrix,
    steps: int | None = None,
    seed: int = TRAINING_SEED,
    name: str = DEFAULT_MODEL,
) -> Encoder:
    """`load_encoder` and `fine_tune`, built once for these texts and baskets and kept on disk (chapters 02 to 07).

    `steps=0` gives the pretrained encoder; by default it is trained for `scale_steps(150)` steps.
    """
    steps = scale_steps(150) if steps is None else steps
    weights = _weights(texts, matrix, steps, seed, name) if steps else {}  # before another encoder takes memory
    encoder = load_encoder(name)
    if weights:
        encoder.model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return encoder


def shop_vectors(
    texts: list[str],
    matrix: sparse.csr_matrix,
    steps: int | None = None,
    seed: int = TRAINING_SEED,
    name: str = DEFAULT_MODEL,
) -> np.ndarray:
    """`encode(shop_encoder(...), texts)`, kept on disk: (n_items, width)."""
    return _vectors(texts, matrix, scale_steps(150) if steps is None else steps, seed, name)


@cached(libraries=LIBRARIES)
def _vectors(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> np.ndarray:
    return encode(shop_encoder(texts, matrix, steps, seed, name), texts)


@cached(libraries=LIBRARIES)
def _weights(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> dict[str, np.ndarray]:
    encoder = load_encoder(name)
    fine_tune(encoder, texts, matrix, TrainingSettings(steps=steps, seed=seed))
    return {name: value.cpu().numpy() for name, value in encoder.model.state_dict().items()}
