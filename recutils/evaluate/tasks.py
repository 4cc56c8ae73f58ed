"""The book's tasks (chapter 01): each ranks all of its candidates, never a sample.

Every model has seen the training weeks only.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets, Split
from recutils.evaluate.metrics import METRICS, bootstrap_ci, coverage, rank_relevant
from recutils.evaluate.results import provenance
from recutils.models.base import Recommender, mask_basket, top_k
from recutils.settings import SEED


@dataclass
class Evaluation:
    """What a model did on a task: `ranks` (n_queries, max_relevant), `top` (n_queries, k), who asked."""

    task: str
    on: str
    k: int
    ranks: np.ndarray
    top: np.ndarray
    households: np.ndarray
    n_items: int

    def values(self, metric: str) -> np.ndarray:
        """One value a query of `"hr@10"`, `"ndcg@10"`, `"recall@10"`, `"mrr"`, ... (any number after the @)."""
        name, _, k = metric.partition("@")
        if name not in METRICS or (k and not k.isdigit()) or (name == "mrr") == bool(k):
            raise ValueError(f"Unknown metric {metric!r}; use hr@K, ndcg@K, recall@K or mrr.")
        return METRICS[name](self.ranks, int(k or 0))

    def mean(self, metric: str) -> float:
        """The metric: the mean over queries."""
        return float(self.values(metric).mean())

    def rows(self, chapter: str, model: str, metrics: list[str] | None = None) -> list[dict]:
        """Rows for `data/results`: a metric each, with its 95 % interval (households drawn) and catalogue coverage."""
        start = {"chapter": chapter, "model": model, "task": self.task, "split": self.on}
        end = {"n": len(self.ranks), **provenance()}
        rows = []
        for metric in metrics or [f"hr@{self.k}", f"ndcg@{self.k}", "mrr"]:
            low, high = bootstrap_ci(self.values(metric), self.households)
            rows.append({**start, "metric": metric, "value": self.mean(metric), "low": low, "high": high, **end})
        spread = {
            "metric": f"coverage@{self.k}",
            "value": coverage(self.top, self.n_items),
            "low": None,
            "high": None,
        }
        return [*rows, {**start, **spread, **end}]


def complete_the_basket(
    model: Recommender, split: Split, k: int = 10, seed: int = SEED, on: str = "test"
) -> Evaluation:
    """The main task: hide one item of each basket of three or more, rank all items not left in the basket.

    `on` is `"test"` or `"validation"`; the hidden item is drawn with `seed`, the same for every model.
    """
    queries, hidden = hide_one(_period(split, on), seed=seed)
    return _evaluate(model, queries, hidden, "complete_the_basket", on, k)


def next_basket(model: Recommender, split: Split, k: int = 10, on: str = "test") -> Evaluation:
    """For each household seen in training: its first basket of the period, from nothing but who and when.

    All items of that basket are relevant.
    """
    baskets = _period(split, on)
    seen = np.isin(baskets.households, np.setdiff1d(split.train.households, [-1]))
    first = np.unique(np.where(seen, baskets.households, -1), return_index=True)  # rows are in order of time
    baskets = baskets[np.sort(first[1][first[0] >= 0])]
    empty = sparse.csr_matrix(baskets.matrix.shape, dtype=np.float32)
    queries = Baskets(empty, baskets.households, baskets.timestamps)
    return _evaluate(model, queries, baskets.matrix, "next_basket", on, k)


def cold_items(model: Recommender, split: Split, k: int = 50, seed: int = SEED, on: str = "test") -> Evaluation:
    """The cold start: hide one cold item of each basket that has one and two warm ones, rank the cold items.

    `split` comes from `hide_cold_items`, and `model` was fitted on its `train`; the query keeps warm items only.
    """
    if not split.cold.any():
        raise ValueError("This split has no cold items; make one with hide_cold_items(split).")
    baskets = _period(split, on)
    warm, cold = (sparse.diags(mask.astype(np.float32)) for mask in (~split.cold, split.cold))
    queries, cold_part = (
        Baskets(sparse.csr_matrix(baskets.matrix @ part), baskets.households, baskets.timestamps)
        for part in (warm, cold)
    )
    for part in (queries, cold_part):
        part.matrix.eliminate_zeros()
    rows = (_sizes(cold_part) >= 1) & (_sizes(queries) >= 2)
    hidden = hide_one(cold_part[rows], min_items=1, seed=seed)[1]
    return _evaluate(model, queries[rows], hidden, "cold_items", on, k, candidates=split.cold)


def hide_one(baskets: Baskets, min_items: int = 3, seed: int = SEED) -> tuple[Baskets, sparse.csr_matrix]:
    """From each basket of `min_items` items take one at random: the open baskets and the hidden items.

    Both have a row a kept basket and a column an item; a row of the second holds a single 1.
    """
    baskets = baskets[_sizes(baskets) >= min_items]
    matrix = baskets.matrix.copy()
    draw = np.random.default_rng(seed).random(len(baskets))
    place = matrix.indptr[:-1] + np.floor(draw * np.diff(matrix.indptr)).astype(int)
    hidden = sparse.csr_matrix(
        (np.ones(len(place), np.float32), (np.arange(len(place)), matrix.indices[place])), shape=matrix.shape
    )
    matrix.data[place] = 0
    matrix.eliminate_zeros()
    return Baskets(matrix, baskets.households, baskets.timestamps), hidden


def _sizes(baskets: Baskets) -> np.ndarray:
    return np.diff(baskets.matrix.indptr)


def _period(split: Split, on: str) -> Baskets:
    if on not in ("validation", "test"):
        raise ValueError(f"on is {on!r}; evaluate on 'validation' or 'test'.")
    return split.validation if on == "validation" else split.test


def _evaluate(
    model: Recommender,
    queries: Baskets,
    relevant: sparse.csr_matrix,
    task: str,
    on: str,
    k: int,
    candidates: np.ndarray | None = None,
) -> Evaluation:
    if len(queries) == 0:
        raise ValueError(f"The {on} period holds no basket that the task {task} can use.")
    width = int(np.diff(relevant.indptr).max())
    ranks, top = [], []
    size = 256
    for start, part in zip(range(0, len(queries), size), queries.batches(size), strict=True):
        scores = mask_basket(model.score(part).copy(), part)
        if np.isnan(scores).any():
            raise ValueError(f"{type(model).__name__}.score returned NaN; use -inf where it has nothing to say.")
        if candidates is not None:
            scores[:, ~candidates] = -np.inf
        ranks.append(rank_relevant(scores, relevant[start : start + size], width))
        top.append(top_k(scores, k))
    n_items = int(candidates.sum()) if candidates is not None else queries.matrix.shape[1]
    return Evaluation(task, on, k, np.concatenate(ranks), np.concatenate(top), queries.households, n_items)
