"""Exact search against faiss at 6,263, 100,000 and 1,000,000 items: the shop's vectors and neighbours of them.

Run by `make bench`. One thread, one query at a time; `found` is the share of the ten true neighbours.
"""

import time

import faiss
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from recutils import data, text

CELLS = {6_263: 64, 100_000: 256, 1_000_000: 1024}


def grown(words: np.ndarray, n: int) -> np.ndarray:
    """n unit vectors around the shop's own (n_items, 384)."""
    if n == len(words):
        return words
    rng = np.random.default_rng(0)
    near = rng.standard_normal((n, words.shape[1]), dtype=np.float32)
    near *= 0.03
    for start in range(0, n, 100_000):
        part = near[start : start + 100_000]
        part += words[rng.integers(len(words), size=len(part))]
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    return near


def main() -> None:
    """Print the table."""
    split = data.time_split(data.load_store())
    words = text.shop_vectors(
        data.item_text(split.items).to_list(), data.cold_validation_split(data.hide_cold_items(split)).train.matrix
    )
    asked = np.asarray(split.validation.matrix[:100] @ words)
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-9)
    rows = []
    faiss.omp_set_num_threads(2)
    for n, cells in CELLS.items():
        vectors = grown(words, n)
        start = time.perf_counter()
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(384), 384, cells, faiss.METRIC_INNER_PRODUCT)
        ivf.train(vectors[: 40 * cells])
        ivf.add(vectors)
        built = time.perf_counter() - start
        ways = {"numpy": lambda q, v=vectors: np.argpartition(-(v @ q), 10)[:10]}
        for probes in (4, 16):
            ways[f"faiss IVF, {cells} cells, {probes} looked into"] = (probes, ivf)
        truth = [set(ways["numpy"](q)) for q in asked]
        for name, way in ways.items():
            if isinstance(way, tuple):
                way[1].nprobe = way[0]
                way = lambda q, index=way[1]: index.search(q[None], 10)[1][0]  # noqa: E731
            faiss.omp_set_num_threads(1)
            with threadpool_limits(1):
                way(asked[0])
                start = time.perf_counter()
                found = [way(q) for q in asked]
                took = (time.perf_counter() - start) / len(asked)
            faiss.omp_set_num_threads(2)
            share = np.mean([len(set(f) & t) / 10 for f, t in zip(found, truth, strict=True)])
            rows.append((n, name, 1000 * took, share, built if "IVF" in name else 0.0))
        del vectors, ivf, ways
    columns = ["items", "search", "ms a query", "found", "s to build"]
    print(pd.DataFrame(rows, columns=columns).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
