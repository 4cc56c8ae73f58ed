"""A fitted ranker as a till needs it: one basket at a time, and on disk as plain arrays with checksums. Chapter 07."""

import hashlib
import hmac
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils import recommend
from recutils.compress import OnnxEncoder
from recutils.data import Baskets, item_text
from recutils.drift import ks_of_counts, psi
from recutils.evaluate import hide_one
from recutils.explain import Shop
from recutils.recommend import HybridRanker, Recommender
from recutils.rules import pair_counts

NOBODY = -1  # the household of a stranger
Said = tuple[np.ndarray | None, np.ndarray]  # items (None: all, in order) and what a member says of them


class ArtefactError(ValueError):
    """What was to be served cannot be: the message names the file and the mend."""


# ---------------------------------------------------------------------------------------------- one basket at a time


class QuickRanker:
    """What a fitted `HybridRanker` says of one open basket, without sparse matrices of one row and without tables.

    The members of `recommend.shop_members` have a short way of their own here; any other is asked as before. Scores
    agree to rounding; where members' scores are tied at the end of their quota, other items may be proposed.
    """

    def __init__(self, ranker: HybridRanker) -> None:
        self.ranker, self.n_items = ranker, len(ranker.sold)
        self.ask = [(ranker.quota[name], _short_way(member)) for name, member in ranker.members.items()]
        self.behind = list(ranker.members).index(ranker.behind)
        self.of_items = np.stack(list(ranker.of_items.values()), axis=1).astype(np.float32)
        self.codes = list(ranker.codes.values())
        self.n_codes = [int(code.max()) + 1 for code in self.codes]

    def recommend(
        self, basket: np.ndarray, household: int = NOBODY, moment: Any = None, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best items that are not in the basket, best first, and their scores.

        `basket`: different item columns; `household`: a row of the households in training, else a stranger;
        `moment`: a datetime, or None. As in `HybridRanker`, items that nobody proposed follow in the order of the
        member `behind`.
        """
        basket = np.asarray(basket, dtype=np.int64)
        items, scores, behind = self._rank(basket, household, moment)
        if len(items) < k:
            behind[items] = -np.inf
            more = recommend.top_k(behind[None], k - len(items))[0]
            more = more[more >= 0]
            items, scores = np.append(items, more), np.append(scores, behind[more] - 100)
        best = np.argsort(-scores, kind="stable")[:k]
        return items[best], scores[best]

    def _rank(self, basket: np.ndarray, household: int, moment: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ranker, n = self.ranker, len(self.ask)
        if not 0 <= household < ranker.n_households:
            household = NOBODY
        all_said = np.full((n, self.n_items), -np.inf, dtype=np.float32)
        norms = np.zeros((n, 2), dtype=np.float32)
        proposed = np.zeros(self.n_items, dtype=bool)
        for place, (quota, ask) in enumerate(self.ask):
            where, values = ask(basket, household, moment)
            said = all_said[place]
            if where is None:
                said[:] = values
            else:
                said[where] = values
            said[basket] = -np.inf
            if where is None:
                finite = np.delete(said, basket)
            else:
                where = where[np.isfinite(said[where])]
                finite = said[where]
            if len(finite):
                mean = finite.mean()
                spread = np.sqrt(max(float(finite @ finite) / len(finite) - float(mean) ** 2, 1e-12))
                norms[place] = mean, 1 / spread
            best = finite if where is not None else said
            if len(best) > quota:
                top = np.argpartition(-best, quota)[:quota]
                where = top[np.isfinite(best[top])] if where is None else where[top]
            elif where is None:
                where = np.flatnonzero(np.isfinite(said))
            proposed[where] = True
        items = np.flatnonzero(proposed & ranker.sold)
        if not len(items):
            return items, np.zeros(0), all_said[self.behind]
        told = self._tell(all_said[:, items], norms, items, basket, household, moment)
        scores = ranker.booster.predict(told, num_threads=1)
        return items, np.asarray(scores, dtype=np.float32), all_said[self.behind]

    def _tell(
        self, said: np.ndarray, norms: np.ndarray, items: np.ndarray, basket: np.ndarray, household: int, moment: Any
    ) -> np.ndarray:
        """The columns of `HybridRanker.names`, (n_candidates, n_columns) float32."""
        ranker, n = self.ranker, 2 * len(said)
        told = np.zeros((len(items), len(ranker.names)), dtype=np.float32)
        said[np.isneginf(said)] = np.nan
        told[:, 0:n:2] = said.T
        told[:, 1:n:2] = (said.T - norms[:, 0]) * norms[:, 1]
        m = n + self.of_items.shape[1]
        told[:, n:m] = self.of_items[items]
        slot = -1 if moment is None else moment.hour // 4 + 6 * (moment.weekday() >= 5)
        told[:, m] = ranker.slots[slot + 1, items]
        told[:, m + 1] = len(basket)
        groups = [code[items] for code in self.codes]
        for place, (code, group, size) in enumerate(zip(self.codes, groups, self.n_codes, strict=True), m + 2):
            told[:, place] = np.bincount(code[basket], minlength=size)[group]
        if household != NOBODY:
            for place, (name, value) in enumerate(ranker.of_households.items(), m + 2 + len(groups)):
                c = list(ranker.codes).index(name.removeprefix("their_")) if value.ndim == 2 else 0
                told[:, place] = value[household] if value.ndim == 1 else value[household][groups[c]]
        return told


def _short_way(member: Recommender) -> Callable[[np.ndarray, int, Any], Said]:
    """How one member is asked about one basket: (basket, household, moment) -> items, values."""
    if isinstance(member, recommend.EASE):
        return lambda basket, household, moment: (None, member.weights[basket].sum(axis=0))
    if isinstance(member, recommend.ItemKNN):
        return lambda basket, household, moment: _added(member.similarity, basket)
    if isinstance(member, recommend.RuleRecommender) and (member.left.sum(axis=0) == 1).all():
        return _rules_of_one(member)
    if isinstance(member, recommend.EmbeddingRecommender) and not member.household and not member.prior:
        return lambda basket, household, moment: (None, member.vectors @ _unit(member.vectors[basket].sum(axis=0)))
    if isinstance(member, recommend.InnerProduct):
        root = lambda basket: member.vectors[basket].sum(axis=0) / np.float32(np.sqrt(max(len(basket), 1)))  # noqa: E731
        return lambda basket, household, moment: (None, member.vectors @ root(basket) + member.bias)
    if isinstance(member, recommend.HouseholdRecency):
        return lambda basket, household, moment: _row(member.share, household)
    if isinstance(member, recommend.OwnBaskets):
        return lambda basket, household, moment: _own(member, basket, household)

    def long_way(basket: np.ndarray, household: int, moment: Any) -> Said:
        values = member.score(one_basket(basket, household, moment, member))[0]
        where = np.flatnonzero(np.isfinite(values))
        return where, values[where]

    return long_way


def one_basket(basket: Sequence[int] | np.ndarray, household: int, moment: Any, model: Any) -> Baskets:
    """A query of one row for `model` (anything with `n_items`); `moment` None is an unknown moment."""
    columns = np.sort(np.asarray(basket, dtype=np.int32))
    values = np.ones(len(columns), np.float32)
    matrix = sparse.csr_matrix((values, columns, np.array([0, len(columns)])), (1, model.n_items))
    when = np.datetime64("NaT", "ns") if moment is None else np.datetime64(moment.replace(tzinfo=None), "ns")
    return Baskets(matrix, np.array([household]), np.array([when]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _slice(matrix: sparse.csr_matrix, row: Any) -> slice:
    return slice(matrix.indptr[row], matrix.indptr[row + 1])


def _row(matrix: sparse.csr_matrix, row: int) -> Said:
    if row == NOBODY:
        return np.zeros(0, int), np.zeros(0, np.float32)
    return matrix.indices[_slice(matrix, row)], matrix.data[_slice(matrix, row)]


def _added(matrix: sparse.csr_matrix, rows: np.ndarray) -> Said:
    total = np.zeros(matrix.shape[1], np.float32)
    for row in rows:
        total[matrix.indices[_slice(matrix, row)]] += matrix.data[_slice(matrix, row)]
    where = np.flatnonzero(total)
    return where, total[where]


def _rules_of_one(member: recommend.RuleRecommender) -> Callable[[np.ndarray, int, Any], Said]:
    """Rules with one item on the left, as a matrix: row a, column i holds the measure of a -> i."""
    rule = member.left.tocsc().indices  # the item on the left of each rule
    table = sparse.csr_matrix((member.weights, (rule, member.right)), (member.left.shape[0], member.left.shape[0]))

    def ask(basket: np.ndarray, household: int, moment: Any) -> Said:
        best = np.zeros(table.shape[1], np.float32)
        for row in basket:
            part = _slice(table, row)
            best[table.indices[part]] = np.maximum(best[table.indices[part]], table.data[part])
        where = np.flatnonzero(best)
        return where, best[where]

    return ask


def _own(member: recommend.OwnBaskets, basket: np.ndarray, household: int) -> Said:
    if household == NOBODY or not len(basket):
        return np.zeros(0, int), np.zeros(0, np.float32)
    first, last = member.start[household], member.start[household + 1]
    ends = member.past.indptr[first : last + 1]
    items = member.past.indices[ends[0] : ends[-1]]
    visit = np.repeat(np.arange(last - first), np.diff(ends))
    both = np.bincount(visit, np.isin(items, basket) * member.rarity[items], last - first)
    total = np.bincount(items, (both * member.fade[first:last])[visit], member.past.shape[1])
    where = np.flatnonzero(total)
    return where, total[where].astype(np.float32)


# ---------------------------------------------------------------------------------------------- what is served


@dataclass
class Served:
    """All that the service needs, fitted: the ranker and what is said of items, households and words.

    - `item_ids`, `names`, `departments`: str, one an item; `prices` (n_items,), nan where unknown
    - `kinds` (n_items,): items of one kind replace each other; `pairs`: `recommend.cohesion`, for bundles
    - `similar` (n_items, n): what could replace an item, best first, -1 where nothing
    - `pseudonyms`: one a household of the ranker, see `pseudonym`
    - `word_weights`: csr (n_words, n_items), BM25's weight of each of `words` in each item's text
    - `text_vectors` (n_items, width): unit vectors of the texts by the encoder in `encoder` (see `OnnxEncoder`)
    - `usual`: what baskets and scores looked like when all this was fitted (see `recutils.drift`)
    - `version`: set by `save`
    """

    ranker: HybridRanker
    item_ids: list[str]
    names: list[str]
    departments: list[str]
    prices: np.ndarray
    kinds: np.ndarray
    pairs: sparse.csr_matrix
    similar: np.ndarray
    pseudonyms: list[str]
    past: sparse.csr_matrix
    visits: np.ndarray
    words: list[str]
    word_weights: sparse.csr_matrix
    text_vectors: np.ndarray
    usual: dict[str, Any]
    secret_check: str = ""
    version: str = "unsaved"
    encoder: Any = None

    def __post_init__(self) -> None:
        self.quick = QuickRanker(self.ranker)
        self.column = {item: n for n, item in enumerate(self.item_ids)}
        self.household = {name: n for n, name in enumerate(self.pseudonyms)}
        self.shop = Shop(self.names, self.past, self.visits)
        self.word_row = {word: n for n, word in enumerate(self.words)}
        names, self.department_codes = np.unique(self.departments, return_inverse=True)  # (n_items,)
        self.department_names: list[str] = names.tolist()  # sorted

    def search(self, query: str, k: int = 10) -> list[int]:
        """Items for a shopper's words: BM25, whose last word may be a beginning, plus cosine, each standardised.

        Where the catalogue lacks a word the encoder decides alone (chapter 02); a query without words finds nothing.
        """
        asked, score = split_up(query), np.zeros(len(self.names), np.float32)
        rows = [[self.word_row[word]] if word in self.word_row else [] for word in asked]
        if asked and len(asked[-1]) > 1:
            rows[-1] = [row for word, row in self.word_row.items() if word.startswith(asked[-1])]
        if asked and all(rows):
            score = standardised(np.sum([self.word_weights[r].max(axis=0).toarray()[0] for r in rows], axis=0))
        if asked and self.encoder is not None:
            score = score + standardised(self.text_vectors @ self.encoder.encode([query])[0])
        return recommend.top_k(score[None], k)[0].tolist() if score.any() else []


def split_up(text: str) -> list[str]:
    """The words of a text: runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def standardised(values: np.ndarray) -> np.ndarray:
    """Values (n,) less their mean, by their standard deviation."""
    return (values - values.mean()) / max(float(values.std()), 1e-9)


def word_table(texts: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
    """BM25's weight of every word in every text, by bm25s: the words, and csr (n_words, n_texts)."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25()
    index.index([split_up(text) for text in texts], show_progress=False)
    words = sorted((w for w in index.vocab_dict if w), key=index.vocab_dict.get)
    parts = tuple(np.asarray(index.scores[name]) for name in ("data", "indices", "indptr"))
    return words, sparse.csr_matrix(parts, (len(parts[2]) - 1, len(texts)))[[index.vocab_dict[w] for w in words]]


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
        best[rows] = recommend.top_k(close, n)
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
        pairs=recommend.cohesion(train.matrix, 0.75),
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
    """What is usual, for `drift.Monitor`: counts of departments and sizes of open baskets and of first offers' scores.

    From n of the `recent` baskets, which the ranker has not learned from, each with one item still to come. A limit
    is one and a half times the most that a week of `train` differed from the eight before it; for scores, that the
    halves of the recent baskets differ.
    """
    edges = {"size": np.array([2, 3, 5, 8, 12, 20])}
    week = (recommend.age_in_days(train) // 7).astype(int)  # 0 is the last

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


def pseudonym(household: Any, secret: bytes) -> str:
    """A household's name in artefacts, logs and feedback: HMAC-SHA256 with the shop's secret, 16 hex digits.

    Without the secret nobody can compute it from an id, or find the id by trying all; with it, everybody can.
    """
    return hmac.new(secret, str(household).encode(), hashlib.sha256).hexdigest()[:16]


CLASSES: dict[str, Any] = {
    c.__name__: c
    for c in (
        HybridRanker,
        recommend.EASE,
        recommend.EmbeddingRecommender,
        recommend.HouseholdRecency,
        recommend.InnerProduct,
        recommend.ItemKNN,
        recommend.OwnBaskets,
        recommend.Popularity,
        recommend.RuleRecommender,
    )
}
NOT_SERVED = {  # what only `fit` needs
    "HybridRanker": {"labels", "groups", "numbers", "to_fit"},
    "InnerProduct": {"edges", "encoder", "features"},
}


def _pack(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; its arrays go to `arrays`, under their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        arrays[place] = value
        return {"array": place}
    if isinstance(value, sparse.csr_matrix):
        parts = {name: _pack(getattr(value, name), f"{place}.{name}", arrays) for name in ("data", "indices", "indptr")}
        return {"csr": parts, "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": {name: _pack(part, f"{place}.{name}", arrays) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(part, f"{place}.{n}", arrays) for n, part in enumerate(value)]}
    if type(value).__name__ == "Booster":
        return {"trees": value.model_to_string()}
    if isinstance(value, recommend.RuleRecommender):
        state = {**vars(value), "rules": {c: value.rules[c].to_numpy() for c in ("support", "confidence", "lift")}}
    elif isinstance(value, Recommender):
        state = dict(vars(value))
    else:
        raise ArtefactError(f"{place} is a {type(value).__name__}, which an artefact cannot hold.")
    name = next((c.__name__ for c in type(value).__mro__ if c.__name__ in CLASSES), None)
    if name is None:
        raise ArtefactError(f"{place} is a {type(value).__name__}; an artefact holds {', '.join(CLASSES)}.")
    kept = {n: part for n, part in state.items() if n not in NOT_SERVED.get(name, ())}
    return {"object": name, "state": {n: _pack(part, f"{place}.{n}", arrays) for n, part in kept.items()}}


def _unpack(value: Any, arrays: Callable[[str], np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays(value["array"])
    if "csr" in value:
        parts = [_unpack(value["csr"][name], arrays) for name in ("data", "indices", "indptr")]
        return sparse.csr_matrix(tuple(parts), tuple(value["shape"]))
    if "dict" in value:
        return {name: _unpack(part, arrays) for name, part in value["dict"].items()}
    if "list" in value:
        return [_unpack(part, arrays) for part in value["list"]]
    if "trees" in value:
        import lightgbm

        return lightgbm.Booster(model_str=value["trees"])
    made = CLASSES[value["object"]].__new__(CLASSES[value["object"]])
    vars(made).update({name: _unpack(part, arrays) for name, part in value["state"].items()})
    if isinstance(made, recommend.RuleRecommender):
        left = made.left.tocsc()
        sides = [frozenset(part.tolist()) for part in np.split(left.indices, left.indptr[1:-1])]
        made.rules = pd.DataFrame({"antecedents": sides, **vars(made)["rules"]})
    return made


FIELDS = [f for f in Served.__dataclass_fields__ if f not in ("encoder", "version")]


def save(served: Served, folder: Path, encoder: Path | None = None) -> str:
    """Write a version into `folder` and make it the current one; returns its name, which its content decides.

    Arrays become .npy files, all else JSON, beside a manifest with the SHA-256 of every file; `encoder` is a folder
    with an `encoder.onnx` and its `tokenizer.json`, which are taken along. A version appears whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    state = {name: _pack(getattr(served, name), name, arrays) for name in FIELDS}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
        for place, array in arrays.items():
            np.save(Path(new) / f"{place}.npy", array, allow_pickle=False)
        (Path(new) / "state.json").write_text(json.dumps(state))
        if encoder is not None:
            for name in ("encoder.onnx", "tokenizer.json"):
                shutil.copy(encoder / name, new)
        sums = {file.name: sha256(file) for file in sorted(Path(new).iterdir())}
        version = _name(sums)
        (Path(new) / "manifest.json").write_text(json.dumps({"version": version, "sha256": sums}, indent=1))
        if _damaged(folder / version, sums):
            os.chmod(new, 0o755)
            if (folder / version).exists():
                os.rename(folder / version, folder / f".damaged-{version}-{os.getpid()}")
            os.rename(new, folder / version)
            os.makedirs(new)  # for the context manager to clear away
    make_current(folder, version)
    for left in folder.glob(".new-*"):  # by a process that was killed
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    return version


def _name(sums: dict[str, str]) -> str:
    """The version that these checksums make."""
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]


def _damaged(place: Path, sums: dict[str, str]) -> str | None:
    """The first file that is not what its checksum says; None where all are."""
    for name, wanted in sums.items():
        if Path(name).name != name or not (place / name).is_file() or sha256(place / name) != wanted:
            return name
    return None


def make_current(folder: Path, version: str) -> None:
    """Let `version` be the one that is served, in one step; a running service takes it up by itself."""
    if not (folder / version / "manifest.json").exists():
        raise ArtefactError(
            f"There is no version {version!r} in {folder.name}; there are {versions(folder) or 'none'}."
        )
    new = folder / f".current-{os.getpid()}"
    new.write_text(version)
    os.replace(new, folder / "CURRENT")


def versions(folder: Path) -> list[str]:
    """The versions in a folder, oldest first."""
    found = [m.parent for m in folder.glob("[!.]*/manifest.json")]
    return [f.name for f in sorted(found, key=lambda f: f.stat().st_mtime)]


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load(folder: Path, version: str | None = None) -> Served:
    """A version (else the current one), every checksum compared first; nothing is unpickled, only `CLASSES` are made.

    Raises ArtefactError for a missing, damaged or strange artefact. Arrays stay on disk until they are touched, and
    processes that serve the same version share them.
    """
    if version is None:
        try:
            version = (folder / "CURRENT").read_text().strip()
        except OSError:
            raise ArtefactError(f"No artefact in {folder}; chapter 07 or `make serve` builds one.") from None
    place = folder / version
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        sums, named = dict(manifest["sha256"]), manifest["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtefactError(f"Version {version!r} has no readable manifest.json; build it again.") from None
    if not named == version == _name(sums):
        raise ArtefactError(f"The manifest of version {version!r} was changed; build it again.")
    if (name := _damaged(place, sums)) is not None:
        raise ArtefactError(f"{name} of version {version!r} is missing or damaged; build it again.")

    def array(name: str) -> np.ndarray:
        if f"{name}.npy" not in sums:
            raise KeyError(name)
        return np.asarray(np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    try:
        state = json.loads((place / "state.json").read_text())
        served = Served(**{name: _unpack(state[name], array) for name in FIELDS}, version=version)
        if "encoder.onnx" in sums:
            served.encoder = OnnxEncoder(place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"Version {version!r} is of another kind ({error}); build it again.") from None
    return served


# ---------------------------------------------------------------------------------------------- the book's shop


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
    from recutils import compress, data, graph, text

    store = data.load_store()
    split = data.time_split(store)
    items, texts = split.items, data.item_text(split.items).to_list()
    prices = data.item_features(store, split)["price"].to_numpy()
    del store
    practice = data.practice_shelf(data.hide_cold_items(split)).train.matrix
    words = text.shop_vectors(texts, practice)
    network = graph.GraphRecommender(words).fit(split.train)
    early = split.validation.timestamps < np.datetime64(split.validation_start + pd.Timedelta(weeks=2))
    labels, recent = split.validation[np.flatnonzero(early)], split.validation[np.flatnonzero(~early)]
    ranker = recommend.shop_ranker(items, prices, recommend.shop_members(words, network), labels).fit(split.train)
    with tempfile.TemporaryDirectory() as exported:
        encoder = compress.export_onnx(text.load_encoder(), Path(exported))
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
