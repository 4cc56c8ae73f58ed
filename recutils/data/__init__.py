"""A shop's transactions: read, checked, split by time, described (chapter 01)."""

from recutils.data.checks import OPTIONAL, REQUIRED
from recutils.data.complete_journey import (
    ITEM_TEXT,
    NOT_MERCHANDISE,
    SHOP_CLOCK,
    exposed,
    journey_table,
    promotion_exposure,
)
from recutils.data.features import household_features, item_features
from recutils.data.load import load_store
from recutils.data.own_shop import ANONYMOUS
from recutils.data.schema import Baskets, Split, Store, StoreError, StoreWarning, item_text, make_baskets
from recutils.data.split import hide_cold_items, practice_shelf, time_split

__all__ = [
    "ANONYMOUS",
    "ITEM_TEXT",
    "NOT_MERCHANDISE",
    "OPTIONAL",
    "REQUIRED",
    "SHOP_CLOCK",
    "Baskets",
    "Split",
    "Store",
    "StoreError",
    "StoreWarning",
    "exposed",
    "hide_cold_items",
    "household_features",
    "item_features",
    "item_text",
    "journey_table",
    "load_store",
    "make_baskets",
    "practice_shelf",
    "promotion_exposure",
    "time_split",
]
