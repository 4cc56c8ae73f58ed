"""Candidates: what the members of a ranker retrieve for a query, and the queries it learns from (chapter 05)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender
from recutils.settings import SEED, release_memory

RELEASE_BYTES = 32_000_000  # of rows that were given up, before their memory is handed back


class Query(NamedTuple):
    """One open basket: its item columns, ascending; a household's row or `ANONYMOUS`; a datetime or None; its slot."""

    basket: np.ndarray
    household: int
    timestamp: Any
    slot: int


@dataclass
class MemberScores:
    """What all members say about one query, and which items they retrieve.

    - `values` (n_members, n_items) float32: -inf where a member has nothing to say and for what lies in the basket
    - `mean`, `scale` (n_members,) float32: mean of a member's finite scores, 1 / their standard deviation (0 where
      there are none)
    - `retrieved` (n_members, n_items) bool
    - `strongest` (n_pairwise, n_items) float32: of each member that is a sum over the basket's items, the largest part
    """

    values: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    retrieved: np.ndarray
    strongest: np.ndarray


def member_scores(
    members: Collection[Recommender], n_candidates: Sequence[int], n_items: int, query: Query
) -> MemberScores:
    """Ask each member about one query; it retrieves its `n_candidates` best items.

    Ties at the end of a member's list go by column, so that the list does not depend on the processor.
    """
    n, basket = len(n_candidates), query.basket
    found = MemberScores(
        np.full((n, n_items), -np.inf, np.float32),
        np.zeros(n, np.float32),
        np.zeros(n, np.float32),
        np.zeros((n, n_items), bool),
        np.array([m.strongest(basket) for m in members if m.pairwise], np.float32).reshape(-1, n_items),
    )
    for row, (member, count) in enumerate(zip(members, n_candidates, strict=True)):
        columns, scores = member.score_one(*query[:3])
        values = found.values[row]
        if columns is None:
            values[:] = scores
            values[basket] = 0.0  # no part in the sums
            n_finite, total, square = n_items - len(basket), values.sum(), values @ values
            values[basket] = -np.inf
            found.retrieved[row, best_columns(values, count)] = True
        else:
            values[columns] = scores
            values[basket] = -np.inf
            scores = values[columns]
            finite = scores > -np.inf
            if not finite.all():
                columns, scores = columns[finite], scores[finite]
            n_finite, total, square = len(scores), scores.sum(), scores @ scores
            found.retrieved[row, columns[best_columns(scores, count)]] = True
        if n_finite:
            mean = float(total) / n_finite
            found.mean[row] = mean
            found.scale[row] = 1 / np.sqrt(max(float(square) / n_finite - mean**2, 1e-12))
    return found


def best_columns(scores: np.ndarray, n: int) -> np.ndarray:
    """Columns of the `n` highest finite scores of a row, in no order; ties at the end of the list go by column."""
    if n <= 0:
        return np.zeros(0, np.int64)
    if len(scores) > n:
        bound = np.partition(scores, len(scores) - n)[len(scores) - n]
        if bound > -np.inf:
            above = np.flatnonzero(scores > bound)
            tied = np.flatnonzero(scores == bound)
            return np.concatenate([above, tied[: n - len(above)]])
    return np.flatnonzero(scores > -np.inf)


@dataclass
class Candidates:
    """Retrieved (query, item) pairs, a row each, in order of query and item.

    - `rows`, `columns` (n_candidates,): which query, which item
    - `features`: a table, one row a candidate, what the trees see
    - `labels` (n_candidates,) bool: was it hidden
    - `retrieved_by` (n_candidates, n_members) bool: by whom, in the order of `members`
    """

    rows: np.ndarray
    columns: np.ndarray
    features: pd.DataFrame
    labels: np.ndarray
    retrieved_by: np.ndarray
    members: list[str]

    @classmethod
    def concatenate(cls, parts: list["Candidates"]) -> "Candidates":
        """Tables with the same columns, one below the other, their queries numbered on; `parts` is emptied."""
        names, members = parts[0].features.columns, parts[0].members
        n_queries = np.cumsum([0, *(int(part.rows.max(initial=-1)) + 1 for part in parts[:-1])])
        rows, columns, labels, retrieved = (
            np.concatenate(column)
            for column in zip(
                *((p.rows + n, p.columns, p.labels, p.retrieved_by) for n, p in zip(n_queries, parts, strict=True)),
                strict=True,
            )
        )
        tables = [part.features.to_numpy() for part in parts]
        parts.clear()
        return cls(rows, columns, pd.DataFrame(stack(tables, len(names)), columns=names), labels, retrieved, members)

    def without(self, members: Collection[str], columns: Collection[str] = ()) -> "Candidates":
        """As if these members were not there: their own columns and what only they retrieved; and other columns."""
        place = [i for i, name in enumerate(self.members) if name not in members]
        gone = [f"{name}{end}" for name in members for end in ("", "_z", "_max")]
        keep = self.retrieved_by[:, place].any(axis=1)
        features = self.features.loc[keep, ~self.features.columns.isin([*gone, *columns])]
        rest = [name for name in self.members if name not in members]
        labels, retrieved_by = self.labels[keep], self.retrieved_by[keep][:, place]
        return Candidates(self.rows[keep], self.columns[keep], features, labels, retrieved_by, rest)


def stack(parts: list[np.ndarray], n_columns: int) -> np.ndarray:
    """Tables of rows one below the other, (n_rows, n_columns) float32; `parts` is emptied.

    Each part is given up on the way and its memory handed back now and then, so that no row lies in memory twice for
    long.
    """
    stacked, end, given_up = np.empty((sum(map(len, parts)), n_columns), np.float32), 0, 0
    parts.reverse()
    while parts:
        part = parts.pop()
        stacked[end : end + len(part)] = part
        end, given_up = end + len(part), given_up + part.nbytes
        if given_up > RELEASE_BYTES:
            del part
            release_memory()
            given_up = 0
    return stacked


def holdout_queries(baskets: Baskets, n_holdouts: int, seed: int = SEED) -> tuple[Baskets, sparse.csr_matrix]:
    """Queries from baskets of three items or more: up to `n_holdouts` of them hidden one at a time, then all at once.

    Returns the open baskets and what was hidden, a row a query; the queries of one basket lie together.
    """
    rng = np.random.default_rng(seed)
    matrix = baskets.matrix
    source: list[int] = []  # the basket of each query
    hidden: list[np.ndarray] = []  # the positions in matrix.indices that it hides
    for row in np.flatnonzero(np.diff(matrix.indptr) >= 3):
        positions = np.arange(matrix.indptr[row], matrix.indptr[row + 1])
        chosen = rng.permutation(positions)[:n_holdouts].reshape(-1, 1)
        hidden += [*chosen, positions]
        source += [int(row)] * (len(chosen) + 1)
    query = np.repeat(np.arange(len(hidden)), [len(h) for h in hidden])
    position = np.concatenate(hidden)
    shape = (len(hidden), matrix.shape[1])
    labels = sparse.csr_matrix((np.ones(len(position), np.float32), (query, matrix.indices[position])), shape)
    rest = sparse.csr_matrix(matrix[source] - labels)
    rest.eliminate_zeros()
    return Baskets(rest, baskets.households[source], baskets.timestamps[source]), labels
