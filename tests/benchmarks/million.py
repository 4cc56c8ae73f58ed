"""A million households and 20,000 items, generated: household features and the service's artefact in under 4 GB.

Run by `make bench`. Prints seconds and the peak memory of this process after each step; fails above the limit. The
members are those whose memory grows with what was bought: EASE holds items times items and is left out.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from recutils import models
from recutils.data.schema import Baskets
from recutils.ranker import FeatureBuilder, HybridRanker, RankerSettings
from recutils.service import artifact

LIMIT = 4.0  # GB


def generated(n_households: int, n_items: int, per_household: int = 2, size: int = 6) -> Baskets:
    """Baskets of up to `size` items, popular ones more often, in a year."""
    rng = np.random.default_rng(0)
    weight = np.cumsum(1 / (np.arange(n_items) + 50))
    n = n_households * per_household
    columns = np.empty(n * size, np.int32)
    for start in range(0, len(columns), 1_000_000):
        part = columns[start : start + 1_000_000]
        part[:] = np.searchsorted(weight / weight[-1], rng.random(len(part)))
    matrix = sparse.csr_matrix((np.ones(n * size, np.float32), columns, np.arange(0, n * size + 1, size)), (n, n_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    days = np.sort(rng.integers(365, size=n)) * np.timedelta64(1, "D")
    return Baskets(matrix, rng.permutation(n) % n_households, np.datetime64("2024-01-01", "ns") + days)


def peak() -> float:
    """The most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def serve(ranker: HybridRanker, baskets: Baskets, vectors: np.ndarray) -> artifact.Artifact:
    """What would be served, with plain names and without a text encoder."""
    n_households, n_items = ranker.n_households, len(vectors)
    ids = [f"i{n}" for n in range(n_items)]
    return artifact.Artifact(
        ranker=ranker,
        item_ids=ids,
        names=ids,
        departments=["shop"] * n_items,
        prices=np.ones(n_items),
        kinds=np.arange(n_items),
        affinity=sparse.csr_matrix((n_items, n_items), dtype=np.float32),
        substitutes=np.full((n_items, 1), -1),
        pseudonyms=[f"{n:032x}" for n in range(n_households)],
        purchases=models.purchases(baskets),
        visits=np.bincount(baskets.households, minlength=n_households),
        vocabulary=["word"],
        bm25_weights=sparse.csr_matrix((1, n_items), dtype=np.float32),
        text_embeddings=vectors,
        reference={},
    )


def main() -> None:
    """Print a line a step."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--households", type=int, default=1_000_000)
    arguments.add_argument("--items", type=int, default=20_000)
    given = arguments.parse_args()
    clock = time.perf_counter()

    def report(step: str) -> None:
        nonlocal clock
        print(f"{step:<32}{time.perf_counter() - clock:7.1f} s, peak {peak():.2f} GB", flush=True)
        clock = time.perf_counter()

    baskets = generated(given.households, given.items)
    vectors = np.random.default_rng(1).standard_normal((given.items, 64)).astype(np.float32)
    groups = pd.DataFrame({"department": np.arange(given.items) % 30, "type": np.arange(given.items) % 2000})
    report(f"{baskets.matrix.nnz:,} purchases made")
    FeatureBuilder({}, groups).fit_item_features(baskets).fit_household_features(baskets)
    report("item and household features")
    members = {
        "text": models.EmbeddingRecommender(vectors),
        "recency": models.HouseholdRecency(),
        "session_knn": models.HouseholdSessionKNN(),
    }
    settings = RankerSettings(n_trees=20)
    labels = baskets[np.arange(500)]
    ranker = HybridRanker(members, groups, None, labels, settings).fit(baskets)
    report("ranker of three members")
    with tempfile.TemporaryDirectory() as folder:
        version = artifact.save(serve(ranker, baskets, vectors), Path(folder))
        report("artefact saved")
        del ranker
        loaded = artifact.load(Path(folder), version)
        report("artefact loaded")
        basket = np.arange(5)
        times = []
        for household in range(0, given.households, max(given.households // 200, 1)):
            start = time.perf_counter()
            loaded.ranker.recommend_one(basket, household, None, 10)
            times.append(time.perf_counter() - start)
        report(f"one basket, median {1000 * np.median(times):.1f} ms")
    if peak() > LIMIT:
        raise SystemExit(f"The peak is above {LIMIT} GB.")


if __name__ == "__main__":
    main()
