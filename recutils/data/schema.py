"""What every shop is turned into: a store of lines and items, baskets, a split by time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

REQUIRED_COLUMNS = ["basket_id", "household_id", "item_id", "timestamp"]
OPTIONAL_COLUMNS = ["quantity", "price"]
ANONYMOUS = -1  # in `Baskets.households`: a basket of nobody known


class StoreError(ValueError):
    """A file of a shop cannot be used as it is; the message names the file, the column and how to mend it."""


class StoreWarning(UserWarning):
    """Lines of a shop's file were left out; the message says how many and why."""


@dataclass
class Store:
    """A shop's year.

    - `transactions`: one row a receipt line: `basket_id`, `household_id` (null: unknown), `item_id`,
      `timestamp` (the shop's own clock), `week` (1, 2, ..., weeks start on Monday), and where known
      `quantity` (units) and `price` (paid for one unit, in the shop's currency).
    - `items`: one row an item: `item_id` and text columns.
    - `dropped`: what was left out on reading: `reason`, `lines`.
    """

    name: str
    transactions: pd.DataFrame
    items: pd.DataFrame
    dropped: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"reason": [], "lines": []}))

    @property
    def text_columns(self) -> list[str]:
        """The columns of `items` that hold words."""
        return text_columns_of(self.items)


@dataclass
class Baskets:
    """Baskets, or queries, which are open baskets: row `b` of each field belongs to basket `b`.

    - `matrix`: csr, 0/1, (n_baskets, n_items)
    - `households`: int array (n_baskets,), a row of `Split.households`, or `ANONYMOUS` (-1) where unknown
    - `timestamps`: datetime64 array (n_baskets,)
    """

    matrix: sparse.csr_matrix
    households: np.ndarray
    timestamps: np.ndarray

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def __getitem__(self, rows: Any) -> "Baskets":
        rows = [rows] if isinstance(rows, (int, np.integer)) else rows  # one basket is a Baskets too
        return Baskets(self.matrix[rows], self.households[rows], self.timestamps[rows])

    def batches(self, size: int = 1024) -> Iterator["Baskets"]:
        """Yield the baskets in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


@dataclass
class Split:
    """The protocol's three periods over the same items.

    `items` has one row a warm item, in the order of the matrix columns; `cold` marks the columns that a
    cold-start experiment hides from training (all False otherwise).
    """

    items: pd.DataFrame
    households: pd.Index
    train: Baskets
    validation: Baskets
    test: Baskets
    validation_start: pd.Timestamp
    test_start: pd.Timestamp
    cold: np.ndarray


def week_numbers(timestamps: pd.Series) -> pd.Series:
    """The week of each timestamp: 1, 2, ...; weeks go from Monday to Sunday."""
    return (timestamps - first_monday(timestamps)).dt.days // 7 + 1


def first_monday(timestamps: pd.Series) -> pd.Timestamp:
    """Midnight of the Monday on or before the first timestamp: where week 1 begins."""
    first = timestamps.min()
    return first.normalize() - pd.Timedelta(days=first.day_of_week)


def text_columns_of(items: pd.DataFrame) -> list[str]:
    """The columns of words in a table of items: all that are not numbers, `item_id` left out."""
    return [c for c in items if c != "item_id" and not pd.api.types.is_numeric_dtype(items[c])]


def item_text(items: pd.DataFrame, columns: list[str] | None = None) -> pd.Series:
    """The words on an item: its text columns in lower case, joined by commas, gaps left out."""
    columns = columns or text_columns_of(items)
    words = items[columns].fillna("").astype(str)
    return words.apply(lambda row: ", ".join(" ".join(v.lower().split()) for v in row if v.strip()), axis=1)


def make_baskets(lines: pd.DataFrame, items: pd.DataFrame, households: pd.Index) -> Baskets:
    """Receipt lines to a 0/1 matrix over `items`; rows in order of time; baskets with none of them left out."""
    column = pd.Index(items["item_id"]).get_indexer(lines["item_id"])
    lines, column = lines[column >= 0], column[column >= 0]
    heads = lines.groupby("basket_id").agg(timestamp=("timestamp", "min"), household=("household_id", "first"))
    heads = heads.sort_values("timestamp", kind="stable")
    row = heads.index.get_indexer(lines["basket_id"])
    matrix = sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), shape=(len(heads), len(items)))
    matrix.data[:] = 1.0  # two lines of one item in one basket are one purchase
    known = households.get_indexer(heads["household"])  # a null household is not in the index: ANONYMOUS
    return Baskets(matrix, known, heads["timestamp"].to_numpy())
