"""A version on disk: plain arrays with checksums, nothing unpickled (chapter 07)."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.explain.explanation import Shop
from recutils.models.base import Recommender, top_k
from recutils.models.embeddings import EmbeddingRecommender, InnerProduct
from recutils.models.habits import HouseholdRecency, OwnBaskets, Popularity
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN
from recutils.models.rules import RuleRecommender
from recutils.ranker.ranker import HybridRanker
from recutils.service.onnx_encoder import OnnxEncoder
from recutils.service.search import split_up, standardised
from recutils.service.single_basket import QuickRanker


class ArtefactError(ValueError):
    """What was to be served cannot be: the message names the file and the mend."""


@dataclass
class Served:
    """All that the service needs, fitted: the ranker and what is said of items, households and words.

    - `item_ids`, `names`, `departments`: str, one an item; `prices` (n_items,), nan where unknown
    - `kinds` (n_items,): items of one kind replace each other; `pairs`: `bundles.pair_affinity`, for bundles
    - `similar` (n_items, n): what could replace an item, best first, -1 where nothing
    - `pseudonyms`: one a household of the ranker, see `pseudonym`
    - `word_weights`: csr (n_words, n_items), BM25's weight of each of `words` in each item's text
    - `text_vectors` (n_items, width): unit vectors of the texts by the encoder in `encoder` (see `OnnxEncoder`)
    - `usual`: what baskets and scores looked like when all this was fitted (see `service.monitor`)
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
        return top_k(score[None], k)[0].tolist() if score.any() else []


CLASSES: dict[str, Any] = {
    c.__name__: c
    for c in (
        HybridRanker,
        EASE,
        EmbeddingRecommender,
        HouseholdRecency,
        InnerProduct,
        ItemKNN,
        OwnBaskets,
        Popularity,
        RuleRecommender,
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
    if isinstance(value, RuleRecommender):
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
    if isinstance(made, RuleRecommender):
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
