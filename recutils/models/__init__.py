"""Recommenders under one contract: fit on baskets, score every item for a query (chapters 01, 02, 04 and 05).

A query is an open basket, its household and its moment (`Baskets`). Scores compare items within one query
only; -inf means that the model has nothing to say about an item."""

from recutils.models.base import Recommender, age_in_days, top_k, without_basket
from recutils.models.embeddings import EmbeddingRecommender, InnerProduct
from recutils.models.factors import ALS, FeatureFactors
from recutils.models.habits import TIFUKNN, HouseholdFrequency, HouseholdRecency, OwnBaskets, Popularity
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN, UserKNN, keep_largest
from recutils.models.rules import RuleRecommender

__all__ = [
    "ALS",
    "EASE",
    "TIFUKNN",
    "EmbeddingRecommender",
    "FeatureFactors",
    "HouseholdFrequency",
    "HouseholdRecency",
    "InnerProduct",
    "ItemKNN",
    "OwnBaskets",
    "Popularity",
    "Recommender",
    "RuleRecommender",
    "UserKNN",
    "age_in_days",
    "keep_largest",
    "top_k",
    "without_basket",
]
