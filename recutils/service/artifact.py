"""A version on disk: plain arrays with checksums, nothing unpickled (chapter 07)."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from scipy import sparse

from recutils.explain.explanation import ExplanationContext
from recutils.models.base import Recommender, top_k
from recutils.models.embeddings import DotProduct, EmbeddingRecommender
from recutils.models.habits import HouseholdRecency, HouseholdSessionKNN, Popularity
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN
from recutils.models.rules import RuleRecommender
from recutils.ranker.ranker import HybridRanker
from recutils.service.files import write_file
from recutils.service.onnx_encoder import OnnxEncoder
from recutils.service.search import split_up, standardise


class ArtifactError(ValueError):
    """What was to be served cannot be: the message names the file and the mend."""


@dataclass
class Artifact:
    """All that the service needs, fitted: the ranker and what is said of items, households and words.

    - `item_ids`, `names`, `departments`: str, one an item; `prices` (n_items,), nan where unknown
    - `kinds` (n_items,): items of one kind replace each other; `affinity`: `bundles.pair_affinity`, for bundles
    - `substitutes` (n_items, n): what could replace an item, best first, -1 where nothing
    - `pseudonyms`: one a household of the ranker, see `pseudonym`; `purchases` (n_households, n_items) and `visits`
      (n_households,) of `train`, for explanations
    - `bm25_weights`: csr (n_words, n_items), BM25's weight of each of `vocabulary` in each item's text
    - `text_embeddings` (n_items, width): unit vectors of the texts by the encoder in `encoder` (see `OnnxEncoder`)
    - `reference`: what requests and scores looked like when all this was fitted (see `build.reference_profile`)
    - `demonstration`: (id, habits) of households to try the page with
    - `exam`: baskets that the ranker has not counted, with an item of each hidden (see `gate.release`); empty: none
    - `version`: set by `save`
    """

    ranker: HybridRanker
    item_ids: list[str]
    names: list[str]
    departments: list[str]
    prices: np.ndarray
    kinds: np.ndarray
    affinity: sparse.csr_matrix
    substitutes: np.ndarray
    pseudonyms: list[str]
    purchases: sparse.csr_matrix
    visits: np.ndarray
    vocabulary: list[str]
    bm25_weights: sparse.csr_matrix
    text_embeddings: np.ndarray
    reference: dict[str, Any]
    secret_check: str = ""
    demonstration: list[Any] = field(default_factory=list)
    exam: dict[str, Any] = field(default_factory=dict)
    version: str = "unsaved"
    encoder: Any = None

    def __post_init__(self) -> None:
        self.item_index = {item: n for n, item in enumerate(self.item_ids)}
        self.household_index = {name: n for n, name in enumerate(self.pseudonyms)}
        self.context = ExplanationContext(self.names, self.purchases, self.visits)
        self.word_index = {word: n for n, word in enumerate(self.vocabulary)}
        names, self.department_codes = np.unique(self.departments, return_inverse=True)  # (n_items,)
        self.department_names: list[str] = names.tolist()  # sorted

    def search(self, query: str, k: int = 10) -> list[int]:
        """Items for a shopper's words: BM25, whose last word may be a beginning, plus cosine, each standardised.

        Where the catalogue lacks a word the encoder decides alone (chapter 02); a query without words finds nothing.
        """
        asked, score = split_up(query), np.zeros(len(self.names), np.float32)
        rows = [[self.word_index[word]] if word in self.word_index else [] for word in asked]
        if asked and len(asked[-1]) > 1:
            rows[-1] = [row for word, row in self.word_index.items() if word.startswith(asked[-1])]
        if asked and all(rows):
            score = standardise(np.sum([self.bm25_weights[r].max(axis=0).toarray()[0] for r in rows], axis=0))
        if asked and self.encoder is not None:
            score = score + standardise(self.text_embeddings @ self.encoder.encode([query])[0])
        return top_k(score[None], k)[0].tolist() if score.any() else []


ALLOWED_TYPES: dict[str, Any] = {
    c.__name__: c
    for c in (
        HybridRanker,
        DotProduct,
        EASE,
        EmbeddingRecommender,
        HouseholdRecency,
        HouseholdSessionKNN,
        ItemKNN,
        Popularity,
        RuleRecommender,
    )
}


def _pack(value: Any, place: str, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; its arrays go to `arrays`, under their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        name = quote(place, safe="")  # the name of a file; a place may hold a slash
        arrays[name] = value
        return {"array": name}
    if isinstance(value, sparse.csr_matrix):
        parts = {name: _pack(getattr(value, name), f"{place}.{name}", arrays) for name in ("data", "indices", "indptr")}
        return {"csr": parts, "shape": list(value.shape)}
    if isinstance(value, dict):
        return {"dict": {name: _pack(part, f"{place}.{name}", arrays) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_pack(part, f"{place}.{n}", arrays) for n, part in enumerate(value)]}
    if not isinstance(value, Recommender):
        raise ArtifactError(f"{place} is a {type(value).__name__}, which an artefact cannot hold.")
    name = value.saved_as or type(value).__name__
    kind = ALLOWED_TYPES.get(name)
    if kind is None or not isinstance(value, kind) or not (value.saved_as or type(value) is kind):
        own = f"{type(value).__module__}.{type(value).__name__}"
        raise ArtifactError(f"{place} is a {own}; an artefact holds recutils' own {', '.join(ALLOWED_TYPES)}.")
    return {"object": name, "state": {n: _pack(part, f"{place}.{n}", arrays) for n, part in value.state().items()}}


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
    state = {name: _unpack(part, arrays) for name, part in value["state"].items()}
    return ALLOWED_TYPES[value["object"]].from_state(state)


FIELDS = [f for f in Artifact.__dataclass_fields__ if f not in ("encoder", "version")]


def save(artifact: Artifact, folder: Path, encoder: Path | None = None, current: bool = True) -> str:
    """Write a version into `folder`, the current one unless told otherwise; returns its name: its content decides it.

    Arrays become .npy files, all else JSON, beside a manifest with the SHA-256 of every file; `encoder` is a folder
    with an `encoder.onnx` and its `tokenizer.json`, which are taken along. A version appears whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    state = {name: _pack(getattr(artifact, name), name, arrays) for name in FIELDS}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
        for place, array in arrays.items():
            np.save(Path(new) / f"{place}.npy", array, allow_pickle=False)
        (Path(new) / "state.json").write_text(json.dumps(state))
        if encoder is not None:
            for name in ("encoder.onnx", "tokenizer.json"):
                shutil.copy(encoder / name, new)
        sums = {file.name: sha256(file) for file in sorted(Path(new).iterdir())}
        version = _version_id(sums)
        (Path(new) / "manifest.json").write_text(json.dumps({"version": version, "sha256": sums}, indent=1))
        if _find_damaged(folder / version, sums):
            os.chmod(new, 0o755)
            if (folder / version).exists():
                os.rename(folder / version, folder / f".damaged-{version}-{os.getpid()}")
            os.rename(new, folder / version)
            os.makedirs(new)  # for the context manager to clear away
    if current:
        set_current(folder, version)
    now = time.time()
    unfinished = [f for f in folder.glob(".new-*") if now - f.stat().st_mtime > 3600]  # by a process that was killed
    for left in [*folder.glob(".damaged-*"), *unfinished]:
        shutil.rmtree(left, ignore_errors=True)
    return version


