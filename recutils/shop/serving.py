"""A shop behind the service of chapter 07: versions from its files, a gate before a new one is taken up.

Needs the extras `shop` and `service`; the words of products by the packaged encoder need `text` and `onnx` too.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recutils.data.schema import Split, StoreError
from recutils.evaluate import hide_one
from recutils.models import (
    EASE,
    EmbeddingRecommender,
    HouseholdRecency,
    HouseholdSessionKNN,
    ItemKNN,
    Popularity,
    Recommender,
)
from recutils.ranker import HybridRanker, RankerSettings
from recutils.service.artifact import load, prune, save
from recutils.service.auth import load_settings
from recutils.service.build import ShopData, assemble, household_purchases
from recutils.service.gate import FEWEST_COMPARED, THRESHOLD, Gate
from recutils.service.pseudonyms import pseudonym
from recutils.shop.compare import PairRules, item_groups
from recutils.shop.periods import sample_of, split_periods, together
from recutils.shop.reading import Shop
from recutils.shop.words import item_vectors, kind_labels

Progress = Callable[[str], None]
MOST_COMPARED = 1000  # baskets on which two versions meet


def fit_ranker(split: Split, shop: Shop, vectors: np.ndarray) -> HybridRanker:
    """The ranker of chapter 05 on a shop: members by what is known, trees taught by `split.validation`.

    Raises StoreError where no basket of that period holds three items.
    """
    labels = sample_of(split.validation, 2000)
    if len(labels) < 10:
        raise StoreError(
            f"{len(labels)} baskets of three products or more in the period that teaches the order are too few for a "
            f"service; bring more receipts."
        )
    least = max(3, round(0.001 * len(split.train)))
    members: dict[str, Recommender] = {"ease": EASE(100.0), "item_knn": ItemKNN(100), "rules": PairRules(least, 0.1)}
    if vectors.any():
        members["text"] = EmbeddingRecommender(vectors)
    if (split.train.households >= 0).any():
        members |= {"recency": HouseholdRecency(90), "session_knn": HouseholdSessionKNN()}
    trees = RankerSettings(30, fallback="ease", n_holdouts=2, n_trees=60 if len(labels) > 300 else 20)
    return HybridRanker(members, item_groups(split.items), None, labels, trees).fit(split.train)


def update_folder(
    shop: Shop, folder: Path, threshold: float = THRESHOLD, force: bool = False, progress: Progress = lambda step: None,
    encoder: bool = False,
) -> tuple[bool, str]:  # fmt: skip
    """Build a version from a shop and make it the current one of `served` in the folder; was it, and a sentence.

    It is refused where its NDCG@10 on the newest baskets is more than `threshold` (a share) below that of the current
    version, or of plain popularity where it is the first. Neither has seen those baskets: they are later than all that
    the current version was made from. Households' habits are counted up to the last basket once the gate is passed.
    """
    served = served_folder(folder)
    secret = load_settings(served).secret
    split, _ = split_periods(shop)
    progress("step 1 of 4: fitting the ranker (its trees take longest)")
    vectors = item_vectors(split.items, shop.words, False)
    ranker = fit_ranker(split, shop, vectors)
    progress("step 2 of 4: comparing on the newest baskets")
    passed, said = (True, "Not compared.") if force else _compare(split, ranker, served, secret, threshold, shop)
    if not passed:
        return False, said
    progress("step 3 of 4: assembling the version")
    prices = shop.items.set_index("item_id")["price"].reindex(split.items["item_id"]).to_numpy(float)
    names, households = split.items["name"].to_list(), split.households.to_list()
    past = together(split.train, split.validation)
    anonymous = "household" not in shop.known
    data = ShopData(
        split.items, prices, households, past, split.test, names, kind_labels(names).tolist(), anonymous, vectors
    )
    with contextlib.ExitStack() as stack:
        words = Path(stack.enter_context(tempfile.TemporaryDirectory())) if encoder else None
        version = assemble(ranker, data, _export(words), secret)
        everything = together(past, split.test)
        version.ranker, version.exam = ranker.refresh(everything), {}  # it counts those baskets now
        version.purchases, version.visits = household_purchases(everything)
        version.pseudonyms = [pseudonym(h, secret) for h in households][: len(version.visits)]
        progress("step 4 of 4: saving it")
        name = save(version, served, words)
    known = {"until": str(everything.timestamps.max()), "dated": "time" in shop.known}
    (served / f"{name}.made.json").write_text(json.dumps(known), encoding="utf-8")
    prune(served, 5)
    return True, f"{said} Version {name} is the current one; a running service takes it up by itself."


def _export(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    from recutils.service.onnx_encoder import export_onnx
    from recutils.text import load_encoder

    return export_onnx(load_encoder(), folder)


def _compare(
    split: Split, ranker: HybridRanker, served: Path, secret: bytes, threshold: float, shop: Shop
) -> tuple[bool, str]:
    """Is a new version good enough, and why."""
    current = served / "CURRENT"
    fresh, first = split.test, not current.exists()
    if not first:
        made = served / f"{current.read_text().strip()}.made.json"
        until = np.datetime64(json.loads(made.read_text())["until"]) if made.exists() else fresh.timestamps.min()
        fresh = fresh[np.flatnonzero(fresh.timestamps > until)]
    queries, hidden = hide_one(sample_of(fresh, MOST_COMPARED))
    if len(queries) < FEWEST_COMPARED:
        if first:
            return True, f"Only {len(queries)} new baskets of three products or more: not compared with anything."
        return False, (
            f"Only {len(queries)} baskets of three products or more are newer than the current version; "
            f"{FEWEST_COMPARED} are needed to compare. It stays (--force takes the new one all the same)."
        )
    gate = Gate(queries, hidden, split.items["item_id"].astype(str).to_list(), split.households.to_list())
    new = gate.ndcg(ranker)
    if first:
        old, what = gate.ndcg(Popularity().fit(split.train)), "plain popularity"
    else:
        old, what = gate.ndcg_of_version(load(served), secret), "the current version"
    return gate.verdict(new, old, what, threshold)


def served_folder(folder: Path) -> Path:
    """Where the versions of a shop lie: `served` beside its files."""
    return (folder if folder.is_dir() else folder.parent) / "served"


def serve_folder(folder: Path, host: str, port: int, quiet: bool = False) -> None:
    """Serve a shop until a signal ends it. It answers at once; a missing version is built in a process beside it."""
    from recutils.service.__main__ import with_key
    from recutils.service.server import run

    if not folder.exists():
        raise StoreError(
            f"{folder} does not exist; name a folder with a shop's files, or one file. (The book's store is served by "
            f"python -m recutils.service.)"
        )
    served = served_folder(folder)
    settings = with_key(served, f"http://{host}:{port}")
    building = None
    if not (served / "CURRENT").exists():
        print("Building the first version; until then /ready answers 503.", flush=True)
        # Words by groups of letters, since that takes seconds; `recutils update` brings the encoder where there is one.
        command = [sys.executable, "-m", "recutils.cli", "update", str(folder), "--no-encoder"]
        command += ["--quiet"] if quiet else []
        building = subprocess.Popen(command, preexec_fn=lambda: os.nice(10))  # answers come first
    try:
        run(settings, host, port)
    finally:
        if building is not None and building.poll() is None:
            building.terminate()
            building.wait()
