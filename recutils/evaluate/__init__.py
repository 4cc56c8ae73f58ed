"""The book's evaluation protocol (chapter 01): metrics, tasks, intervals, result rows and the leaderboard."""

from recutils.evaluate.metrics import (
    bootstrap_ci,
    coverage,
    diversity,
    hit_rate_at_k,
    mrr,
    ndcg_at_k,
    rank_relevant,
    recall_at_k,
)
from recutils.evaluate.results import fingerprint, leaderboard, provenance, read_results, results_name, save_results
from recutils.evaluate.tasks import Evaluation, cold_items, complete_the_basket, hide_one, next_basket

__all__ = [
    "Evaluation",
    "bootstrap_ci",
    "cold_items",
    "complete_the_basket",
    "coverage",
    "diversity",
    "fingerprint",
    "hide_one",
    "hit_rate_at_k",
    "leaderboard",
    "mrr",
    "ndcg_at_k",
    "next_basket",
    "provenance",
    "rank_relevant",
    "read_results",
    "recall_at_k",
    "results_name",
    "save_results",
]