def _version_id(sums: dict[str, str]) -> str:
    """The version that these checksums make."""
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]


def _find_damaged(place: Path, sums: dict[str, str]) -> str | None:
    """The first file that is not what its checksum says; None where all are."""
    for name, wanted in sums.items():
        if Path(name).name != name or not (place / name).is_file() or sha256(place / name) != wanted:
            return name
    return None


def set_current(folder: Path, version: str) -> None:
    """Let `version` be the one that is served, in one step; a running service takes it up by itself."""
    if not (folder / version / "manifest.json").exists():
        raise ArtifactError(
            f"There is no version {version!r} in {folder.name}; there are {versions(folder) or 'none'}."
        )
    write_file(folder / "CURRENT", version)


def set_canary(folder: Path, version: str, share: float) -> None:
    """Let a running service answer this share of the known households by `version`, the others by the current one.

    A share of 0 ends it. Raises ArtifactError for a version that is not there, ValueError for another share.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"A share lies between 0 and 1; not {share}.")
    if version not in versions(folder):
        raise ArtifactError(f"There is no version {version!r} in {folder.name}; there are {versions(folder)}.")
    write_file(folder / "CANARY", json.dumps({"version": version, "share": share}))


def read_canary(folder: Path) -> tuple[str, float]:
    """The version that is tried out and its share; ("", 0) where there is none."""
    try:
        asked = json.loads((folder / "CANARY").read_text())
        return (str(asked["version"]), float(asked["share"])) if asked["share"] else ("", 0.0)
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0.0


def roll_back(folder: Path) -> str:
    """Serve the version written before the current one; returns it. Raises ArtifactError where there is none."""
    there, current = versions(folder), current_version(folder)
    if current not in there[1:]:
        raise ArtifactError(f"There is no version before {current!r} in {folder.name}.")
    before = there[there.index(current) - 1]
    set_current(folder, before)
    return before


def prune(folder: Path, keep: int = 3) -> list[str]:
    """Delete all versions but the newest `keep` and those that are served; returns those deleted, oldest first.

    A service that still serves one of them keeps it in memory: its files are mapped.
    """
    there = versions(folder)
    served = {current_version(folder), read_canary(folder)[0]}
    gone = [v for v in there[: max(len(there) - keep, 0)] if v not in served]
    for version in gone:
        shutil.rmtree(folder / version)
        for note in folder.glob(f"{version}.*"):
            note.unlink()
    return gone


def current_version(folder: Path) -> str:
    """The version that is to be served. Raises ArtifactError where there is none."""
    try:
        return (folder / "CURRENT").read_text().strip()
    except OSError:
        raise ArtifactError(f"No artefact in {folder}; chapter 07 or `make serve` builds one.") from None


def versions(folder: Path) -> list[str]:
    """The versions in a folder, oldest first."""
    found = [m.parent for m in folder.glob("[!.]*/manifest.json")]
    return [f.name for f in sorted(found, key=lambda f: f.stat().st_mtime)]


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load(folder: Path, version: str | None = None) -> Artifact:
    """A version (else the current one), every checksum compared first; nothing unpickled, only `ALLOWED_TYPES` made.

    Raises ArtifactError for a missing, damaged or strange artefact. Arrays stay on disk until they are touched, and
    processes that serve the same version share them.
    """
    version = current_version(folder) if version is None else version
    place = folder / version
    try:
        manifest = json.loads((place / "manifest.json").read_text())
        sums, named = dict(manifest["sha256"]), manifest["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"Version {version!r} has no readable manifest.json; build it again.") from None
    if not named == version == _version_id(sums):
        raise ArtifactError(f"The manifest of version {version!r} was changed; build it again.")
    if (name := _find_damaged(place, sums)) is not None:
        raise ArtifactError(f"{name} of version {version!r} is missing or damaged; build it again.")

    def array(name: str) -> np.ndarray:
        if f"{name}.npy" not in sums:
            raise KeyError(name)
        return np.asarray(np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    try:
        state = json.loads((place / "state.json").read_text())
        artifact = Artifact(**{name: _unpack(state[name], array) for name in FIELDS if name in state}, version=version)
        if "encoder.onnx" in sums:
            artifact.encoder = OnnxEncoder(place)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"Version {version!r} is of another kind ({error}); build it again.") from None
    return artifact
