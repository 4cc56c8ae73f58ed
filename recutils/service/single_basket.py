"""One basket at a time (chapter 07)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender, top_k
from recutils.models.embeddings import EmbeddingRecommender, InnerProduct
from recutils.models.habits import HouseholdRecency, OwnBaskets
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN
from recutils.models.rules import RuleRecommender
from recutils.ranker.ranker import HybridRanker

NOBODY = -1  # the household of a stranger


Said = tuple[np.ndarray | None, np.ndarray]  # items (None: all, in order) and what a member says of them


class QuickRanker:
    """What a fitted `HybridRanker` says of one open basket, without sparse matrices of one row and without tables.

    The members of `ranker.shop_members` have a short way of their own here; any other is asked as before. Scores
    agree to rounding; where members' scores are tied at the end of their quota, other items may be proposed.
    """

    def __init__(self, ranker: HybridRanker) -> None:
        self.ranker, self.n_items = ranker, len(ranker.sold)
        self.ask = [(ranker.quota[name], _short_way(member)) for name, member in ranker.members.items()]
        self.behind = list(ranker.members).index(ranker.behind)
        self.of_items = np.stack(list(ranker.of_items.values()), axis=1).astype(np.float32)
        self.codes = list(ranker.codes.values())
        self.n_codes = [int(code.max()) + 1 for code in self.codes]

    def recommend(
        self, basket: np.ndarray, household: int = NOBODY, moment: Any = None, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best items that are not in the basket, best first, and their scores.

        `basket`: different item columns; `household`: a row of the households in training, else a stranger;
        `moment`: a datetime, or None. As in `HybridRanker`, items that nobody proposed follow in the order of the
        member `behind`.
        """
        basket = np.asarray(basket, dtype=np.int64)
        items, scores, behind = self._rank(basket, household, moment)
        if len(items) < k:
            behind[items] = -np.inf
            more = top_k(behind[None], k - len(items))[0]
            more = more[more >= 0]
            items, scores = np.append(items, more), np.append(scores, behind[more] - 100)
        best = np.argsort(-scores, kind="stable")[:k]
        return items[best], scores[best]

    def _rank(self, basket: np.ndarray, household: int, moment: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ranker, n = self.ranker, len(self.ask)
        if not 0 <= household < ranker.n_households:
            household = NOBODY
        all_said = np.full((n, self.n_items), -np.inf, dtype=np.float32)
        norms = np.zeros((n, 2), dtype=np.float32)
        proposed = np.zeros(self.n_items, dtype=bool)
        for place, (quota, ask) in enumerate(self.ask):
            where, values = ask(basket, household, moment)
            said = all_said[place]
            if where is None:
                said[:] = values
            else:
                said[where] = values
            said[basket] = -np.inf
            if where is None:
                finite = np.delete(said, basket)
            else:
                where = where[np.isfinite(said[where])]
                finite = said[where]
            if len(finite):
                mean = finite.mean()
                spread = np.sqrt(max(float(finite @ finite) / len(finite) - float(mean) ** 2, 1e-12))
                norms[place] = mean, 1 / spread
            best = finite if where is not None else said
            if len(best) > quota:
                top = np.argpartition(-best, quota)[:quota]
                where = top[np.isfinite(best[top])] if where is None else where[top]
            elif where is None:
                where = np.flatnonzero(np.isfinite(said))
            proposed[where] = True
        items = np.flatnonzero(proposed & ranker.sold)
        if not len(items):
            return items, np.zeros(0), all_said[self.behind]
        told = self._tell(all_said[:, items], norms, items, basket, household, moment)
        scores = ranker.booster.predict(told, num_threads=1)
        return items, np.asarray(scores, dtype=np.float32), all_said[self.behind]

    def _tell(
        self, said: np.ndarray, norms: np.ndarray, items: np.ndarray, basket: np.ndarray, household: int, moment: Any
    ) -> np.ndarray:
        """The columns of `HybridRanker.names`, (n_candidates, n_columns) float32."""
        ranker, n = self.ranker, 2 * len(said)
        told = np.zeros((len(items), len(ranker.names)), dtype=np.float32)
        said[np.isneginf(said)] = np.nan
        told[:, 0:n:2] = said.T
        told[:, 1:n:2] = (said.T - norms[:, 0]) * norms[:, 1]
        m = n + self.of_items.shape[1]
        told[:, n:m] = self.of_items[items]
        slot = -1 if moment is None else moment.hour // 4 + 6 * (moment.weekday() >= 5)
        told[:, m] = ranker.slots[slot + 1, items]
        told[:, m + 1] = len(basket)
        groups = [code[items] for code in self.codes]
        for place, (code, group, size) in enumerate(zip(self.codes, groups, self.n_codes, strict=True), m + 2):
            told[:, place] = np.bincount(code[basket], minlength=size)[group]
        if household != NOBODY:
            for place, (name, value) in enumerate(ranker.of_households.items(), m + 2 + len(groups)):
                c = list(ranker.codes).index(name.removeprefix("their_")) if value.ndim == 2 else 0
                told[:, place] = value[household] if value.ndim == 1 else value[household][groups[c]]
        return told


def _short_way(member: Recommender) -> Callable[[np.ndarray, int, Any], Said]:
    """How one member is asked about one basket: (basket, household, moment) -> items, values."""
    if isinstance(member, EASE):
        return lambda basket, household, moment: (None, member.weights[basket].sum(axis=0))
    if isinstance(member, ItemKNN):
        return lambda basket, household, moment: _added(member.similarity, basket)
    if isinstance(member, RuleRecommender) and (member.left.sum(axis=0) == 1).all():
        return _rules_of_one(member)
    if isinstance(member, EmbeddingRecommender) and not member.household and not member.prior:
        return lambda basket, household, moment: (None, member.vectors @ _unit(member.vectors[basket].sum(axis=0)))
    if isinstance(member, InnerProduct):
        root = lambda basket: member.vectors[basket].sum(axis=0) / np.float32(np.sqrt(max(len(basket), 1)))  # noqa: E731
        return lambda basket, household, moment: (None, member.vectors @ root(basket) + member.bias)
    if isinstance(member, HouseholdRecency):
        return lambda basket, household, moment: _row(member.share, household)
    if isinstance(member, OwnBaskets):
        return lambda basket, household, moment: _own(member, basket, household)

    def long_way(basket: np.ndarray, household: int, moment: Any) -> Said:
        values = member.score(one_basket(basket, household, moment, member))[0]
        where = np.flatnonzero(np.isfinite(values))
        return where, values[where]

    return long_way


def one_basket(basket: Sequence[int] | np.ndarray, household: int, moment: Any, model: Any) -> Baskets:
    """A query of one row for `model` (anything with `n_items`); `moment` None is an unknown moment."""
    columns = np.sort(np.asarray(basket, dtype=np.int32))
    values = np.ones(len(columns), np.float32)
    matrix = sparse.csr_matrix((values, columns, np.array([0, len(columns)])), (1, model.n_items))
    when = np.datetime64("NaT", "ns") if moment is None else np.datetime64(moment.replace(tzinfo=None), "ns")
    return Baskets(matrix, np.array([household]), np.array([when]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _slice(matrix: sparse.csr_matrix, row: Any) -> slice:
    return slice(matrix.indptr[row], matrix.indptr[row + 1])


def _row(matrix: sparse.csr_matrix, row: int) -> Said:
    if row == NOBODY:
        return np.zeros(0, int), np.zeros(0, np.float32)
    return matrix.indices[_slice(matrix, row)], matrix.data[_slice(matrix, row)]


def _added(matrix: sparse.csr_matrix, rows: np.ndarray) -> Said:
    total = np.zeros(matrix.shape[1], np.float32)
    for row in rows:
        total[matrix.indices[_slice(matrix, row)]] += matrix.data[_slice(matrix, row)]
    where = np.flatnonzero(total)
    return where, total[where]


def _rules_of_one(member: RuleRecommender) -> Callable[[np.ndarray, int, Any], Said]:
    """Rules with one item on the left, as a matrix: row a, column i holds the measure of a -> i."""
    rule = member.left.tocsc().indices  # the item on the left of each rule
    table = sparse.csr_matrix((member.weights, (rule, member.right)), (member.left.shape[0], member.left.shape[0]))

    def ask(basket: np.ndarray, household: int, moment: Any) -> Said:
        best = np.zeros(table.shape[1], np.float32)
        for row in basket:
            part = _slice(table, row)
            best[table.indices[part]] = np.maximum(best[table.indices[part]], table.data[part])
        where = np.flatnonzero(best)
        return where, best[where]

    return ask


def _own(member: OwnBaskets, basket: np.ndarray, household: int) -> Said:
    if household == NOBODY or not len(basket):
        return np.zeros(0, int), np.zeros(0, np.float32)
    first, last = member.start[household], member.start[household + 1]
    ends = member.past.indptr[first : last + 1]
    items = member.past.indices[ends[0] : ends[-1]]
    visit = np.repeat(np.arange(last - first), np.diff(ends))
    both = np.bincount(visit, np.isin(items, basket) * member.rarity[items], last - first)
    total = np.bincount(items, (both * member.fade[first:last])[visit], member.past.shape[1])
    where = np.flatnonzero(total)
    return where, total[where].astype(np.float32)
