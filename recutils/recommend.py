"""The contract of every recommender under its old address; new code imports `recutils.models`."""

from recutils.models.base import Recommender

__all__ = ["Recommender"]
