"""From a fitted ranker to all that a service needs (chapter 07)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.bundles import pair_affinity
from recutils.data.schema import Baskets, item_text
from recutils.evaluate.tasks import hide_one
from recutils.models.base import age_in_days, top_k
from recutils.ranker.ranker import HybridRanker, shop_members, shop_ranker
from recutils.rules.measures import pair_counts
from recutils.service.artifact import Served, save
from recutils.service.monitor import ks_of_counts, psi
from recutils.service.onnx_encoder import OnnxEncoder, export_onnx
from recutils.service.pseudonyms import pseudonym
from recutils.service.search import split_up, word_table
from recutils.service.single_basket import _slice


def replacements(vectors: np.ndarray, matrix: sparse.csr_matrix, n: int = 20) -> np.ndarray:
    """What could stand in for each item: alike in words, and bought together more seldom than chance would have it.

    Unit `vectors` (n_items, width) of texts, training baskets `matrix` (n_baskets, n_items) -> (n_items, n), best
    first, -1 where there is none. Chapter 03.
    """
    counts, sold = pair_counts(matrix).tocsr(), np.asarray(matrix.sum(axis=0)).ravel()
    best = np.empty((len(vectors), min(n, len(vectors))), dtype=np.int64)
    for start in range(0, len(vectors), 512):
        rows = np.arange(start, min(start + 512, len(vectors)))
        close = vectors[rows] @ vectors.T
        close[counts[rows].toarray() > np.outer(sold[rows], sold) / matrix.shape[0]] = -np.inf
        close[np.arange(len(rows)), rows] = -np.inf
        best[rows] = top_k(close, n)
    return best


def assemble(
    ranker: HybridRanker,
    items: pd.DataFrame,
    prices: np.ndarray,
    households: Sequence[Any],
    train: Baskets,
    recent: Baskets,
    encoder: Path,
    secret: bytes,
    names: Sequence[str] | None = None,
    kinds: Sequence[Any] | None = None,
) -> Served:
    """What a shop serves, from a ranker fitted on `train`, its items and the folder of an exported text encoder.

    `recent`: later baskets, which tell what is usual.
    `items` as in `Split.items`, with a `department` (else the first text column in its place); `households` one id a
    household of `train`; `secret` makes their pseudonyms. `names`: what shoppers read (else the items' words);
    `kinds`: items of one kind are not put into one bundle (else every item is a kind of its own).
    """
    texts = item_text(items).to_list()
    of_kind = "department" if "department" in items else items.columns[items.columns != "item_id"][0]
    reader = OnnxEncoder(encoder, threads=2)
    vectors = reader.encode(texts)
    words, word_weights = word_table(texts)
    past = ranker._purchases(train)
    served = Served(
        ranker=ranker,
        item_ids=[str(i) for i in items["item_id"]],
        names=list(texts if names is None else names),
        departments=items[of_kind].fillna("").astype(str).to_list(),
        prices=np.asarray(prices, dtype=np.float64),
        kinds=np.arange(len(items)) if kinds is None else pd.factorize(np.asarray(kinds), use_na_sentinel=False)[0],
        pairs=pair_affinity(train.matrix, 0.75),
        similar=replacements(vectors, train.matrix),
        pseudonyms=[pseudonym(household, secret) for household in households][: past.shape[0]],
        past=past,
        visits=np.bincount(train.households[train.households >= 0], minlength=past.shape[0]),
        words=words,
        word_weights=word_weights,
        text_vectors=vectors,
        usual={},
        secret_check=pseudonym("the shop's own check", secret),
        encoder=reader,
    )
    served.usual = usual_of(served, train, recent)
    return served


def usual_of(served: Served, train: Baskets, recent: Baskets, n: int = 1000) -> dict[str, Any]:
    """What is usual, for `Monitor`: counts of departments and sizes of open baskets and of first offers' scores.

    From n of the `recent` baskets, which the ranker has not learned from, each with one item still to come. A limit
    is one and a half times the most that a week of `train` differed from the eight before it; for scores, that the
    halves of the recent baskets differ.
    """
    edges = {"size": np.array([2, 3, 5, 8, 12, 20])}
    week = (age_in_days(train) // 7).astype(int)  # 0 is the last

    def counts(matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
        size = np.searchsorted(edges["size"], np.diff(matrix.indptr), side="right")
        departments = np.bincount(served.department_codes[matrix.indices], minlength=len(served.department_names))
        return {"department": departments, "size": np.bincount(size, minlength=len(edges["size"]) + 1)}

    weeks = [counts(train.matrix[np.flatnonzero(week == k)]) for k in range(week.max() + 1)]
    measures = {"department": psi, "size": ks_of_counts}
    limits = {}
    for name, measure in measures.items():
        of = np.array([c[name] for c in weeks])
        steps = [measure(of[k + 1 : k + 9].sum(axis=0), of[k]) for k in range(max(len(of) - 9, 1))]
        limits[name] = 1.5 * max(steps)
    queries, _ = hide_one(recent)
    queries = queries[:: max(len(queries) // n, 1)]
    best = np.full(len(queries), np.nan)
    for row, household in enumerate(queries.households.tolist()):
        columns = queries.matrix.indices[_slice(queries.matrix, row)]
        best[row] = served.quick.recommend(columns, household, None, 1)[1][0]
    edges["score"] = np.unique(np.quantile(best, np.arange(0.1, 1, 0.1)))
    bins = np.searchsorted(edges["score"], best, side="right")
    halves = [np.bincount(part, minlength=len(edges["score"]) + 1) for part in (bins[::2], bins[1::2])]
    limits["score"] = 1.5 * ks_of_counts(*halves)
    return {"counts": counts(queries.matrix) | {"score": halves[0] + halves[1]}, "edges": edges, "limits": limits}


def shop_names(items: pd.DataFrame) -> list[str]:
    """What a shopper reads for each item of Complete Journey: type, size, own brand; the category where it helps."""
    kind = items["type"].fillna("").str.lower().str.replace("/", " / ")
    category = items["category"].fillna("").str.lower()
    known = [
        bool({w[:4] for w in split_up(k)} & {w[:4] for w in split_up(c)}) for k, c in zip(kind, category, strict=True)
    ]
    named = [k if same else f"{k} ({c})" for k, c, same in zip(kind, category, known, strict=True)]
    size = items["size"].fillna("").str.lower()
    own = np.where(items["brand"] == "Private", "own brand", "")
    return [", ".join(filter(None, parts)) for parts in zip(named, size, own, strict=True)]


def book_shop(folder: Path, secret: bytes) -> str:
    """Build chapter 05's ranker on Complete Journey and save it as the current version in `folder`; its name.

    Needs the extra `serve`. Minutes where the book's cache is empty, half a minute where it is not.
    """
    from recutils import data, graph, text

    store = data.load_store()
    split = data.time_split(store)
    items, texts = split.items, data.item_text(split.items).to_list()
    prices = data.item_features(store, split)["price"].to_numpy()
    del store
    practice = data.cold_validation_split(data.hide_cold_items(split)).train.matrix
    words = text.shop_vectors(texts, practice)
    network = graph.GraphRecommender(words).fit(split.train)
    early = split.validation.timestamps < np.datetime64(split.validation_start + pd.Timedelta(weeks=2))
    labels, recent = split.validation[np.flatnonzero(early)], split.validation[np.flatnonzero(~early)]
    ranker = shop_ranker(items, prices, shop_members(words, network), labels).fit(split.train)
    with tempfile.TemporaryDirectory() as exported:
        encoder = export_onnx(text.load_encoder(), Path(exported))
        made = assemble(
            ranker,
            items,
            prices,
            split.households.to_list(),
            split.train,
            recent,
            encoder,
            secret,
            shop_names(items),
            items["type"].fillna(""),
        )
        return save(made, folder, encoder)
