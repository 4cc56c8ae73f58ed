"""A tagger of words (chapter 02)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForTokenClassification

from recutils.settings import TRAINING_SEED, seed_everything
from recutils.text.encoder import EMBEDDED, bf16, load_model, model_folder
from recutils.text.training import train_steps, trainable


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
    seed_everything(seed)
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
