"""The ranker in two stages: candidates, features, LambdaMART (chapter 05)."""

from recutils.ranker.candidates import holdout_queries
from recutils.ranker.features import FeatureBuilder
from recutils.ranker.ranker import HybridRanker, RankerSettings, Trees, shop_members, shop_ranker

__all__ = [
    "FeatureBuilder",
    "HybridRanker",
    "RankerSettings",
    "Trees",
    "holdout_queries",
    "shop_members",
    "shop_ranker",
]
