"""What an item's words say: vectors without torch, and whether two items are variants of one thing."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import svds

from recutils.data.schema import item_text
from recutils.settings import SEED

SIGNS = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"  # Japanese, Chinese and Korean, which put no blanks between words
# Words that tell variants of one thing apart, or say nothing: sizes, colours, packs.
PLAIN = """set pack the and with for pcs piece pieces small medium large mini big extra organic bio red blue green white
    black pink yellow purple orange brown grey gray ivory cream gold silver assorted design colour color klein gross
    gros grand petit pequeno grande rot blau weiss schwarz"""


@cache
def tokens(name: str) -> list[str]:
    """The words that say what a thing is, in order; of scripts without blanks pairs of signs."""
    plain = PLAIN.split()
    found = [w for w in re.findall(r"[^\W\d_]{2,}", name.casefold()) if w not in plain]
    if re.search(SIGNS, name):
        signs = re.findall(r"[^\W\d_]", name.casefold())
        return ["".join(pair) for pair in pairwise(signs)] or signs
    return found


def same_thing(one: str, other: str) -> bool:
    """Are two names variants of one thing: half of their words shared, or the first two, or the last two?"""
    a, b = tokens(one), tokens(other)
    if not a or not b:
        return False
    shared = len(set(a) & set(b)) / len(set(a) | set(b))
    return shared >= 0.5 or (len(a) > 2 and len(b) > 2 and (a[:2] == b[:2] or a[-2:] == b[-2:]))


def kind_labels(names: Sequence[str]) -> np.ndarray:
    """A label an item, (n_items,), equal for names with the same first two words: variants mostly share it."""
    labels = [" ".join(sorted(tokens(name)[:2])) or f"#{n}" for n, name in enumerate(names)]
    return np.array(labels, dtype=object)


def word_vectors(texts: Sequence[str], width: int = 64) -> np.ndarray:
    """Unit vectors (n_items, width) of texts: groups of three letters, weighted by rarity, in fewer dimensions.

    Works for any language; a text without letters is all zeros. Source: Deerwester et al. (1990), latent semantics.
    """
    grams = [sorted({t[n : n + 3] for t in (f" {text.casefold()} ",) for n in range(len(t) - 2)}) for text in texts]
    codes, names = pd.factorize(np.array([g for row in grams for g in row] or [""], dtype=object))
    rows = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
    table = sparse.csr_matrix((np.ones(len(rows)), (rows, codes[: len(rows)])), (len(grams), len(names)))
    rarity = np.log((1 + len(grams)) / (1 + np.asarray(table.sum(axis=0)).ravel()))
    table = sparse.csr_matrix(table @ sparse.diags(rarity))
    k = min(width, min(table.shape) - 1)
    if k >= 1 and table.nnz:
        start = np.random.default_rng(SEED).standard_normal(min(table.shape))
        left, size, _ = svds(table.astype(float), k=k, v0=start)
        vectors = left * size
    else:
        vectors = table.toarray()
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norm > 1e-6, vectors / np.maximum(norm, 1e-6), 0).astype(np.float32)


def item_vectors(items: pd.DataFrame, columns: list[str], encoder: bool) -> np.ndarray:
    """Unit vectors (n_items, width) of the words in some columns of a table of items; zeros where there are none.

    `encoder`: by the packaged encoder, which knows English; scripts without blanks are read by groups of letters
    whatever is asked.
    """
    if not columns:
        return np.zeros((len(items), 1), np.float32)
    texts = item_text(items, columns)
    if encoder and texts.str.contains(SIGNS, regex=True).mean() < 0.2:
        from recutils import text

        return text.encode(text.load_encoder(), texts.to_list())
    return word_vectors(texts.to_list())
