"""One door to every store."""

from pathlib import Path

from recutils.data.complete_journey import _complete_journey
from recutils.data.own_shop import _own_shop
from recutils.data.schema import Store


def load_store(source: str | Path = "complete_journey") -> Store:
    """Read the embedded store, or a folder with a shop's own `transactions` and `items` (csv or parquet).

    `transactions`: `basket_id, household_id, item_id, timestamp`, optional `quantity, price`.
    `items`: `item_id` and at least one text column. Csv files are UTF-8, dates ISO 8601.

    Raises StoreError where a file cannot be used; warns (StoreWarning) with counts where lines are left out.
    """
    return _complete_journey() if source == "complete_journey" else _own_shop(Path(source))
