"""The book's evaluation protocol (chapter 01): tasks, metrics, intervals and the leaderboard.

Every task ranks all of its candidates, never a sample (all items not in the basket; the cold items on the cold
shelf), and every model has seen the training weeks only.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data import Baskets, Split
from recutils.recommend import Recommender, top_k, without_basket
from recutils.settings import REPOSITORY_RESULTS, SEED, profile, results_folder

# ---------------------------------------------------------------------------------------------- metrics
# `ranks` is (n_queries, max_relevant): the places, from 1, of a query's relevant items among all candidates;
# inf where a relevant item was not ranked, nan where a query has fewer relevant items than the widest one.
# Every function returns one value a query; the metric is their mean.


def hit_rate_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """1 where at least one relevant item is among the first `k`, else 0.

    >>> hit_rate_at_k(np.array([[3.0], [11.0], [np.inf]]), k=10)
    array([1., 0., 0.])
    """
    return (ranks <= k).any(axis=1).astype(float)


def recall_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """The share of a query's relevant items among the first `k`; the divisor is the number of relevant items."""
    return (ranks <= k).sum(axis=1) / (~np.isnan(ranks)).sum(axis=1)


def ndcg_at_k(ranks: np.ndarray, k: int = 10) -> np.ndarray:
    """Discounted gain: sum of 1 / log2(1 + rank) over relevant items among the first `k`, over its best value.

    The best value has the relevant items, at most `k` of them, in the first places. With one relevant item
    at place r <= k this is 1 / log2(1 + r). Source: Järvelin and Kekäläinen (2002).

    >>> ndcg_at_k(np.array([[1.0], [3.0], [11.0]]), k=10)
    array([1. , 0.5, 0. ])
    """
    gain = np.where(ranks <= k, 1 / np.log2(1 + np.where(np.isnan(ranks), np.inf, ranks)), 0.0).sum(axis=1)
    best = np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))
    n_relevant = (~np.isnan(ranks)).sum(axis=1)
    return gain / best[np.minimum(n_relevant, k) - 1]


def mrr(ranks: np.ndarray) -> np.ndarray:
    """Reciprocal rank: 1 / place of the first relevant item in the whole ranking, 0 where none was ranked."""
    return 1 / np.nanmin(ranks, axis=1)


def coverage(top: np.ndarray, n_items: int) -> float:
    """The share of `n_items` that stand in at least one of the lists `top` (n_queries, k), -1 being no item."""
    return len(np.unique(top[top >= 0])) / n_items


def diversity(top: np.ndarray, groups: np.ndarray) -> float:
    """The share of pairs within a list whose items differ in group, averaged over lists of two items or more.

    `groups` (n_items,) holds a label an item, such as its category. 0: all alike; 1: all different.
    """
    labels = np.where(top >= 0, pd.factorize(groups)[0][top], -1)  # (n_queries, k)
    both = (labels[:, :, None] >= 0) & (labels[:, None, :] >= 0)
    differ = both & (labels[:, :, None] != labels[:, None, :])
    n = (labels >= 0).sum(axis=1)
    lists = n > 1
    return float((differ.sum(axis=(1, 2))[lists] / (n * (n - 1))[lists]).mean())


METRICS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "hr": hit_rate_at_k,
    "ndcg": ndcg_at_k,
    "recall": recall_at_k,
    "mrr": lambda ranks, k: mrr(ranks),
}


