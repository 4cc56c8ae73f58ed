"""Search by words (chapter 02, chapter 07)."""

import logging
import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse


def split_up(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def standardise(values: np.ndarray) -> np.ndarray:
    """Values (n,) less their mean, by their standard deviation."""
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def bm25_index(texts: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """BM25's weight of every word in every text, by bm25s: the words, and csr (n_words, n_texts)."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25()
    index.index([split_up(text) for text in texts], show_progress=False)
    words = sorted((w for w in index.vocab_dict if w), key=index.vocab_dict.get)
    parts = tuple(np.asarray(index.scores[name]) for name in ("data", "indices", "indptr"))
    return words, sparse.csr_matrix(parts, (len(parts[2]) - 1, len(texts)))[[index.vocab_dict[w] for w in words]]
