"""What the training weeks say of households and of items."""

import pandas as pd

from recutils.data.complete_journey import journey_table, promotion_flags
from recutils.data.schema import Split, Store, item_text


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
        lines = lines.assign(discounted=lines["discount"] > 0, **promotion_flags(lines))
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