def bootstrap_ci(
    values: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95, n: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, drawing whole groups where `groups` (n_values,) is given.

    Baskets of one household resemble each other, so the protocol draws households; -1 (unknown) is a group
    of its own each time. Returns (low, high). Source: Efron and Tibshirani (1993).
    """
    values = np.asarray(values, dtype=float)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups).copy()
    labels[labels < 0] = -1 - np.arange((labels < 0).sum())
    number = np.unique(labels, return_inverse=True)[1]
    totals, sizes = np.bincount(number, values), np.bincount(number)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(n):
        drawn = rng.integers(len(totals), size=len(totals))
        means.append(totals[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------- tasks


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
        end = {"n": len(self.ranks), **origin()}
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
    """The cold shelf: hide one cold item of each basket that has one and two warm ones, rank the cold items.

    `split` comes from `hide_cold_items`, and `model` was fitted on its `train`; the query keeps warm items only.
    """
    if not split.cold.any():
        raise ValueError("This split has no cold items; make one with hide_cold_items(split).")
    baskets = _period(split, on)
    warm, cold = (sparse.diags(mask.astype(np.float32)) for mask in (~split.cold, split.cold))
    queries, shelf = (
        Baskets(sparse.csr_matrix(baskets.matrix @ part), baskets.households, baskets.timestamps)
        for part in (warm, cold)
    )
    for part in (queries, shelf):
        part.matrix.eliminate_zeros()
    rows = (_sizes(shelf) >= 1) & (_sizes(queries) >= 2)
    hidden = hide_one(shelf[rows], at_least=1, seed=seed)[1]
    return _evaluate(model, queries[rows], hidden, "cold_items", on, k, candidates=split.cold)


def hide_one(baskets: Baskets, at_least: int = 3, seed: int = SEED) -> tuple[Baskets, sparse.csr_matrix]:
    """From each basket of `at_least` items take one at random: the open baskets and the hidden items.

    Both have a row a kept basket and a column an item; a row of the second holds a single 1.
    """
    baskets = baskets[_sizes(baskets) >= at_least]
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
        scores = without_basket(model.score(part).copy(), part)
        if np.isnan(scores).any():
            raise ValueError(f"{type(model).__name__}.score returned NaN; use -inf where it has nothing to say.")
        if candidates is not None:
            scores[:, ~candidates] = -np.inf
        ranks.append(rank_relevant(scores, relevant[start : start + size], width))
        top.append(top_k(scores, k))
    n_items = int(candidates.sum()) if candidates is not None else queries.matrix.shape[1]
    return Evaluation(task, on, k, np.concatenate(ranks), np.concatenate(top), queries.households, n_items)


def rank_relevant(scores: np.ndarray, relevant: sparse.csr_matrix, width: int) -> np.ndarray:
    """Places of the relevant items when each row of `scores` is sorted: (n_queries, width), see `ranks` above.

    A relevant item is placed behind all others with its score, so a model that scores all alike gains nothing.
    """
    row, column = relevant.nonzero()
    own = scores[row, column]
    place = (scores[row] >= own[:, None]).sum(axis=1).astype(float)
    # Relevant items tied with each other share a block's last places, one each.
    place -= pd.DataFrame({"row": row, "own": own}).groupby(["row", "own"]).cumcount().to_numpy()
    place[np.isneginf(own)] = np.inf
    ranks = np.full((scores.shape[0], width), np.nan)
    ranks[row, np.arange(len(row)) - relevant.indptr[:-1][row]] = place
    return ranks


# ---------------------------------------------------------------------------------------------- results


def origin() -> dict[str, str]:
    """What every result row says of the run that made it: `profile` and `source` (`notebook` or `long_run`)."""
    return {"profile": profile(), "source": "long_run" if profile() == "long" else "notebook"}


def fingerprint(configuration: dict) -> str:
    """A short hash of a configuration: equal settings, in whatever order, have equal hashes."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]


def results_name(chapter: str) -> str:
    """The file, without its ending, in which this profile keeps a chapter's rows."""
    return chapter if profile() == "cpu" else f"{chapter}.{profile()}"


def save_results(chapter: str, rows: list[dict], configuration: dict | None = None) -> pd.DataFrame:
    """Show a chapter's headline rows and, where `RECUTILS_RESULTS` names a folder, keep them as `<chapter>.json`.

    A long run's rows go to `<chapter>.long.json` beside it, each with the fingerprint of its `configuration`; those of
    the profile `gpu` to `<chapter>.gpu.json`.
    """
    name = results_name(chapter)
    if profile() == "long":
        rows = [{**row, "configuration": fingerprint(configuration or {})} for row in rows]
    if "RECUTILS_RESULTS" in os.environ:
        folder = results_folder()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            [{k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()} for r in rows], indent=1
        )
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return pd.DataFrame(rows)


def read_results(folder: Path | None = None) -> pd.DataFrame:
    """All result rows that chapters have kept, from `folder` (default: `settings.results_folder()`).

    Rows of long runs that the folder lacks are those that came with the repository: no short run makes them. Those of
    the profile `gpu` are read in that profile only, after the chapter's others.
    """
    stored = [] if folder else REPOSITORY_RESULTS.glob("*.long.json")
    files = {p.name: p for p in (*stored, *(folder or results_folder()).glob("*.json"))}
    names = [name for name in sorted(files) if profile() == "gpu" or not name.endswith(".gpu.json")]
    return pd.DataFrame([row for name in names for row in json.loads(files[name].read_text(encoding="utf-8"))])


def leaderboard(
    results: pd.DataFrame, task: str = "complete_the_basket", metric: str = "ndcg@10", split: str = "test"
) -> pd.DataFrame:
    """One task's models from worst to best on one metric: `model, value, low, high, n, chapter`; no long runs.

    Where several chapters measured a model, the last one counts.
    """
    wanted = {"task": task, "metric": metric, "split": split, "source": "notebook"}
    rows = results[(results[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    columns = ["model", "value", "low", "high", "n", "chapter"]
    rows = rows.sort_values("chapter", kind="stable").drop_duplicates("model", keep="last")
    return rows.sort_values("value")[columns].reset_index(drop=True)
