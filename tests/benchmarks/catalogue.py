"""Ten most similar of a million items by faiss: recall against time, memory and the time of building (chapter 10b).

`make bench`, or `python tests/benchmarks/catalogue.py`. The vectors are chapter 10b's own (`many_items`: the store's
item factors with noise), its indexes too (`INDEXES`). Each index is built in a process of its own on one core. Results
go to data/benchmarks/catalogue.json as they come; what stands there of the same code is not measured again.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from chapter import definitions, plain_code  # noqa: E402

KEPT = ROOT / "data" / "benchmarks" / "catalogue.json"
N_ITEMS, N_QUERIES, K = 1_000_000, 500, 10


def chapter() -> dict:
    """What chapter 10b defines: vectors, indexes, recall."""
    return vars(definitions("10b_training_and_serving", "many_items", "INDEXES", "store_factors", "recall_at"))


def fingerprint() -> str:
    """A hash of the code that the measurements depend on."""
    own = chapter()
    text = [plain_code(own[name]) for name in ("many_items", "recall_at")]
    parts = [*text, repr({n: (f, o, v) for n, (f, o, v) in own["INDEXES"].items()}), str((N_ITEMS, N_QUERIES, K))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def one(name: str, folder: Path) -> None:
    """In the child: build an index, search with each of its settings, print a row each."""
    import faiss

    faiss.omp_set_num_threads(1)
    own = chapter()
    description, option, values = own["INDEXES"][name]
    items = np.load(folder / "items.npy")
    queries = np.load(folder / "queries.npy")
    start = time.perf_counter()
    index = faiss.index_factory(items.shape[1], description, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(items[:: max(1, len(items) // 200_000)])
    index.add(items)
    built = time.perf_counter() - start
    faiss.write_index(index, str(folder / "index"))
    size = (folder / "index").stat().st_size / 1e6
    truth = folder / "truth.npy"
    rows = []
    for value in values or [None]:
        if value is not None:
            faiss.ParameterSpace().set_index_parameter(index, option, value)
        index.search(queries[:10], K)
        start = time.perf_counter()
        found = np.vstack([index.search(query[None], K)[1] for query in queries])
        ms = 1000 * (time.perf_counter() - start) / len(queries)
        if not truth.exists():
            np.save(truth, found)
        recall = own["recall_at"](found, np.load(truth))
        rows.append({"setting": f"{option} {value}" if option else "", "recall": recall, "ms a query": round(ms, 3)})
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e6  # type: ignore[index]
    print(
        json.dumps(
            [{"built, s": round(built, 1), "index MB": round(size), "peak GB": round(peak, 2)} | r for r in rows]
        )
    )


def main() -> None:
    """Measure what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--one")
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.one:
        return one(given.one, given.folder)
    own, code = chapter(), fingerprint()
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    rows = [row for row in rows if row["code"] == code]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = own["many_items"](own["store_factors"](), N_ITEMS)
        rng = np.random.default_rng(1)
        np.save(folder / "items.npy", items)
        np.save(folder / "queries.npy", items[rng.choice(N_ITEMS, N_QUERIES, replace=False)])
        del items
        for index in own["INDEXES"]:  # the exact one first: it makes the truth
            if any(row["index"] == index for row in rows) and index != "exact":
                continue
            command = [sys.executable, __file__, "--one", index, "--folder", name]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
            new = [{"index": index, "items": N_ITEMS, "code": code} | row for row in json.loads(out.splitlines()[-1])]
            rows = [row for row in rows if row["index"] != index] + new
            print(*new, sep="\n", flush=True)
            rows.sort(key=lambda row: list(own["INDEXES"]).index(row["index"]))
            KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
