"""The shape of a shop in numbers, and what its data cannot say."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recutils.shop.reading import Shop

THIN_BASKETS, THIN_WEEKS = 1000, 8


@dataclass
class Shape:
    """What a shop looks like.

    - `n_baskets`, `n_items`, `n_households`, `n_lines`; `first`, `last` (days, None where undated)
    - `sizes` (7,): baskets of 1, 2, ... and of 7 items or more; `head`: the share of items that makes 80 % of sales
    - `tail` (101,): share of sales by share of items, best sellers first
    - `weekly`: baskets a whole week; `days` (7,), `hours` (24,): baskets by weekday and hour; empty where unknown
    - `spend`: median of a basket, nan where unknown; `anonymous`: share of baskets without a household
    - `coming_back`: share of households with two baskets or more; `gap`: median days between two of their baskets;
      `repeat`: share of what they buy that they have bought before
    - `everywhere`: names of items in more than 30 % of the baskets
    """

    n_baskets: int
    n_items: int
    n_households: int
    n_lines: int
    first: pd.Timestamp | None
    last: pd.Timestamp | None
    sizes: np.ndarray
    tail: np.ndarray
    head: float
    weekly: pd.Series
    days: np.ndarray
    hours: np.ndarray
    spend: float
    anonymous: float
    coming_back: float
    gap: float
    repeat: float
    everywhere: list[str]

    @property
    def weeks(self) -> float:
        """Weeks from the first to the last basket; 0 where undated."""
        if self.first is None or self.last is None:
            return 0.0
        return ((self.last - self.first).days + 1) / 7


def describe(shop: Shop) -> Shape:
    """The numbers of a shop's shape."""
    matrix, moments = shop.baskets.matrix, pd.DatetimeIndex(shop.baskets.timestamps)
    dated, size = "time" in shop.known, np.diff(matrix.indptr)
    sold = np.sort(np.asarray(matrix.sum(axis=0)).ravel())[::-1]
    running = np.concatenate([[0], np.cumsum(sold) / max(sold.sum(), 1)])
    tail = np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, len(running)), running)
    share = np.asarray(matrix.mean(axis=0)).ravel()
    back, gap, repeat = _coming_back(shop)
    return Shape(
        n_baskets=len(size),
        n_items=matrix.shape[1],
        n_households=len(shop.households),
        n_lines=int(shop.account["lines"].iloc[-1]),
        first=moments[0] if dated else None,
        last=moments[-1] if dated else None,
        sizes=np.bincount(np.minimum(size, 7), minlength=8)[1:],
        tail=tail,
        head=float(np.searchsorted(running, 0.8) / max(len(sold), 1)),
        weekly=_whole_weeks(moments) if dated else pd.Series(dtype=float),
        days=np.bincount(moments.dayofweek, minlength=7) if dated else np.zeros(0),
        hours=np.bincount(moments.hour, minlength=24) if "hours" in shop.known else np.zeros(0),
        spend=float(np.nanmedian(shop.values)) if np.isfinite(shop.values).any() else np.nan,
        anonymous=float((shop.baskets.households < 0).mean()),
        coming_back=back,
        gap=gap,
        repeat=repeat,
        everywhere=[str(shop.items["name"].iloc[i]) for i in np.flatnonzero(share > 0.3)][:5],
    )


def _whole_weeks(moments: pd.DatetimeIndex) -> pd.Series:
    """Baskets a week, the weeks at both ends left out where they are cut off."""
    monday = moments.normalize() - pd.to_timedelta(moments.dayofweek, unit="D")
    counts = pd.Series(monday).value_counts().sort_index()
    counts = counts.reindex(pd.date_range(counts.index[0], counts.index[-1], freq="7D"), fill_value=0)
    if moments[-1].dayofweek < 5:
        counts = counts.iloc[:-1]
    return counts.iloc[1:] if moments[0].dayofweek > 1 and len(counts) > 1 else counts


