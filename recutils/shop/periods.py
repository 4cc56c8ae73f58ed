"""A shop's baskets in three periods, whatever its span: a year, a week, or no dates at all."""

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets, Split, StoreError
from recutils.settings import SEED
from recutils.shop.reading import Shop

MOST_ITEMS = 4000  # a table of items by items of this size fits everywhere
SHARES = (0.8, 0.9)  # where validation and test begin, as shares of the span


def split_periods(shop: Shop, most_items: int = MOST_ITEMS) -> tuple[Split, str]:
    """Training, validation and test (80, 10 and 10 % of the span), and a sentence that says how they were cut.

    By whole days; by order where days are too few; at random where nothing is dated. The items are those in at least
    `min_baskets` training baskets, the `most_items` most sold of them. Raises StoreError where nothing is left.
    """
    n = len(shop.baskets)
    if n < 10:
        raise StoreError(f"{n} baskets are too few to compare anything; bring a hundred at least.")
    baskets, starts, said = _cut(shop)
    least = min_baskets(starts[0])
    sold = np.asarray(baskets.matrix[: starts[0]].sum(axis=0)).ravel()
    warm = np.flatnonzero(sold >= least)
    if not len(warm):
        raise StoreError(f"No item is in {least} baskets of the training period; bring more receipts.")
    warm = np.sort(warm[np.argsort(-sold[warm], kind="stable")][:most_items])
    columns = shop.items[["item_id", *[c for c in shop.items if c in shop.words]]]
    columns = columns if shop.words else columns.assign(name=shop.items["name"])
    items = columns.iloc[warm].reset_index(drop=True)
    periods = [_only(baskets[slice(*ends)], warm) for ends in zip([0, *starts], [*starts, n], strict=True)]
    first = [pd.Timestamp(baskets.timestamps[min(s, n - 1)]).normalize() for s in starts]
    left = f"Compared are {len(warm)} items in {least} training baskets or more."
    train, validation, test = periods
    cold = np.zeros(len(warm), dtype=bool)
    return Split(items, shop.households, train, validation, test, first[0], first[1], cold), f"{said} {left}"


def min_baskets(n: int) -> int:
    """In how many of `n` training baskets an item has to be."""
    return 3 if n < 2000 else 5 if n < 20_000 else 20


def _cut(shop: Shop) -> tuple[Baskets, list[int], str]:
    """Baskets in order, where validation and test begin, and how."""
    baskets, n = shop.baskets, len(shop.baskets)
    by_order = [int(share * n) for share in SHARES]
    if "time" not in shop.known:
        mixed = baskets[np.random.default_rng(SEED).permutation(n)]
        return mixed, by_order, "Nothing is dated, so the test is a random tenth of the baskets, not later weeks."
    days = (baskets.timestamps - baskets.timestamps[0].astype("datetime64[D]")) // np.timedelta64(1, "D")
    span = int(days[-1]) + 1
    test = min(round(SHARES[1] * span), span - 1)
    starts = [
        int(np.searchsorted(days, max(min(round(SHARES[0] * span), test - 1), 1))),
        int(np.searchsorted(days, test)),
    ]
    enough = all(part >= max(0.02 * n, 3) for part in np.diff([0, *starts, n]))
    if span < 5 or not enough:
        return baskets, by_order, "Too few days to cut by them: the test is the last tenth of the baskets."
    return (
        baskets,
        starts,
        f"The test is the last {span - test} of {span} days, the choice was made on those before it.",
    )


def _only(baskets: Baskets, columns: np.ndarray) -> Baskets:
    """The baskets over some items; those that hold none of them are left out."""
    matrix = sparse.csr_matrix(baskets.matrix[:, columns])
    rows = np.flatnonzero(np.diff(matrix.indptr))
    return Baskets(matrix[rows], baskets.households[rows], baskets.timestamps[rows])


def sample_of(baskets: Baskets, n: int) -> Baskets:
    """At most `n` baskets of three items or more, drawn at random, in order."""
    rows = np.flatnonzero(np.diff(baskets.matrix.indptr) >= 3)
    if len(rows) > n:
        rows = np.sort(np.random.default_rng(SEED).permutation(rows)[:n])
    return baskets[rows]


def together(*parts: Baskets) -> Baskets:
    """Periods one after the other."""
    return Baskets(
        sparse.csr_matrix(sparse.vstack([p.matrix for p in parts])),
        np.concatenate([p.households for p in parts]),
        np.concatenate([p.timestamps for p in parts]),
    )
