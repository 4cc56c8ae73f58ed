"""A shop's transactions: read, checked, split by time, described (chapter 01)."""

from recutils.data.complete_journey import journey_table, promotion_exposure, promotion_flags
from recutils.data.features import household_features, item_features
from recutils.data.load import load_store
from recutils.data.schema import ANONYMOUS, Baskets, Split, Store, StoreError, StoreWarning, item_text, make_baskets
from recutils.data.split import cold_validation_split, hide_cold_items, time_split

__all__ = [
    "ANONYMOUS",
    "Baskets",
    "Split",
    "Store",
    "StoreError",
    "StoreWarning",
    "cold_validation_split",
    "hide_cold_items",
    "household_features",
    "item_features",
    "item_text",
    "journey_table",
    "load_store",
    "make_baskets",
    "promotion_exposure",
    "promotion_flags",
    "time_split",
]