def _coming_back(shop: Shop) -> tuple[float, float, float]:
    """Of known households: the share that came twice, median days between visits, share of repeat purchases."""
    who = shop.baskets.households
    known = np.flatnonzero(who >= 0)
    if not len(known):
        return np.nan, np.nan, np.nan
    back = float((np.bincount(who[known])[np.unique(who[known])] > 1).mean())
    order = known[np.argsort(who[known], kind="stable")]
    same = who[order][1:] == who[order][:-1]
    days = np.diff(shop.baskets.timestamps[order]) / np.timedelta64(1, "D")
    gap = float(np.median(days[same])) if same.any() and "time" in shop.known else np.nan
    matrix = shop.baskets.matrix[order]
    pair = np.repeat(who[order].astype(np.int64), np.diff(matrix.indptr)) * matrix.shape[1] + matrix.indices
    return back, gap, float(1 - len(np.unique(pair)) / max(len(pair), 1))


def warnings_of(shop: Shop, shape: Shape) -> list[tuple[str, str]]:
    """What the data are too thin for, and what to collect: pairs of sentences."""
    found = []
    if shape.n_baskets < THIN_BASKETS:
        found.append((
            f"{shape.n_baskets:,} baskets are few: only the strongest pairs can be told from chance, and the "
            f"comparison of models has wide intervals.",
            f"Collect {THIN_BASKETS:,} baskets or more; rules on rare products want ten thousand.",
        ))  # fmt: skip
    if "time" not in shop.known:
        found.append((
            "Nothing is dated: week, year and habits cannot be shown, and no rule could be held against later weeks.",
            "Export the date of each receipt.",
        ))  # fmt: skip
    elif shape.weeks < THIN_WEEKS:
        found.append((
            f"The data span {shape.weeks:.0f} weeks: a season, a promotion or a holiday cannot be told from a habit."
            if shape.weeks >= 2
            else "The data span a single week or less: nothing can be said about weeks, seasons or habits.",
            "Export half a year at least; a whole year shows the seasons.",
        ))  # fmt: skip
    if "time" in shop.known and "hours" not in shop.known:
        found.append(("Dates have no time of day: the hours of the shop cannot be shown.", "Export the time too."))
    if "household" not in shop.known:
        found.append((
            "No customer is known: nothing can be said about habits, and models that live on them were left out.",
            "Export the number of the loyalty card, made unreadable (a hash is enough).",
        ))  # fmt: skip
    elif shape.anonymous > 0.2:
        found.append((
            f"{shape.anonymous:.0%} of the baskets have no customer; habits are those of the others.",
            "Offer a card or an account to more customers.",
        ))  # fmt: skip
    return found + _more_warnings(shop, shape)


def _more_warnings(shop: Shop, shape: Shape) -> list[tuple[str, str]]:
    found = []
    days = np.unique(shop.baskets.timestamps.astype("datetime64[D]"))
    gaps = np.diff(days).astype(int)
    if "time" in shop.known and len(gaps) and gaps.max() > max(7, 10 * np.median(gaps)):
        last = int(gaps.argmax())
        found.append((
            f"No basket is of the {gaps[last] - 1} days between {days[last]} and {days[last + 1]}.",
            "Look whether a file or a partition is missing.",
        ))  # fmt: skip
    if "household" in shop.known and shape.coming_back < 0.3:
        found.append((
            f"Only {shape.coming_back:.0%} of the customers came twice: their habits are hardly known.",
            "Collect for longer, and check that a customer keeps one number.",
        ))  # fmt: skip
    if shape.sizes[0] > 0.6 * shape.n_baskets:
        found.append((
            f"{shape.sizes[0] / shape.n_baskets:.0%} of the baskets hold one product: they say nothing of pairs.",
            "Check that receipts are whole; where they are, group a customer's week into one basket.",
        ))  # fmt: skip
    if "words" not in shop.known:
        found.append((
            "Products have no names: variants of one thing cannot be told from companions, and nothing is found by "
            "words.",
            "Export a column with the product's name, or a file of items with id and name.",
        ))  # fmt: skip
    if "price" not in shop.known:
        found.append((
            "No prices are known: what a basket or a bundle is worth is not shown, and reductions are not seen.",
            "Export the price of one unit.",
        ))  # fmt: skip
    if shape.everywhere:
        found.append((
            f"{', '.join(shape.everywhere)}: in more than 30 % of the baskets, so it goes with everything. It is left "
            "out of the rules.",
            "Look for what is bought without it.",
        ))  # fmt: skip
    return found
