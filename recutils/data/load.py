"""`load_store`, for the book's store and for a reader's own."""

from pathlib import Path

from recutils.data.complete_journey import load_complete_journey
from recutils.data.own_shop import load_own_shop
from recutils.data.schema import Store


def load_store(source: str | Path = "complete_journey") -> Store:
    """Read the embedded store, or a folder with a shop's own `transactions` and `items` (csv or parquet).

    `transactions`: `basket_id, household_id, item_id, timestamp`, optional `quantity, price`.
    `items`: `item_id` and at least one text column. Csv files are UTF-8, dates ISO 8601 by the
    shop's own clock (a UTC offset is dropped).

    Raises StoreError where a file cannot be used; warns (StoreWarning) with counts where lines are left out.
    """
    return load_complete_journey() if source == "complete_journey" else load_own_shop(Path(source))
