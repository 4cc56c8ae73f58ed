"""Checks of a shop's tables; each message names the file, the column and how to mend it."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recutils.data.schema import StoreError, StoreWarning


def read_table(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    """The csv or parquet table of this name and its file's name. Raises StoreError where it cannot be read."""
    found = [folder / f"{name}{end}" for end in (".csv", ".parquet") if (folder / f"{name}{end}").exists()]
    if not found:
        raise StoreError(f"{folder} holds no {name}.csv or {name}.parquet; put one there (see 'Your own shop').")
    if len(found) > 1:
        raise StoreError(f"{folder} holds both {name}.csv and {name}.parquet; remove one of them.")
    path = found[0]
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8") if path.suffix == ".csv" else pd.read_parquet(path)
    except UnicodeDecodeError as error:
        raise StoreError(f"{path.name} is not UTF-8 (byte {error.start}); save it again as UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise StoreError(f"{path.name} is empty; it needs a header line and rows.") from error
    except (pd.errors.ParserError, pa.ArrowException, OSError) as error:
        raise StoreError(f"{path.name} cannot be read ({str(error).splitlines()[0]}); write it again.") from error
    if table.empty:
        raise StoreError(f"{path.name} has a header and no rows; export it again.")
    return table, path.name


def require_columns(table: pd.DataFrame, columns: list[str], where: str) -> None:
    """Raises StoreError where a column is missing."""
    missing = [c for c in columns if c not in table]
    if missing:
        raise StoreError(
            f"{where} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. "
            f"Rename the column that holds it."
        )


UTC_OFFSET = r"([T ]\d{2}[\d:.,]*)\s*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"  # after a time of day


def parse_dates(values: pd.Series, where: str) -> pd.Series:
    """ISO 8601 dates as datetimes of the shop's own clock: a UTC offset is dropped, the time beside it kept.

    Raises StoreError for numbers and for what is no date.
    """
    if pd.api.types.is_numeric_dtype(values):
        raise StoreError(f"{where}: timestamp holds numbers; write dates as 2017-01-31 18:30:00.")
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.dt.tz_localize(None)
    written = values.astype(str).str.strip().str.replace(UTC_OFFSET, r"\1", regex=True)
    dates = pd.to_datetime(written.where(values.notna()), format="ISO8601", errors="coerce")
    bad = dates.isna() & values.notna()
    if bad.any():
        raise StoreError(
            f"{where}: {int(bad.sum())} values of timestamp are not dates, the first in row {_row(bad)}: "
            f"{values[bad].iloc[0]!r}. Write them as 2017-01-31 18:30:00."
        )
    return dates


def parse_numbers(values: pd.Series, where: str) -> pd.Series:
    """Floats, gaps as nan. Raises StoreError for what is no finite number."""
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    bad = (numbers.isna() & values.notna()) | np.isinf(numbers)
    if bad.any():
        raise StoreError(
            f"{where}: {int(bad.sum())} values of {values.name} are not numbers, the first in row {_row(bad)}: "
            f"{values[bad].iloc[0]!r}. Write them as 1 or 2.50."
        )
    return numbers


def _row(bad: pd.Series) -> int:
    """The row of the first bad value, counted from 1 after the header."""
    return int(bad.to_numpy().argmax()) + 1


def align_types(left: pd.Series, right: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Both as they are where their types are equal, else both as text."""
    if left.dtype == right.dtype:
        return left, right
    return left.astype(str), right.astype(str)


def check_ids(transactions: pd.DataFrame, items: pd.DataFrame, where: str, where_items: str) -> None:
    """Raises StoreError for repeated items and for baskets of more than one household."""
    twice = items["item_id"].duplicated()
    if twice.any():
        raise StoreError(
            f"{where_items}: {int(twice.sum())} rows repeat an item_id, the first {items['item_id'][twice].iloc[0]!r}; "
            f"keep one row an item."
        )
    owners = transactions[["basket_id", "household_id"]].drop_duplicates()["basket_id"]
    shared = owners.duplicated()
    if shared.any():
        raise StoreError(
            f"{where}: {owners[shared].nunique()} basket_id values belong to more than one household_id, the first "
            f"{owners[shared].iloc[0]!r}; make basket_id unique, for example by joining it with the shop and the day."
        )


def drop_lines(
    transactions: pd.DataFrame, items: pd.DataFrame, where: str, where_items: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The lines that can be used, and a table of `reason` and `lines` of the others; warns of each reason."""
    unknown = ~transactions["item_id"].isin(items["item_id"])
    returned = transactions.get("quantity", pd.Series(1.0, transactions.index)) < 0
    reasons = {
        f"item_id unknown to {where_items}": unknown,
        "quantity below zero (returns)": returned & ~unknown,
    }
    dropped = pd.DataFrame([(r, int(hit.sum())) for r, hit in reasons.items()], columns=["reason", "lines"])
    for reason, lines in dropped[dropped["lines"] > 0].itertuples(index=False):
        warnings.warn(f"{where}: {lines} lines left out: {reason}.", StoreWarning, stacklevel=4)
    kept = transactions[~unknown & ~returned].reset_index(drop=True)
    if kept.empty:
        raise StoreError(f"{where}: no line is left; its item_id values do not match those of {where_items}.")
    anonymous = int(kept["household_id"].isna().sum())
    if anonymous:
        message = f"{where}: {anonymous} lines have no household_id; their baskets are kept as anonymous."
        warnings.warn(message, StoreWarning, stacklevel=4)
    return kept, dropped
