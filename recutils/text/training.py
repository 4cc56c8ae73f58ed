"""How the shop teaches an encoder what goes with what (chapter 02)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch.nn import functional

from recutils.settings import TRAINING_SEED, cached, release_memory, scale_steps, seed_everything, set_deterministic
from recutils.text.encoder import EMBEDDED, LIBRARIES, Encoder, embed, encode, load_encoder


def train_steps(
    groups: list[dict],
    loss: Callable[[int], torch.Tensor],
    steps: int,
    warmup: float = 0.1,
    accumulate: int = 1,
    after: Callable[[int], bool] | None = None,
    clip: float = 1.0,
) -> list[float]:
    """AdamW with a learning rate that climbs over the first `warmup` of the steps, then falls to 0 in a line.

    `groups` are AdamW's parameter groups, each with its `lr`; `loss(step)` draws a batch and returns its loss.
    `accumulate` losses are averaged into one update, whose gradient is cut to length `clip`. `after(step)`, called
    after each update, may return True to stop early. Returns the loss of each update.
    """
    set_deterministic()
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    climb = max(1, round(warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / climb, (steps - step) / max(1, steps - climb))
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history = []
    for step in range(steps):
        total = 0.0
        for part in range(accumulate):
            value = loss(step * accumulate + part) / accumulate
            value.backward()
            total += value.item()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        history.append(total)
        stop = after is not None and after(step)  # gradients are still there to be looked at
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
    scale: float = 10.0,
    log_share: torch.Tensor | None = None,
) -> torch.Tensor:
    """In-batch softmax: from the rest of its basket, each item is to be told from the batch's other items.

    For item i of basket b, with q the normalised sum of the other vectors of b and j over the batch's items
    that are not in b: loss = -log(exp(s_i) / (exp(s_i) + sum_j exp(s_j))), s_j = scale * cos(q, v_j).
    A batch of baskets holds item j in proportion to its share p_j of all purchases; with `log_share` (n,) given,
    s_j - log p_j takes the place of s_j, which undoes that (chapter 02; Yi et al., 2019).

    `vectors` (n, width) of the batch's distinct items; `baskets`: arrays of two or more of their rows.
    """
    row, basket, query = rest_of_basket(vectors, baskets)
    scores = scale * query @ vectors.T  # (n_pairs, n)
    if log_share is not None:
        scores = scores - log_share
    held = torch.zeros(len(baskets), len(vectors), dtype=torch.bool, device=vectors.device)
    held[basket, row] = True
    others = held[basket]  # (n_pairs, n): what the same basket holds is no negative
    others[torch.arange(len(row), device=vectors.device), row] = False
    return functional.cross_entropy(scores.masked_fill(others, -torch.inf), row)


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


def draw_baskets(
    matrix: sparse.csr_matrix, n_items: int, rng: np.random.Generator, largest: int = 12
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Random baskets of two items or more until they hold `n_items` distinct items; the last one is cut to fit.

    Returns the distinct columns (n,) and the baskets as arrays of places in them; of a basket larger than
    `largest`, that many items are drawn. Fewer items come back where the baskets hold hardly more than `n_items`.
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
            basket = rng.permutation(items)[:largest]
            new = np.cumsum([item not in seen for item in basket])  # how many of them are new, up to each
            basket = basket[new <= n_items - len(seen)]
            if len(basket) > 1:
                baskets.append(basket)
                seen.update(basket.tolist())
    if not baskets:
        raise ValueError("No basket with two items or more was drawn; text learns from what is bought together.")
    columns = np.array(sorted(seen))
    return columns, [np.searchsorted(columns, basket) for basket in baskets]


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    matrix: sparse.csr_matrix,
    steps: int,
    batch: int = 128,
    learning_rate: float = 2e-4,
    scale: float = 10.0,
    correct_popularity: bool = True,
    seed: int = TRAINING_SEED,
    after: Callable[[int], bool] | None = None,
    also: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None,
    groups: Sequence[dict] = (),
) -> list[float]:
    """Teach the encoder, in place, what goes with what: `leave_one_out_loss` on random training baskets.

    `texts` has one text a column of `matrix` (n_baskets, n_items). The word-piece table stays as it is (half of
    the numbers, nothing lost by it) and nothing is dropped out. Returns the loss of each step.

    A second task is added to the loss as `also(queries, wanted)`: the rest of each basket (n_pairs, width) and the
    column of the item that it lacks (n_pairs,); AdamW's parameter `groups` are what only that task needs.
    """
    rng = np.random.default_rng(seed)
    seed_everything(seed)
    encoder.model.eval().embeddings.requires_grad_(False)
    share = np.asarray(matrix.sum(axis=0)).ravel() / matrix.sum()
    log_share = torch.as_tensor(np.log(np.maximum(share, 1e-9)), dtype=torch.float32, device=encoder.device)

    def loss(step: int) -> torch.Tensor:
        columns, baskets = draw_baskets(matrix, batch, rng)
        vectors = embed(encoder, [texts[c] for c in columns])
        value = leave_one_out_loss(vectors, baskets, scale, log_share[columns] if correct_popularity else None)
        if also is not None:
            row, _, query = rest_of_basket(vectors, baskets)
            value = value + also(query, columns[row.cpu().numpy()])
        return value

    return train_steps([trainable(encoder.model, learning_rate), *groups], loss, steps, after=after)


def shop_encoder(
    texts: list[str],
    matrix: sparse.csr_matrix,
    steps: int | None = None,
    seed: int = TRAINING_SEED,
    name: str = EMBEDDED,
) -> Encoder:
    """`load_encoder` and `fine_tune`, built once for these texts and baskets and kept on disk (chapters 02 to 07).

    `steps=0` gives the encoder as it was; by default it is trained for `scale_steps(150)` steps.
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
    name: str = EMBEDDED,
) -> np.ndarray:
    """`encode(shop_encoder(...), texts)`, kept on disk: (n_items, width)."""
    return _vectors(texts, matrix, scale_steps(150) if steps is None else steps, seed, name)


@cached(libraries=LIBRARIES)
def _vectors(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> np.ndarray:
    return encode(shop_encoder(texts, matrix, steps, seed, name), texts)


@cached(libraries=LIBRARIES)
def _weights(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> dict[str, np.ndarray]:
    encoder = load_encoder(name)
    fine_tune(encoder, texts, matrix, steps, seed=seed)
    return {name: value.cpu().numpy() for name, value in encoder.model.state_dict().items()}
