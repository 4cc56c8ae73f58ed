"""The report on a shop: one page of HTML that needs no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from recutils.data.schema import Split, StoreError
from recutils.shop import charts
from recutils.shop.compare import compare_models
from recutils.shop.pairs import best_sellers, bundles, find_rules
from recutils.shop.periods import split_periods
from recutils.shop.reading import Shop
from recutils.shop.summary import Shape, describe, warnings_of
from recutils.shop.words import item_vectors

Progress = Callable[[str], None]
DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


def write_report(
    shop: Shop, out: Path, progress: Progress = lambda step: None, encoder: bool = False
) -> dict[str, Any]:
    """Write the report on a shop to `out`; returns what it says, as the template takes it.

    `encoder`: products' words by the packaged encoder (extra `text`), else by groups of letters.
    """
    shape = describe(shop)
    said = _head(shop, shape) | _shape(shape)
    try:
        split, cut = split_periods(shop)
    except StoreError as error:
        said |= _nothing(str(error))
    else:
        progress("looking for pairs")
        rules = find_rules(split)
        progress("companions, substitutes, bundles")
        said |= _pairs(split, shop, rules, encoder)
        said |= _models(compare_models(split, progress), cut)
        said["first"] = _first(said)
    said |= _promotions(shop)
    said["trust"] = _trust(shop, shape, said)
    progress("writing the page")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_template().render(said), encoding="utf-8")
    return said


def _template() -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.PackageLoader("recutils", "shop"), autoescape=True, trim_blocks=True)
    return environment.get_template("template.html")


def _nothing(why: str) -> dict[str, Any]:
    """What the page says where nothing can be compared."""
    return {"rules": [], "sellers": [], "bundles": [], "models": [], "model_said": [why], "first": [], "cut": why}


def _head(shop: Shop, shape: Shape) -> dict[str, Any]:
    """Name, span, numbers, account, notes."""
    dated = shape.first is not None and shape.last is not None
    span = f"{shape.first:%Y-%m-%d} to {shape.last:%Y-%m-%d}." if dated else "Without dates."
    read, used = int(shop.account["lines"].iloc[0]), int(shop.account["lines"].iloc[-1])
    unit = shop.account["what"].iloc[0].removesuffix(" read")
    numbers = [("baskets", f"{shape.n_baskets:,}"), ("products", f"{shape.n_items:,}")]
    numbers += [("customers", f"{shape.n_households:,}")] if shape.n_households else []
    numbers += [("weeks", f"{shape.weeks:.0f}")] if dated else []
    numbers += [("median value of a basket", f"{shape.spend:,.2f}")] if np.isfinite(shape.spend) else []
    return {
        "name": shop.name.replace("_", " "),
        "span": span,
        "used": f"Of {read:,} {unit} {used:,} are used; what became of the others is said under the first line below.",
        "unit": unit,
        "numbers": numbers,
        "account": shop.account.to_dict("records"),
        "fields": shop.fields.to_dict("records"),
        "notes": shop.notes,
        "excluded": shop.excluded,
        "thin": warnings_of(shop, shape),
    }


def _shape(shape: Shape) -> dict[str, Any]:
    """Sentences and charts on the shape of the shop."""
    said = [
        f"{shape.head:.0%} of the products make 80 % of the sales (counted in baskets).",
        f"{shape.sizes[0] / shape.n_baskets:.0%} of the baskets hold one product, "
        f"{shape.sizes[-1] / shape.n_baskets:.0%} seven or more.",
    ]
    pictures = [
        charts.line(np.linspace(0, 1, 101), shape.tail, "Share of sales by share of products, best sellers first",
                    f"A curve: {shape.head:.0%} of the products make 80 % of the sales.", percent=True),
        charts.bars(shape.sizes, ["1", "2", "3", "4", "5", "6", "7+"], "Baskets by number of products",
                    f"Columns of basket sizes; {shape.sizes[0] / shape.n_baskets:.0%} hold one product."),
    ]  # fmt: skip
    if len(shape.weekly) > 1:
        low, high = shape.weekly.idxmin(), shape.weekly.idxmax()
        said.append(
            f"The busiest whole week began on {high:%Y-%m-%d} ({shape.weekly[high]:,} baskets), the quietest on "
            f"{low:%Y-%m-%d} ({shape.weekly[low]:,})."
        )
        pictures.append(
            charts.line(shape.weekly.index, shape.weekly.to_numpy(), "Baskets a week", f"A curve. {said[-1]}")
        )
    if len(shape.days):
        best = int(np.argmax(shape.days))
        label = f"Columns by weekday; {DAYS[best]} has the most baskets, {shape.days[best] / shape.days.sum():.0%}."
        pictures.append(charts.bars(shape.days, DAYS, "Baskets by weekday", label))
    if len(shape.hours):
        best = int(np.argmax(shape.hours))
        label = (
            f"Columns by hour; the hour from {best} has the most baskets, {shape.hours[best] / shape.hours.sum():.0%}."
        )
        pictures.append(charts.bars(shape.hours, [str(h) for h in range(24)], "Baskets by hour", label))
    if shape.n_households:
        gap = f", in the median {shape.gap:.0f} days after the last time" if np.isfinite(shape.gap) else ""
        said.append(
            f"{shape.coming_back:.0%} of the known customers came twice or more{gap}; {shape.repeat:.0%} of what they "
            f"buy they have bought before."
        )
    return {"shape": said, "charts": [Markup(p) for p in pictures]}


def _pairs(split: Split, shop: Shop, rules: pd.DataFrame, encoder: bool) -> dict[str, Any]:
    """Rules, best sellers and bundles with names."""
    names = split.items["name"].to_list()
    prices = shop.items.set_index("item_id")["price"].reindex(split.items["item_id"]).to_numpy(float)
    marks = {"yes": "held-yes", "no": "held-no", "too few": "held-few"}
    shown = [
        {
            "left": names[r.left],
            "right": names[r.right],
            "baskets": f"{r.baskets:,}",
            "households": f"{r.households:,}" if r.households >= 0 else "unknown",
            "lift": f"{r.lift:.1f}",
            "later": f"{r.later:,} (chance {r.later_chance:.1f})",
            "held": r.held,
            "mark": marks[r.held],
            "advice": r.advice,
        }
        for r in sorted(rules.itertuples(), key=lambda r: ["yes", "too few", "no"].index(r.held))
    ]
    sellers = [
        {
            "item": names[s.item],
            **{side: [names[i] for i in getattr(s, side)] for side in ("companions", "substitutes")},
        }
        for s in best_sellers(split, item_vectors(split.items, shop.words, encoder)).itertuples()
    ]
    sets = [
        {
            "items": [names[i] for i in b.items],
            "price": f"{b.price:,.2f}" if np.isfinite(b.price) else "unknown",
            "baskets": b.baskets,
            "later": b.later,
        }
        for b in bundles(split, rules, prices).itertuples()
    ]
    return {"rules": shown, "sellers": sellers, "bundles": sets}


def _models(table: pd.DataFrame, cut: str) -> dict[str, Any]:
    """The comparison in words, a chart and a table."""
    if table.empty:
        why = "The later baskets of three products or more are too few to compare models on."
        return {"models": [], "model_said": [cut, why], "cut": cut}
    best = table[table["best"]].iloc[0]
    said = [cut, f"Each model fills {best.n:,} later baskets from which one product was hidden."]
    ahead = "ahead of" if best.over_low > 0 else "behind" if best.over_high < 0 else "not to be told apart from"
    said.append(
        f"Chosen before the test was opened: {best.model}. It is {ahead} plain popularity there "
        f"(NDCG@10 {best.ndcg:.3f}; difference {best.over:+.3f}, 95 % interval {best.over_low:+.3f} to "
        f"{best.over_high:+.3f})."
    )
    tied = table[table["tied"] & ~table["best"]]["model"].to_list()
    if tied:
        said.append(f"Not to be told apart from it on these baskets: {', '.join(tied)}. The simplest of them will do.")
    columns = ["ndcg", "low", "high", "hits", "over", "over_low", "over_high"]
    rows = [
        {"model": m["model"], "best": m["best"], "values": [f"{m[c]:.3f}" for c in columns]}
        for m in table[::-1].to_dict("records")
    ]
    label = f"Points with intervals for {len(table)} models; {best.model} is chosen, {best.ndcg:.3f}."
    return {"models": rows, "model_said": said, "model_chart": Markup(charts.intervals(table, label)), "cut": cut}


def _promotions(shop: Shop) -> dict[str, Any]:
    """What was sold at a reduced price."""
    table = shop.promotions
    table = table[(table["reduced"] > 0.02) & (table["reduced"] < 0.6)].copy()
    table["ratio"] = table["during"] / table["usual"]
    table = table.sort_values("ratio", ascending=False).head(15)
    if not {"price", "promotion"} & shop.known or "time" not in shop.known:
        return {"promotions": [], "promotion_said": "Neither prices nor promotions with dates are known."}
    how = "marked as promoted" if "promotion" in shop.known else "at least a tenth below the product's median price"
    said = (
        f"Reduced is a line that is {how}. The ratio compares days with a reduced sale and other days on which the "
        f"product was sold. It is no proof of an effect: reductions come at busy times, large orders get low prices."
    )
    rows = [
        {
            "item": shop.items["name"].iloc[p.code],
            "lines": f"{p.lines:,}",
            "reduced": f"{p.reduced:.0%}",
            "usual": f"{p.usual:.1f}",
            "during": f"{p.during:.1f}",
            "ratio": f"{p.ratio:.1f}",
        }
        for p in table.itertuples()
    ]
    return {"promotions": rows, "promotion_said": said if rows else f"{said} No product has ten days of each."}


def _first(said: dict[str, Any]) -> list[str]:
    """Three things to do, the best proven first: one of each kind of advice, else a bundle."""
    found: list[str] = []
    held = [r for r in said["rules"] if r["held"] != "no"]
    for start in ("Offer", "Place", "Do not discount"):
        rule = next((r for r in held if r["advice"].startswith(start)), None)
        if rule is not None:
            also = {"yes": "they met more often than chance in the later baskets too"}
            proof = also.get(rule["held"], "the later baskets are too few to confirm it")
            found.append(f"{rule['advice']} ({rule['baskets']} baskets, {rule['lift']} times chance; {proof}.)")
    if len(found) < 3 and said["bundles"]:
        bundle = said["bundles"][0]
        found.append(f"Offer as a bundle: {' + '.join(bundle['items'])} ({bundle['baskets']} baskets hold all three).")
    return found


def _trust(shop: Shop, shape: Shape, said: dict[str, Any]) -> list[str]:
    """What page one says of the evidence."""
    held = pd.Series([r["held"] for r in said["rules"]], dtype=object).value_counts()
    dated = "time" in shop.known
    period = "later baskets" if dated else "baskets that were set aside"
    found = []
    if said["rules"]:
        found.append(
            f"{len(said['rules'])} pairs that beat chance are shown; {held.get('yes', 0)} held in the {period}, "
            f"{held.get('no', 0)} did not, for {held.get('too few', 0)} there are too few to tell."
        )
    else:
        found.append("No pair of products beats chance clearly enough to be shown.")
    found += said["model_said"][2:3] if said["models"] else said["model_said"][-1:]
    read, used = int(shop.account["lines"].iloc[0]), int(shop.account["lines"].iloc[-1])
    found.append(f"{used / read:.1%} of the rows are used; every other row is counted with its reason.")
    return found
