"""A reader's own shop from two files (see data/own_shop.md)."""

from pathlib import Path

from recutils.data.checks import (
    align_types,
    check_ids,
    drop_lines,
    parse_dates,
    parse_numbers,
    read_table,
    require_columns,
)
from recutils.data.schema import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, Store, StoreError, week_numbers


def load_own_shop(folder: Path) -> Store:
    """The `transactions` and `items` of a folder, checked; see `load_store` for columns and errors."""
    transactions, where = read_table(folder, "transactions")
    items, where_items = read_table(folder, "items")
    require_columns(transactions, REQUIRED_COLUMNS, where)
    require_columns(items, ["item_id"], where_items)
    if items.shape[1] < 2:
        raise StoreError(f"{where_items} has no text column; add one that describes the item, such as 'name'.")
    transactions = transactions[[c for c in REQUIRED_COLUMNS + OPTIONAL_COLUMNS if c in transactions]]
    transactions["timestamp"] = parse_dates(transactions["timestamp"], where)
    for column in transactions.columns.intersection(OPTIONAL_COLUMNS):
        transactions[column] = parse_numbers(transactions[column], where)
    for table, name, columns in ((transactions, where, REQUIRED_COLUMNS), (items, where_items, ["item_id"])):
        for column in columns:
            if column != "household_id" and table[column].isna().any():
                count = int(table[column].isna().sum())
                raise StoreError(f"{name}: {count} rows have no {column}; fill them in or remove those rows.")
    transactions["item_id"], items["item_id"] = align_types(transactions["item_id"], items["item_id"])
    check_ids(transactions, items, where, where_items)
    transactions, dropped = drop_lines(transactions, items, where, where_items)
    transactions["week"] = week_numbers(transactions["timestamp"])
    return Store(folder.name, transactions, items.reset_index(drop=True), dropped)
