"""The ranker in two stages: candidates, features, LambdaMART (chapter 05)."""

from recutils.ranker.candidates import Candidates, hide_in_turn, time_slot
from recutils.ranker.ranker import BATCH, HybridRanker, shop_members, shop_ranker

__all__ = [
    "BATCH",
    "Candidates",
    "HybridRanker",
    "hide_in_turn",
    "shop_members",
    "shop_ranker",
    "time_slot",
]
