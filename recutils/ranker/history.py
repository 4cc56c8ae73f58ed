"""When households bought: what they may soon need again (chapter 05)."""

from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import age_in_days, row_of

HISTORY_COLUMNS = ("count", "days_since", "in_28_days", "in_112_days", "gap", "due")
MOST_DAYS = np.iinfo(np.uint16).max


def purchase_history(train: Baskets, codes: np.ndarray) -> dict[str, Any]:
    """What each household's baskets say of each group of items, `codes` (n_items,) the group of each item.

    - `pairs` csr (n_households, n_groups): in how many of its baskets a household bought of a group
    - `days` (n_pairs, 4) uint16, a row for each of these: days from its last and from its first such basket to the end
      of training, and how many lie in the last 28 and 112 days

    Memory grows with what was bought, not with households times groups. A basket without a moment counts as of the
    last day.
    """
    known = np.flatnonzero(train.households >= 0)
    n_groups, n_households = int(codes.max(initial=-1)) + 1, int(train.households.max(initial=-1)) + 1
    matrix = train.matrix[known]
    age = np.minimum(age_in_days(train)[known], MOST_DAYS).astype(np.uint16)
    basket = np.repeat(np.arange(len(known), dtype=np.int64), np.diff(matrix.indptr))
    once = np.unique(basket * n_groups + codes[matrix.indices])  # two items of a group in one basket are one purchase
    basket, group = np.divmod(once, n_groups)
    key = train.households[known][basket].astype(np.int64) * n_groups + group
    order = np.lexsort((age[basket], key))  # of a pair, the latest basket first
    key, age = key[order], age[basket[order]]
    start = np.flatnonzero(np.diff(key, prepend=-1))
    count = np.diff(start, append=len(key))
    days = np.zeros((len(start), 4), np.uint16)
    if len(start):
        days[:, 0], days[:, 1] = age[start], age[start + count - 1]
        days[:, 2] = np.add.reduceat(age < 28, start, dtype=np.uint16)
        days[:, 3] = np.add.reduceat(age < 112, start, dtype=np.uint16)
    household, group = np.divmod(key[start], n_groups)
    ends = np.searchsorted(household, np.arange(n_households + 1))
    pairs = sparse.csr_matrix((count.astype(np.float32), group, ends), (n_households, n_groups))
    return {"pairs": pairs, "days": days}


def history_rows(history: dict[str, Any], household: int, groups: np.ndarray, later: float) -> np.ndarray:
    """`HISTORY_COLUMNS` of `groups` (n,) for one household: (n, 6) float32, nan where it bought nothing of a group.

    `later`: days from the end of training to the query. `count`: baskets with the group; `days_since` the last of them,
    as of the query; `in_28_days`, `in_112_days` before the end of training; `gap`: mean days between two, at least 1
    (nan after a single one); `due` = days_since / gap: above 1 the next one is late.
    """
    rows = np.full((len(groups), len(HISTORY_COLUMNS)), np.nan, np.float32)
    pairs, days = history["pairs"], history["days"]
    if not 0 <= household < pairs.shape[0]:
        return rows
    first = pairs.indptr[household]
    known, counts = row_of(pairs, household)  # ascending
    place = np.minimum(np.searchsorted(known, groups), max(len(known) - 1, 0))
    met = np.flatnonzero(known[place] == groups) if len(known) else np.zeros(0, int)
    place = place[met]
    last, earliest, in_28, in_112 = days[first + place].astype(np.float32).T
    count, since = counts[place], last + np.float32(later)
    gap = np.maximum(earliest - last, 1) / np.maximum(count - 1, 1)
    gap[count < 2] = np.nan
    rows[met] = np.stack([count, since, in_28, in_112, gap, since / gap], axis=1)
    return rows
