"""From a fitted ranker to all that a service needs (chapter 07)."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.bundles import pair_affinity
from recutils.data.schema import Baskets, item_text
from recutils.evaluate import hide_one
from recutils.models.base import ANONYMOUS, age_in_days, purchases, row_of, top_k
from recutils.ranker.ranker import HybridRanker, shop_members, shop_ranker
from recutils.rules.measures import pair_counts
from recutils.service.artifact import Artifact, save
from recutils.service.gate import release
from recutils.service.monitor import drift_limit
from recutils.service.onnx_encoder import OnnxEncoder, export_onnx
from recutils.service.pseudonyms import pseudonym, secret_check
from recutils.service.search import bm25_index, split_up
from recutils.settings import SEED

SIZE_EDGES = np.array([2, 3, 5, 8, 12, 20])
MONITORED_COUNTS = [300, 1000, 3000, 10_000]


@dataclass
class ShopData:
    """What a shop knows beside its ranker.

    - `items`: as in `Split.items`, with a `department` (else the first text column in its place)
    - `prices` (n_items,), nan where unknown; `households`: one id a household of `train`
    - `train`: the baskets that the ranker was fitted on; `recent`: later ones, which tell what requests look like
    - `names`: what shoppers read (else the items' words)
    - `kinds`: items of one kind are not put into one bundle (else every item is a kind of its own)
    - `anonymous`: requests come without household and moment, as the page sends them; tills send both
    - `vectors` (n_items, width): unit vectors of the items' words, where there is no encoder
    - `demonstration`: households to try the page with, whose ids are then kept as they are; for public data
    """

    items: pd.DataFrame
    prices: np.ndarray
    households: Sequence[Any]
    train: Baskets
    recent: Baskets
    names: Sequence[str] | None = None
    kinds: Sequence[Any] | None = None
    anonymous: bool = False
    vectors: np.ndarray | None = None
    demonstration: Sequence[Any] = ()


def assemble(ranker: HybridRanker, shop: ShopData, encoder: Path | None, secret: bytes) -> Artifact:
    """What a shop serves. `encoder`: the folder of an exported text encoder, None: `shop.vectors` stand for the words
    and search goes by words alone; `secret` makes pseudonyms."""
    items, train = shop.items, shop.train
    texts = item_text(items).to_list()
    department = "department" if "department" in items else items.columns[items.columns != "item_id"][0]
    reader = None if encoder is None else OnnxEncoder(encoder, threads=2)
    embeddings = np.asarray(shop.vectors, dtype=np.float32) if reader is None else reader.encode(texts)
    vocabulary, bm25_weights = bm25_index(texts)
    bought, visits = household_purchases(train)
    kinds = np.arange(len(items)) if shop.kinds is None else np.asarray(shop.kinds)
    artifact = Artifact(
        ranker=ranker,
        item_ids=[str(i) for i in items["item_id"]],
        names=list(texts if shop.names is None else shop.names),
        departments=items[department].fillna("").astype(str).to_list(),
        prices=np.asarray(shop.prices, dtype=np.float64),
        kinds=pd.factorize(kinds, use_na_sentinel=False)[0],
        affinity=pair_affinity(train.matrix, 0.75),
        substitutes=substitutes(embeddings, train.matrix),
        pseudonyms=[pseudonym(household, secret) for household in shop.households][: len(visits)],
        purchases=bought,
        visits=visits,
        vocabulary=vocabulary,
        bm25_weights=bm25_weights,
        text_embeddings=embeddings,
        reference={},
        secret_check=secret_check(secret),
        encoder=reader,
    )
    artifact.reference = reference_profile(artifact, train, shop.recent, shop.anonymous)
    queries, hidden = hide_one(_sample(shop.recent, 1000))
    artifact.demonstration = [[str(h), habits(artifact, list(shop.households).index(h))] for h in shop.demonstration]
    artifact.exam = dict(vars(queries), hidden=hidden)
    return artifact


def habits(artifact: Artifact, row: int, n: int = 3) -> str:
    """Names of the items that mark a household: bought often, and by few others."""
    buyers = np.bincount(artifact.purchases.indices, minlength=artifact.purchases.shape[1])
    bought = artifact.purchases[row].toarray()[0] * np.log(len(artifact.visits) / np.maximum(buyers, 1))
    names = [artifact.names[i].split(" (")[0].split(",")[0] for i in np.argsort(-bought)[:20] if bought[i]]
    return ", ".join(list(dict.fromkeys(names))[:n])


def household_purchases(train: Baskets) -> tuple[sparse.csr_matrix, np.ndarray]:
    """How many baskets of a household held an item, csr (n_households, n_items), and of all of them (n_households,)."""
    return purchases(train), np.bincount(train.households[train.households >= 0])


def substitutes(embeddings: np.ndarray, matrix: sparse.csr_matrix, n: int = 20) -> np.ndarray:
    """What could stand in for each item: alike in words, and bought together more seldom than chance would have it.

    Unit `embeddings` (n_items, width) of texts, training baskets `matrix` (n_baskets, n_items) -> (n_items, n), best
    first, -1 where there is none. Chapter 03.
    """
    counts, sold = pair_counts(matrix).tocsr(), np.asarray(matrix.sum(axis=0)).ravel()
    best = np.empty((len(embeddings), min(n, len(embeddings))), dtype=np.int64)
    for start in range(0, len(embeddings), 512):
        rows = np.arange(start, min(start + 512, len(embeddings)))
        close = embeddings[rows] @ embeddings.T
        close[counts[rows].toarray() > np.outer(sold[rows], sold) / matrix.shape[0]] = -np.inf
        close[np.arange(len(rows)), rows] = -np.inf
        best[rows] = top_k(close, n)
    return best


def replay_requests(baskets: Baskets, seed: int = SEED) -> tuple[Baskets, np.ndarray]:
    """The requests that baskets make while they are filled: open baskets, and of which basket each is (n_requests,).

    The items of a basket come in a random order, with a request after each but the last: n items make n - 1 requests,
    of 1 to n - 1 items.
    """
    sizes = np.diff(baskets.matrix.indptr)
    session = np.repeat(np.arange(len(sizes)), np.maximum(sizes - 1, 0))  # (n_requests,)
    n_items = np.arange(len(session)) - np.searchsorted(session, session) + 1  # 1, 2, ... within each session
    order = np.lexsort((np.random.default_rng(seed).random(sizes.sum()), np.repeat(np.arange(len(sizes)), sizes)))
    shuffled = baskets.matrix.indices[order]
    ends = np.append(0, np.cumsum(n_items))
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], n_items)
    columns = shuffled[np.repeat(baskets.matrix.indptr[session], n_items) + within]
    ones = np.ones(len(columns), np.float32)
    matrix = sparse.csr_matrix((ones, columns, ends), (len(session), baskets.matrix.shape[1]))
    matrix.sort_indices()
    return Baskets(matrix, baskets.households[session], baskets.timestamps[session]), session


def reference_profile(
    artifact: Artifact, train: Baskets, recent: Baskets, anonymous: bool = False, n: int = 300
) -> dict[str, Any]:
    """What `DriftMonitor` takes: departments and sizes of open baskets and first offers' scores, and their limits.

    The reference is what `recent` baskets, which the ranker has not learned from, ask while they are filled (scores:
    n of them). A limit is the 0.99 quantile of what as many counts as are monitored differ by without a cause: those
    of one week of `train` from the eight before it, and scores from scores of other baskets drawn from the same.
    """
    histograms = {"department": len(artifact.department_names), "size": len(SIZE_EDGES) + 1}
    counts = {name: np.zeros(0) for name in histograms}
    weeks = _sample_by_week(train)
    of_weeks = [_session_counts(artifact, week) for week in weeks]
    of_recent = _session_counts(artifact, _sample(recent, 8000))
    limits = {}
    for name in histograms:
        n_pairs = min(max(len(weeks) - 8, 1), len(weeks) - 1)  # 0 where all is one week
        before = [np.concatenate([w[name] for w in of_weeks[k + 1 : k + 9]]) for k in range(n_pairs)]
        pairs = [
            (past, week[name]) for past, week in zip(before, of_weeks, strict=False) if len(past) and len(week[name])
        ]
        pairs = pairs or [(of_recent[name], of_recent[name])]
        limits[name] = [drift_limit(pairs, size, numeric=name == "size") for size in MONITORED_COUNTS]
        counts[name] = of_recent[name].sum(axis=0)
    scores, session = first_scores(artifact, _sample(recent, n), anonymous)
    edges = np.unique(np.quantile(scores, np.arange(0.1, 1, 0.1)))
    of_scores = _histograms(session, np.searchsorted(edges, scores, side="right"), len(edges) + 1)
    counts["score"] = of_scores.sum(axis=0)
    limits["score"] = [drift_limit([(of_scores, of_scores)], size, numeric=True) for size in MONITORED_COUNTS]
    return {
        "counts": counts,
        "edges": {"size": SIZE_EDGES, "score": edges},
        "sizes": MONITORED_COUNTS,
        "limits": limits,
        "anonymous": anonymous,
    }


def first_scores(artifact: Artifact, baskets: Baskets, anonymous: bool) -> tuple[np.ndarray, np.ndarray]:
    """The score of the first offer to each request that baskets make while they are filled, and its session."""
    requests, session = replay_requests(baskets)
    matrix, scores = requests.matrix, np.empty(len(requests))
    for row, household in enumerate(requests.households.tolist()):
        columns, _ = row_of(matrix, row)
        moment = None if anonymous else pd.Timestamp(requests.timestamps[row]).to_pydatetime()
        who = ANONYMOUS if anonymous else household
        scores[row] = artifact.ranker.recommend_one(columns, who, moment, 1)[1][0]
    return scores, session


def _sample(baskets: Baskets, n: int) -> Baskets:
    """n baskets of two items or more, drawn at random."""
    rows = np.flatnonzero(np.diff(baskets.matrix.indptr) > 1)
    return baskets[np.random.default_rng(SEED).permutation(rows)[:n]]


def _sample_by_week(baskets: Baskets, n: int = 1000) -> list[Baskets]:
    """n baskets of each week, the last week first."""
    week = (age_in_days(baskets) // 7).astype(int)
    return [_sample(baskets[np.flatnonzero(week == k)], n) for k in range(week.max() + 1)]


def _session_counts(artifact: Artifact, baskets: Baskets) -> dict[str, np.ndarray]:
    """Departments and sizes of the requests of each session, (n_sessions, n_bins)."""
    requests, session = replay_requests(baskets)
    sizes = np.diff(requests.matrix.indptr)
    departments = artifact.department_codes[requests.matrix.indices]
    return {
        "department": _histograms(np.repeat(session, sizes), departments, len(artifact.department_names)),
        "size": _histograms(session, np.searchsorted(SIZE_EDGES, sizes, side="right"), len(SIZE_EDGES) + 1),
    }


def _histograms(session: np.ndarray, bins: np.ndarray, n_bins: int) -> np.ndarray:
    """How often each session has each bin, (n_sessions, n_bins); both are (n,)."""
    n = int(session.max(initial=-1)) + 1
    return np.bincount(session * n_bins + bins, minlength=n * n_bins).reshape(n, n_bins)


def spelled_out(texts: pd.Series) -> pd.Series:
    """The till's words (`BEERALEMALT LIQUORS`, `FRZN BRD STICK/PORTON`) as a shopper reads them, in lower case.

    A bracket that the till's thirty letters cut off goes.
    """
    words = json.loads((Path(__file__).parent / "page" / "words.json").read_text())
    bounds = {w: ("(?<![a-z])" * w[0].isalpha(), "(?![a-z])" * w[-1].isalpha()) for w in words}
    known = "|".join(f"{bounds[w][0]}{re.escape(w)}{bounds[w][1]}" for w in sorted(words, key=len, reverse=True))
    plain = texts.fillna("").str.lower().str.replace(r"\s*\([^)]*$", "", regex=True).str.replace("w/", "with ")
    plain = plain.str.replace(known, lambda found: words[found[0]], regex=True)
    plain = plain.str.replace(r"\s*/\s*", " / ", regex=True).str.replace(r"\s*:\s*", ": ", regex=True)
    plain = plain.str.replace(r" / \w$", "", regex=True)  # all that was left of a word
    return plain.str.replace(r"\s+", " ", regex=True).str.replace(" ,", ",").str.strip(" /,-:")


def display_names(items: pd.DataFrame) -> list[str]:
    """What a shopper reads for each item of Complete Journey: type, size, own brand; the category where it helps."""
    kind, category = spelled_out(items["type"]), spelled_out(items["category"])
    known = [
        bool({w[:4] for w in split_up(k)} & {w[:4] for w in split_up(c)}) for k, c in zip(kind, category, strict=True)
    ]
    named = [k if same else f"{k} ({c})" for k, c, same in zip(kind, category, known, strict=True)]
    size = items["size"].fillna("").str.lower()
    own = np.where(items["brand"] == "Private", "own brand", "")
    return [", ".join(filter(None, parts)) for parts in zip(named, size, own, strict=True)]


def build_book_shop(folder: Path, secret: bytes) -> str:
    """Build chapter 05's ranker on Complete Journey and save it in `folder`; its name. It is current if it passes.

    Its requests come from the page, so they are anonymous. Needs the extra `serve`. Minutes where the book's cache is
    empty, half a minute where it is not.
    """
    from recutils import data, graph, text

    store = data.load_store()
    split = data.time_split(store)
    items, texts = split.items, data.item_text(split.items).to_list()
    prices = data.item_features(store, split)["price"].to_numpy()
    del store
    warm = data.cold_validation_split(data.hide_cold_items(split)).train.matrix
    words = text.shop_vectors(texts, warm)
    network = graph.GraphRecommender(words).fit(split.train)
    early = split.validation.timestamps < np.datetime64(split.validation_start + pd.Timedelta(weeks=2))
    labels, recent = split.validation[np.flatnonzero(early)], split.validation[np.flatnonzero(~early)]
    ranker = shop_ranker(items, prices, shop_members(words, network), labels).fit(split.train)
    names, kinds, households = display_names(items), items["type"].fillna(""), split.households.to_list()
    often = np.flatnonzero(household_purchases(split.train)[1] >= 50)
    known = [households[row] for row in np.random.default_rng(SEED).choice(often, 5, replace=False)]
    shop = ShopData(items, prices, households, split.train, recent, names, kinds, True, demonstration=known)
    with tempfile.TemporaryDirectory() as exported:
        encoder = export_onnx(text.load_encoder(), Path(exported))
        version = save(assemble(ranker, shop, encoder, secret), folder, encoder, current=False)
    release(folder, version)
    return version
