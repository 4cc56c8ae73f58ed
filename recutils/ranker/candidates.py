"""Candidates of a query and the queries that a ranker learns from (chapter 05)."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.settings import SEED


@dataclass
class Candidates:
    """Proposed (query, item) pairs, a row each, in order of query.

    `rows`, `columns`: which query, which item; `told`: what the trees see (a column each); `wanted`: was it hidden;
    `proposed` (n_candidates, n_members): by whom, in the order of `members`.
    """

    rows: np.ndarray
    columns: np.ndarray
    told: pd.DataFrame
    wanted: np.ndarray
    proposed: np.ndarray
    members: list[str]

    def without(self, members: Collection[str], columns: Collection[str] = ()) -> "Candidates":
        """As if these members were not there: their two columns and what only they proposed; and other columns."""
        place = [i for i, name in enumerate(self.members) if name not in members]
        gone = [f"{name}{end}" for name in members for end in ("", "_z")]
        keep = self.proposed[:, place].any(axis=1)
        told = self.told.loc[keep, ~self.told.columns.isin([*gone, *columns])]
        rest = [name for name in self.members if name not in members]
        parts = (self.rows[keep], self.columns[keep], told, self.wanted[keep], self.proposed[keep][:, place])
        return Candidates(*parts, rest)


def _joined(parts: list[Candidates]) -> Candidates:
    """All parts as one; each gives up its table on the way, so that no row lies in memory twice."""
    columns, end = parts[0].told.columns, 0
    told = np.empty((sum(len(p.rows) for p in parts), len(columns)), np.float32)
    for p in parts:
        start, end = end, end + len(p.rows)
        told[start:end] = p.told
        p.told = p.told.head(0).copy()
    rows, items, wanted, proposed = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("rows", "columns", "wanted", "proposed")
    )
    return Candidates(rows, items, pd.DataFrame(told, columns=columns), wanted, proposed, parts[0].members)


def hide_in_turn(baskets: Baskets, hides: int, seed: int = SEED) -> tuple[Baskets, sparse.csr_matrix]:
    """Queries from baskets of three items or more: up to `hides` of them hidden one at a time, then all at once.

    Returns the open baskets and what was hidden, a row a query; the queries of one basket lie together.
    """
    rng = np.random.default_rng(seed)
    matrix = baskets.matrix
    source: list[int] = []  # the basket of each query
    hidden: list[np.ndarray] = []  # the places in matrix.indices that it hides
    for row in np.flatnonzero(np.diff(matrix.indptr) >= 3):
        places = np.arange(matrix.indptr[row], matrix.indptr[row + 1])
        chosen = rng.permutation(places)[:hides].reshape(-1, 1)
        hidden += [*chosen, places]
        source += [int(row)] * (len(chosen) + 1)
    query = np.repeat(np.arange(len(hidden)), [len(h) for h in hidden])
    place = np.concatenate(hidden)
    shape = (len(hidden), matrix.shape[1])
    wanted = sparse.csr_matrix((np.ones(len(place), np.float32), (query, matrix.indices[place])), shape)
    rest = sparse.csr_matrix(matrix[source] - wanted)
    rest.eliminate_zeros()
    return Baskets(rest, baskets.households[source], baskets.timestamps[source]), wanted


def time_slot(moments: np.ndarray) -> np.ndarray:
    """Twelve slots: the six quarters-of-four-hours of a weekday (0 to 5) or of a weekend (6 to 11); -1 unknown."""
    times = pd.DatetimeIndex(moments)
    slot = times.hour // 4 + 6 * (times.day_of_week >= 5)
    return np.where(times.isna(), -1, slot).astype(int)
