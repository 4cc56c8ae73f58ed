"""A reader's own shop from two files (see data/own_shop.md)."""

from pathlib import Path

from recutils.data.checks import (
    OPTIONAL,
    REQUIRED,
    _check_ids,
    _dates,
    _leave_out,
    _need_columns,
    _numbers,
    _read_table,
    _same_type,
)
from recutils.data.schema import Store, StoreError, _week

ANONYMOUS = -1


def _own_shop(folder: Path) -> Store:
    transactions, where = _read_table(folder, "transactions")
    items, where_items = _read_table(folder, "items")
    _need_columns(transactions, REQUIRED, where)
    _need_columns(items, ["item_id"], where_items)
    if items.shape[1] < 2:
        raise StoreError(f"{where_items} has no text column; add one that describes the item, such as 'name'.")
    transactions = transactions[[c for c in REQUIRED + OPTIONAL if c in transactions]]
    transactions["timestamp"] = _dates(transactions["timestamp"], where)
    for column in transactions.columns.intersection(OPTIONAL):
        transactions[column] = _numbers(transactions[column], where)
    for table, name, columns in ((transactions, where, REQUIRED), (items, where_items, ["item_id"])):
        for column in columns:
            if column != "household_id" and table[column].isna().any():
                count = int(table[column].isna().sum())
                raise StoreError(f"{name}: {count} rows have no {column}; fill them in or remove those rows.")
    transactions["item_id"], items["item_id"] = _same_type(transactions["item_id"], items["item_id"])
    _check_ids(transactions, items, where, where_items)
    transactions, dropped = _leave_out(transactions, items, where, where_items)
    transactions["week"] = _week(transactions["timestamp"])
    return Store(folder.name, transactions, items.reset_index(drop=True), dropped)
