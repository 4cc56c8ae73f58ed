"""Recommenders under one contract: fit on baskets, score every item for a query (chapters 01, 02, 04 and 05).

A query is an open basket, its household and its moment (`Baskets`). Scores compare items within one query
only; -inf means that the model has nothing to say about an item."""

from recutils.models.base import ANONYMOUS, Recommender, mask_basket, one_query, purchases, top_k
from recutils.models.baselines import BASELINES, TUNED, Blend, WithHistory, make_baseline
from recutils.models.embeddings import DotProduct, EmbeddingRecommender
from recutils.models.factors import ALS, FeatureFactors
from recutils.models.habits import TIFUKNN, HouseholdFrequency, HouseholdRecency, HouseholdSessionKNN, Popularity
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN, UserKNN, keep_largest
from recutils.models.rules import RuleRecommender

__all__ = [
    "ALS",
    "ANONYMOUS",
    "BASELINES",
    "EASE",
    "TIFUKNN",
    "TUNED",
    "Blend",
    "DotProduct",
    "EmbeddingRecommender",
    "FeatureFactors",
    "HouseholdFrequency",
    "HouseholdRecency",
    "HouseholdSessionKNN",
    "ItemKNN",
    "Popularity",
    "Recommender",
    "RuleRecommender",
    "UserKNN",
    "WithHistory",
    "keep_largest",
    "make_baseline",
    "mask_basket",
    "one_query",
    "purchases",
    "top_k",
]
