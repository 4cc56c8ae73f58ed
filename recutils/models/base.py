"""The contract of every recommender (chapter 01)."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import ANONYMOUS, Baskets

OneScore = tuple[np.ndarray | None, np.ndarray]  # columns, ascending (None: all of them), and their scores


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` highest scores in each row, best first, ties by column; -1 where a score is -inf.

    (n_queries, n_items) -> (n_queries, min(k, n_items)).
    """
    k = min(k, scores.shape[1])
    bound = -np.partition(-scores, k - 1, axis=1)[:, [k - 1]]  # (n_queries, 1), the k-th best; many -inf are no drag
    keep = scores >= bound
    if keep.sum() > k * len(keep):  # of the items tied at the bound, only the first columns belong to the k
        above, tied = scores > bound, scores == bound
        keep = above | (tied & (np.cumsum(tied, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    columns = np.nonzero(keep)[1].reshape(-1, k)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    columns, best = np.take_along_axis(columns, order, axis=1), np.take_along_axis(best, order, axis=1)
    return np.where(np.isneginf(best), -1, columns)


def mask_basket(scores: np.ndarray, queries: Baskets) -> np.ndarray:
    """The scores with -inf for what already lies in the open basket (written in place)."""
    rows, columns = queries.matrix.nonzero()
    scores[rows, columns] = -np.inf
    return scores


def one_query(basket: Any, household: int, timestamp: Any, n_items: int | None) -> Baskets:
    """A query of one row: `basket` holds item columns; `timestamp` is a datetime, or None where it is unknown."""
    columns = np.unique(np.asarray(basket, dtype=np.int32))
    values = np.ones(len(columns), np.float32)
    matrix = sparse.csr_matrix((values, columns, np.array([0, len(columns)])), (1, n_items or 0))
    if timestamp is None:
        timestamp = np.datetime64("NaT", "ns")
    elif not isinstance(timestamp, np.datetime64):
        timestamp = np.datetime64(timestamp.replace(tzinfo=None), "ns")
    return Baskets(matrix, np.array([household]), np.array([timestamp]))


def purchases(train: Baskets, n_households: int | None = None, weight: np.ndarray | None = None) -> sparse.csr_matrix:
    """Training baskets of each household that hold each item, each basket weighing 1 or `weight` (n_baskets,).

    csr (n_households, n_items), float32, or as exact as `weight`; without `n_households` up to the last household
    of `train`. Baskets of unknown households are left out.
    """
    if n_households is None:
        n_households = int(train.households.max(initial=-1)) + 1
    known = np.flatnonzero(train.households >= 0)
    value = np.ones(len(known), np.float32) if weight is None else weight[known]
    rows = sparse.csr_matrix((value, (train.households[known], known)), (n_households, len(train)))
    bought = sparse.csr_matrix(rows @ train.matrix)
    bought.sort_indices()
    return bought


def row_of(matrix: sparse.csr_matrix, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values stored in one row, as views."""
    part = slice(matrix.indptr[row], matrix.indptr[row + 1])
    return matrix.indices[part], matrix.data[part]


def largest_of_rows(matrix: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """The largest value of each column in some rows of a matrix without negative values, (n_columns,); 0 for none."""
    best = np.zeros(matrix.shape[1], np.float32)
    for row in rows:
        columns, values = row_of(matrix, row)
        best[columns] = np.maximum(best[columns], values)
    return best


NOTHING: OneScore = (np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class ItemScores:
    """What `Recommender.score_with_item` finds."""

    scores: np.ndarray  # (n_queries, n_items), -inf for what is not offered
    is_candidate: bool = True  # would the model consider the item for the first query
    features: pd.DataFrame | None = None  # what its trees see of the item there, one row; None without trees


class Recommender(ABC):
    """The contract of every model: `fit(train) -> self`, `score(queries) -> (n_queries, n_items)`.

    A model writes `_fit` and `_score`; checks, top-k and batches are here, once. It may write more of the contract:
    `score_one` where one basket can be answered faster than by a batch of one, `contributions` where its score adds
    up over the basket, `state` and `from_state` where not all that it holds is needed to score. Arguments of
    `__init__` are kept unchanged under their names, so that scikit-learn's `clone` can copy a model.
    """

    n_items: int | None = None
    n_households: int = 0
    members: Mapping[str, "Recommender"] = MappingProxyType({})  # those that it asks, by name
    personal: ClassVar[bool] = False  # does `refresh` count it anew
    pairwise: ClassVar[bool] = False  # does `strongest` say anything
    saved_as: ClassVar[str | None] = None  # the class that `state` is for, where it is not the model's own

    def fit(self, train: Baskets) -> Self:
        """Learn from baskets; returns self. Raises ValueError when there are none."""
        if len(train) == 0 or train.matrix.nnz == 0:
            raise ValueError(f"{type(self).__name__}.fit got no purchases; pass the baskets of the past.")
        self.n_items = train.matrix.shape[1]
        self.n_households = int(train.households.max(initial=-1)) + 1
        self._fit(train)
        return self

    def refresh(self, train: Baskets) -> Self:
        """A copy in which what households did is counted anew from `train`; nothing else changes.

        A model that knows nothing of households (`personal` is False) is returned as it is.
        """
        return copy.copy(self).fit(train) if self.personal else self

    def score(self, queries: Baskets) -> np.ndarray:
        """Scores (n_queries, n_items), float32, higher is better. Raises ValueError before `fit` or for other items."""
        if self.n_items is None:
            raise ValueError(f"{type(self).__name__} has not been fitted; call fit(train) first.")
        if queries.matrix.shape[1] != self.n_items:
            raise ValueError(
                f"{type(self).__name__} was fitted on {self.n_items} items and the queries have "
                f"{queries.matrix.shape[1]}; make both with the same items (make_baskets)."
            )
        return np.asarray(self._score(queries), dtype=np.float32)

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """The row of `score` for one open basket: (columns, their scores); the columns that it leaves out are -inf.

        `basket`: different item columns, ascending; `household`: a row of the training households, else
        `ANONYMOUS`; `timestamp`: a datetime or None. Columns None: a finite score for every item.
        """
        values = self.score(one_query(basket, household, timestamp, self.n_items))[0]
        columns = np.flatnonzero(values > -np.inf)
        return columns, values[columns]

    def score_items(self, queries: Baskets, items: np.ndarray) -> np.ndarray:
        """The score of one item a query, `items` (n_queries,); 0 where the model has nothing to say about it."""
        score = self.score(queries)[np.arange(len(queries)), items].astype(float)
        return np.where(np.isneginf(score), 0.0, score)

    def score_with_item(self, queries: Baskets, item: int) -> ItemScores:
        """The scores of queries in which `item` is looked at whether it is a candidate or not."""
        return ItemScores(self.score(queries).copy())

    def contributions(self, basket: Baskets, item: int) -> np.ndarray | None:
        """What each item of one open basket adds to the score of `item`, (n_items_of_it,), in order of its columns.

        None for a model whose score is not a sum over the basket's items. What the score holds besides (a prior, a
        bias, the past) is not among the parts.
        """
        return None

    def strongest(self, basket: np.ndarray) -> np.ndarray:
        """The largest part that one item of the basket (columns) adds to each score, (n_items,); 0 for an empty one.

        For models whose score is a sum over the basket's items and that say so by `pairwise`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no pairs of items to compare.")

    def unfitted(self) -> Self:
        """A new model with the same arguments."""
        return type(self)(**self.get_params())

    def fired_rules(self, basket: np.ndarray, item: int) -> pd.DataFrame | None:
        """The association rules by which the model offers `item`, the strongest first; None where it has no rules."""
        return None

    def recommend(self, queries: Baskets, k: int = 10) -> np.ndarray:
        """The `k` best items not yet in each basket, best first: (n_queries, k) columns, -1 where nothing is left.

        Scored in batches, so memory stays bounded however many queries there are.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for 1 item or more.")
        batches = [top_k(mask_basket(self.score(part), part), k) for part in queries.batches()]
        return np.concatenate(batches) if batches else np.empty((0, k), dtype=int)

    def similar_items(self, item: int, k: int = 10) -> np.ndarray:
        """The `k` items that the model offers an unknown household whose basket holds just `item` (a column)."""
        if self.n_items is None or not 0 <= item < self.n_items:
            raise ValueError(f"Item {item} is unknown; columns run from 0 to {(self.n_items or 0) - 1}.")
        return self.recommend(one_query([item], ANONYMOUS, None, self.n_items), k)[0]

    def state(self) -> dict[str, Any]:
        """What scoring needs: numbers, strings, numpy arrays, csr matrices, models, and dicts and lists of these."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """A model that scores as the one whose `state` this is."""
        model = cls.__new__(cls)
        vars(model).update(state)
        return model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of `__init__` as they were passed, for scikit-learn's `clone`; `deep` changes nothing."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _of_households(self, table: sparse.csr_matrix, queries: Baskets) -> np.ndarray:
        """The row of `table` (n_households, n_items) of each query's household; -inf for 0 and unknown ones."""
        scores = np.full(queries.matrix.shape, -np.inf, dtype=np.float32)
        known = self._known(queries)
        rows = table[queries.households[known]].tocoo()
        scores[known[rows.row], rows.col] = rows.data
        return scores

    def _check_households(self) -> None:
        """Raises ValueError where no training basket names a household."""
        if self.n_households == 0:
            raise ValueError(
                f"{type(self).__name__} learns from households and no training basket names one; "
                f"use a model of items, such as ItemKNN."
            )

    def _known(self, queries: Baskets) -> np.ndarray:
        """The rows of the queries whose household was there in training."""
        return np.flatnonzero((queries.households >= 0) & (queries.households < self.n_households))

    @abstractmethod
    def _fit(self, train: Baskets) -> None: ...

    @abstractmethod
    def _score(self, queries: Baskets) -> np.ndarray: ...


def age_in_days(train: Baskets) -> np.ndarray:
    """How long before the last of them each basket was paid, in days (n_baskets,); 0 where the moment is unknown."""
    age = (np.nanmax(train.timestamps) - train.timestamps) / np.timedelta64(1, "D")
    return np.nan_to_num(age)
