"""What the trees of the ranker see of a candidate: one builder for a batch and for a single basket (chapter 05)."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender, age_in_days, purchases, row_of
from recutils.ranker.candidates import MemberScores, Query
from recutils.ranker.history import HISTORY_COLUMNS, history_rows, purchase_history


class FeatureBuilder:
    """Columns for candidates of a query; `columns` names them, in the order in which `build_features` writes them.

    - two a member: its score (nan: it has nothing to say), and the score standardised over all items that it has
      scored for the query; a third, `..._max`, of members that are sums over the basket's items (`pairwise`): the
      largest part
    - of the item: `popularity` (log of 1 + training baskets), `trend` (log of the share of the last 28 days over
      that of all), `repeat` (share of its buyers who bought it twice), `mean_basket_size` (mean items of its baskets),
      and the columns of the table `item_columns` (n_items rows)
    - `slot`: log of how often it is bought at this hour and day over how often at any; `size`: items in the basket
    - for each column of the table `groups` (n_items rows): `same_...`, how many of the basket's items share the
      candidate's, and `their_...`, how many of an average basket of the household
    - `baskets`, `their_size`: how many the household paid for, and their mean size; 0 for an unknown one
    - `bought_...`, and `bought_<group>_...` for the last column of `groups`, the finest: what the household's purchases
      of the item, and of its group, say of the next (`history.HISTORY_COLUMNS`)

    A group called `size` is named `item_size`, since `their_size` is taken. Raises ValueError where two features
    would have one name.

    Fitted by `fit_item_features` and `fit_household_features`, so that the second can be counted anew alone.
    """

    def __init__(
        self, members: Mapping[str, Recommender], groups: pd.DataFrame, item_columns: pd.DataFrame | None = None
    ) -> None:
        names = ["item_size" if c == "size" else str(c) for c in groups]
        codes = (pd.factorize(values, use_na_sentinel=False)[0] for _, values in groups.items())
        self.group_codes: dict[str, np.ndarray] = dict(zip(names, codes, strict=True))  # (n_items,) each
        extra = [] if item_columns is None else [(str(c), v.to_numpy(float)) for c, v in item_columns.items()]
        self.item_columns: dict[str, np.ndarray] = dict(extra)
        self.n_households = 0
        self.columns = [f"{name}{end}" for name in members for end in ("", "_z")]
        self.columns += ["popularity", "trend", "repeat", "mean_basket_size", *(c for c, _ in extra), "slot", "size"]
        self.columns += [*(f"same_{c}" for c in names), "baskets", "their_size", *(f"their_{c}" for c in names)]
        self.columns += [f"{name}_max" for name, member in members.items() if member.pairwise]
        levels = ["bought", *(f"bought_{name}" for name in names[-1:])]
        self.n_history = len(levels) * len(HISTORY_COLUMNS)
        self.columns += [f"{level}_{c}" for level in levels for c in HISTORY_COLUMNS]
        if twice := {c for c in self.columns if self.columns.count(c) > 1}:
            twice_named = ", ".join(sorted(twice))
            raise ValueError(f"Two features are called {twice_named}; rename a member, a group or an item column.")

    def fit_item_features(self, train: Baskets) -> Self:
        """What the past says of items, whoever asks: `item_features`, `slots` (13, n_items) and `sold` (n_items,)."""
        matrix, size, age = train.matrix, np.diff(train.matrix.indptr), age_in_days(train)
        sold = np.asarray(matrix.sum(axis=0)).ravel()
        self.sold = sold > 0
        lately = np.asarray(matrix[age < 28].sum(axis=0)).ravel()
        bought = purchases(train)  # (n_households, n_items)
        buyers = np.bincount(bought.indices, minlength=len(sold))
        again = np.bincount(bought.indices[bought.data > 1], minlength=len(sold))
        self.item_features = {
            "popularity": np.log1p(sold),
            "trend": np.log((lately + 5) / (sold * np.mean(age < 28) + 5)),
            "repeat": again / np.maximum(buyers, 1),
            "mean_basket_size": (matrix.T @ size) / np.maximum(sold, 1),
            **self.item_columns,
        }
        slot = time_slot(train.timestamps)
        share = np.bincount(slot + 1, minlength=13)[:, None] / len(train)  # row 0: moment unknown
        rows = sparse.csr_matrix((np.ones(len(train), np.float32), (slot + 1, np.arange(len(train)))), (13, len(train)))
        self.slots = np.log(((rows @ matrix).toarray() + 20 * share + 1e-9) / (share * (sold + 20) + 1e-9))
        self.slots[0] = 0
        self._prepare()
        return self

    def _prepare(self) -> None:
        """The item columns side by side, so that a candidate's are one row."""
        self.item_table = np.stack(list(self.item_features.values()), axis=1).astype(np.float32)
        self.n_codes = [int(code.max()) + 1 for code in self.group_codes.values()]

    def fit_household_features(self, train: Baskets) -> Self:
        """What the past says of households: `household_features`, a name each.

        `baskets`, `their_size` (n_households,); `their_<group>` csr (n_households, n_groups) float32, so that memory
        grows with what was bought and not with households times groups.
        """
        per_basket = purchases(train)  # (n_households, n_items)
        self.n_households = per_basket.shape[0]
        n = np.bincount(train.households[train.households >= 0], minlength=self.n_households)
        per_basket.data /= np.repeat(np.maximum(n, 1), np.diff(per_basket.indptr)).astype(np.float32)
        self.household_features: dict[str, Any] = {
            "baskets": n,
            "their_size": np.asarray(per_basket.sum(axis=1)).ravel(),
        }
        every = np.arange(train.matrix.shape[1])
        self.histories = [purchase_history(train, every if code is None else code) for code in self.history_codes]
        last = pd.DatetimeIndex(train.timestamps).max()
        self.end = 0.0 if last is pd.NaT else last.timestamp()  # seconds since 1970
        for name, code in self.group_codes.items():
            one_hot = sparse.csr_matrix((np.ones(len(code), np.float32), (np.arange(len(code)), code)))
            self.household_features[f"their_{name}"] = sparse.csr_matrix(per_basket @ one_hot)
        return self

    def build_features(self, scores: MemberScores, items: np.ndarray, query: Query) -> np.ndarray:
        """The `columns` of `items` (n_candidates,) as candidates of one query: (n_candidates, n_columns) float32."""
        values = scores.values[:, items].T  # (n_candidates, n_members)
        values[np.isneginf(values)] = np.nan
        n, m = 2 * values.shape[1], len(self.columns) - self.n_history - len(scores.strongest)
        table = np.zeros((len(items), len(self.columns)), np.float32)
        table[:, 0:n:2] = values
        table[:, 1:n:2] = (values - scores.mean) * scores.scale
        self._describe_items(table[:, n:m], items, query)
        table[:, m : len(self.columns) - self.n_history] = scores.strongest[:, items].T
        later, width = self._days_later(query.timestamp), len(HISTORY_COLUMNS)
        for place, (code, history) in enumerate(zip(self.history_codes, self.histories, strict=True)):
            m = len(self.columns) - self.n_history + place * width
            groups = items if code is None else code[items]
            table[:, m : m + width] = history_rows(history, query.household, groups, later)
        return table

    def _describe_items(self, table: np.ndarray, items: np.ndarray, query: Query) -> None:
        """Fill in what is known of the items, of the basket's groups and of the household's, from left to right."""
        m = self.item_table.shape[1]
        table[:, :m] = self.item_table[items]
        table[:, m] = self.slots[query.slot + 1, items]
        table[:, m + 1] = len(query.basket)
        groups = [code[items] for code in self.group_codes.values()]
        of_groups = zip(self.group_codes.values(), groups, self.n_codes, strict=True)
        for place, (code, group, size) in enumerate(of_groups, m + 2):
            table[:, place] = np.bincount(code[query.basket], minlength=size)[group]
        if 0 <= query.household < self.n_households:
            m += 2 + len(groups)
            counts, size, *theirs = self.household_features.values()
            table[:, m], table[:, m + 1] = counts[query.household], size[query.household]
            for place, (of, group, n_codes) in enumerate(zip(theirs, groups, self.n_codes, strict=True), m + 2):
                dense = np.zeros(n_codes, np.float32)
                columns, shares = row_of(of, query.household)
                dense[columns] = shares
                table[:, place] = dense[group]

    @property
    def history_codes(self) -> list[np.ndarray | None]:
        """Of what the purchases are remembered: the items themselves (None), and the last of the groups."""
        return [None, *list(self.group_codes.values())[-1:]]

    def _days_later(self, timestamp: Any) -> float:
        """Days from the end of training to a query; 0 where its moment is unknown, or earlier."""
        if timestamp is None:
            return 0.0
        return max((timestamp.replace(tzinfo=UTC).timestamp() - self.end) / 86_400, 0.0)

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`."""
        return {name: value for name, value in vars(self).items() if name not in ("item_table", "n_codes")}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Recommender.from_state`."""
        builder = cls.__new__(cls)
        vars(builder).update(state)
        builder._prepare()
        return builder


def time_slot(moments: np.ndarray) -> np.ndarray:
    """Twelve slots: spans of four hours of a weekday (0 to 5) or of a weekend day (6 to 11); -1: unknown."""
    times = pd.DatetimeIndex(moments)
    slot = times.hour // 4 + 6 * (times.day_of_week >= 5)
    return np.where(times.isna(), -1, slot).astype(int)


def slot_of(moment: Any) -> int:
    """`time_slot` of one datetime, or of None or NaT."""
    return -1 if moment is None or moment is pd.NaT else moment.hour // 4 + 6 * (moment.weekday() >= 5)
