"""Two stages: members retrieve candidates, boosted trees put them in order (chapter 05)."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import ANONYMOUS, NOTHING, ItemScores, OneScore, Recommender, age_in_days, top_k
from recutils.models.embeddings import EmbeddingRecommender
from recutils.models.habits import HouseholdRecency, HouseholdSessionKNN
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN
from recutils.models.rules import RuleRecommender
from recutils.ranker.candidates import Candidates, MemberScores, Query, holdout_queries, member_scores, stack
from recutils.ranker.features import FeatureBuilder, slot_of, time_slot
from recutils.settings import TRAINING_SEED, cached, n_threads, release_memory

BATCH = 128  # queries whose candidates are scored at once


@dataclass(frozen=True)
class RankerSettings:
    """How a `HybridRanker` retrieves and learns.

    - `n_candidates`: how many items each member retrieves, one number for all or a number a name
    - `fallback`: the member by whose order the items follow that no member retrieved
    - `n_holdouts`: how many items of a label basket are hidden in turn (and once all of them, so that the trees know
      empty baskets); `n_negatives`: about how many candidates that were not hidden the trees see of each query
    - `empty_weight`: what a candidate of an empty basket weighs; it has many hidden items and would lead the learning
    - `origins`: days before the end of training. At each the past is cut off, the members are fitted to what came
      before, and `n_origin_baskets` of the baskets of days 7 to 35 after it are further label baskets
    - `silent`: members that cannot be asked at an earlier origin, since what they hold was learned on later weeks
    - `n_trees`, `learning_rate`, `seed`: of the trees
    """

    n_candidates: int | Mapping[str, int] = 50
    fallback: str = "text"
    n_holdouts: int = 4
    n_negatives: int = 40
    empty_weight: float = 0.1
    origins: tuple[int, ...] = ()
    n_origin_baskets: int = 3000
    silent: tuple[str, ...] = ()
    n_trees: int = 100
    learning_rate: float = 0.12
    seed: int = TRAINING_SEED

    def count(self, member: str) -> int:
        """How many items a member retrieves."""
        return self.n_candidates[member] if isinstance(self.n_candidates, Mapping) else self.n_candidates

    def check(self, members: Sequence[str]) -> None:
        """Raises ValueError where names do not fit the members."""
        if self.fallback not in members:
            raise ValueError(f"fallback is {self.fallback!r}; name one of the members: {', '.join(members)}.")
        if isinstance(self.n_candidates, Mapping) and set(self.n_candidates) != set(members):
            wrong = ", ".join(sorted(set(self.n_candidates) ^ set(members)))
            raise ValueError(f"n_candidates and the members differ in {wrong}; give one number a member.")


DEFAULTS = RankerSettings()


@dataclass
class Trees:
    """LambdaMART as it was grown: the columns it reads, in order, and LightGBM's booster."""

    columns: list[str]
    booster: Any

    @classmethod
    def from_text(cls, columns: list[str], text: str) -> Self:
        """From LightGBM's own text form."""
        import lightgbm

        return cls(columns, lightgbm.Booster(model_str=text))

    def predict(self, features: pd.DataFrame) -> np.ndarray:
        """Scores (n_candidates,) of a table that holds the columns, in any order."""
        return np.asarray(self.booster.predict(features[self.columns].to_numpy(np.float32)))


class HybridRanker(Recommender):
    """Two stages: members retrieve candidates, boosted trees (LambdaMART) put them in order. Chapter 05.

    - `members`: named recommenders; each retrieves its best items and gives two columns (see `FeatureBuilder`); a
      member that was fitted before it is passed in stays as it is
    - `groups`, `item_columns`: tables with a row an item, see `FeatureBuilder`
    - `label_baskets`: baskets after training, opened by `holdout_queries`, from which the trees learn to put what was
      hidden first; None: `fit` grows no trees, `fit_ranker` or `use_trees` does

    A batch is scored query by query, by the code that serves one basket, so both give the same scores. Items that no
    member retrieves follow below the candidates in the order of the member `settings.fallback`.
    Source: Burges (2010); trees by LightGBM (Ke et al., 2017).
    """

    def __init__(
        self,
        members: Mapping[str, Recommender],
        groups: pd.DataFrame,
        item_columns: pd.DataFrame | None = None,
        label_baskets: Baskets | None = None,
        settings: RankerSettings = DEFAULTS,
    ) -> None:
        settings.check(list(members))
        self.members, self.groups, self.item_columns = members, groups, item_columns
        self.label_baskets, self.settings = label_baskets, settings
        self._trees: Trees | None = None
        self.to_fit = [name for name, member in members.items() if member.n_items is None]

    @property
    def trees(self) -> Trees:
        """The trees that put candidates in order. Raises ValueError where there are none yet."""
        if self._trees is None:
            raise ValueError("No trees yet; pass label_baskets, or call fit_ranker or use_trees.")
        return self._trees

    # ------------------------------------------------------------------------------------------ learning

    def _fit(self, train: Baskets) -> None:
        if self.groups is None:
            raise ValueError("A loaded ranker scores and refreshes; to fit one, build it anew with its groups.")
        self.features = FeatureBuilder(self.members, self.groups, self.item_columns)
        if self.label_baskets is not None:  # before the members are fitted: so they do not lie in memory twice
            parts = {name: _described(member) for name, member in self.members.items()}
            past, later = (
                (b.matrix, b.households, b.timestamps.astype("datetime64[us]")) for b in (train, self.label_baskets)
            )
            columns, text = _trees_after(
                parts, self.features.group_codes, self.item_columns, asdict(self.settings), past, later
            )
        for name in self.to_fit:
            self.members[name].fit(train)
        release_memory()  # what fitting needed for a while
        self.features.fit_item_features(train).fit_household_features(train)
        if self.label_baskets is not None:
            self.use_trees(Trees.from_text(columns, text))

    def training_table(self, train: Baskets, label_baskets: Baskets) -> Candidates:
        """What the trees learn from: candidates of the label baskets, and of those after each earlier origin."""
        return Candidates.concatenate([self._labelled(label_baskets), *self.origin_tables(train)])

    def origin_tables(self, train: Baskets) -> list[Candidates]:
        """Candidates of label baskets after each of the earlier `settings.origins`; the ranker need not be fitted."""
        age, rng, parts = age_in_days(train), np.random.default_rng(self.settings.seed), []
        for days in self.settings.origins:
            later = np.flatnonzero((age < days - 7) & (age >= days - 35))
            chosen = rng.permutation(later)[: self.settings.n_origin_baskets]
            parts.append(self.at_origin(train[np.flatnonzero(age >= days)])._labelled(train[np.sort(chosen)]))
            release_memory()
        return parts

    def _labelled(self, baskets: Baskets) -> Candidates:
        queries, labels = holdout_queries(baskets, self.settings.n_holdouts)
        return self.table(queries, labels, self.settings.n_negatives)

    def at_origin(self, past: Baskets) -> Self:
        """The same ranker, without trees, as it would have been after `past`; `silent` members say nothing."""
        members = {
            name: Silent() if name in self.settings.silent else member.unfitted()
            for name, member in self.members.items()
        }
        return type(self)(members, self.groups, self.item_columns, settings=self.settings).fit(past)

    def fit_ranker(self, table: Candidates) -> Self:
        """Grow the trees on a table of candidates (`training_table`); nothing else changes. They are kept on disk."""
        return self.use_trees(_trees_of(table, self.settings))

    def use_trees(self, trees: Trees) -> Self:
        """Take over trees that were grown elsewhere. Raises ValueError where they read columns that are not here."""
        columns = self.features.columns
        if missing := [name for name in trees.columns if name not in columns]:
            raise ValueError(f"The trees read {', '.join(missing)}, which this ranker's members do not give.")
        self._trees = trees
        self.tree_columns = np.array([columns.index(name) for name in trees.columns])  # where they stand
        return self

    def refresh(self, train: Baskets) -> Self:
        """A copy in which only what households did is counted anew, from `train`; nothing else changes."""
        other = copy.copy(self)
        other.n_households = int(train.households.max(initial=-1)) + 1
        other.members = {name: member.refresh(train) for name, member in self.members.items()}
        other.features = copy.copy(self.features).fit_household_features(train)
        return other

    def with_member(self, name: str, member: Recommender) -> Self:
        """A copy in which a fitted `member` stands in the place of the one of that name."""
        if name not in self.members:
            raise ValueError(f"There is no member {name!r}; there are {', '.join(self.members)}.")
        other = copy.copy(self)
        other.members = {**self.members, name: member}
        return other

    # ------------------------------------------------------------------------------------------ candidates

    def table(
        self,
        queries: Baskets,
        labels: sparse.csr_matrix | None = None,
        n_negatives: int | None = None,
        force_include: int | None = None,
    ) -> Candidates:
        """The candidates of all queries; `labels` (n_queries, n_items) marks what was hidden.

        `force_include`: an item that is a candidate of every query, retrieved or not.

        With `n_negatives`, about that many candidates that were not hidden are drawn for each query, and queries
        without a hidden candidate are left out: enough to learn from, never to measure with.
        """
        rng = np.random.default_rng(self.settings.seed)
        hidden = np.zeros(queries.matrix.shape[1], bool)
        parts, tables = [_nothing(len(self.members))], []
        for row, query in enumerate(_each(queries)):
            found, items = self._candidates(query, force_include)
            hidden[:] = False
            if labels is not None:
                hidden[labels.indices[labels.indptr[row] : labels.indptr[row + 1]]] = True
            if n_negatives is not None:
                drawn = rng.random(len(hidden)) < n_negatives / max(len(items), 1)
                items = items[drawn[items] | hidden[items]] if hidden[items].any() else items[:0]
            tables.append(self.features.build_features(found, items, query))
            parts.append((np.full(len(items), row), items, hidden[items], found.retrieved[:, items].T))
        rows, columns, hid, retrieved = (np.concatenate(column) for column in zip(*parts, strict=True))
        names = self.features.columns
        features = pd.DataFrame(stack(tables, len(names)), columns=names)
        return Candidates(rows, columns, features, hid, retrieved, list(self.members))

    def _candidates(self, query: Query, force_include: int | None = None) -> tuple[MemberScores, np.ndarray]:
        """What the members say of one query, and the candidates' columns, ascending."""
        counts = [self.settings.count(name) for name in self.members]
        found = member_scores(list(self.members.values()), counts, self.n_items or 0, query)
        found.retrieved &= self.features.sold  # of an item never sold only the fallback may speak
        retrieved: np.ndarray = np.logical_or.reduce(found.retrieved)
        if force_include is not None:
            retrieved[force_include] = True
        return found, np.flatnonzero(retrieved)

    def features_for_items(self, queries: Baskets, items: np.ndarray) -> pd.DataFrame:
        """What the trees see of one item a query, `items` (n_queries,), retrieved or not: a row a query."""
        rows = []
        for item, query in zip(np.asarray(items), _each(queries), strict=True):
            found, _ = self._candidates(query)
            rows.append(self.features.build_features(found, np.array([item]), query))
        return pd.DataFrame(np.concatenate(rows), columns=self.features.columns)[self.trees.columns]

    # ------------------------------------------------------------------------------------------ scores

    def score_candidates(self, table: Candidates) -> np.ndarray:
        """The trees' scores of a table of candidates: (n_candidates,)."""
        return self.trees.predict(table.features)

    def score_items(self, queries: Baskets, items: np.ndarray) -> np.ndarray:
        """The score of one item a query as if it had been retrieved, so that it does not jump where it was not."""
        return self.trees.predict(self.features_for_items(queries, items))

    def score_with_item(self, queries: Baskets, item: int) -> ItemScores:
        """See `Recommender.score_with_item`: the candidates only."""
        table = self.table(queries, force_include=item)
        scores = np.full(queries.matrix.shape, -np.inf)
        scores[table.rows, table.columns] = self.score_candidates(table)
        own = np.flatnonzero((table.rows == 0) & (table.columns == item))
        return ItemScores(scores, bool(table.retrieved_by[own].any()), table.features.iloc[own][self.trees.columns])

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        fallback = list(self.members).index(self.settings.fallback)
        for start in range(0, len(queries), BATCH):
            items, features = [], []
            for row, query in enumerate(_each(queries[start : start + BATCH]), start):
                found, columns = self._candidates(query)
                items.append(columns)
                features.append(self._tree_features(found, columns, query))
                scores[row] = found.values[fallback]
            ends = np.cumsum([len(columns) for columns in items])
            found_scores = self._predict(np.concatenate(features))
            for row, (columns, own) in enumerate(zip(items, np.split(found_scores, ends[:-1]), strict=True), start):
                scores[row] = below(scores[row], columns, own)
                scores[row, columns] = own
        return scores

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`: the row that `score` gives."""
        items, own, fallback = self._rank_one(basket, household, timestamp)
        scores = below(fallback, items, own)
        scores[items] = own
        columns = np.flatnonzero(scores > -np.inf)
        return columns, scores[columns]

    def recommend_one(
        self, basket: Any, household: int = ANONYMOUS, timestamp: Any = None, k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best items that are not in one open basket, best first, and their scores: as `recommend`, fast.

        `basket`: item columns; `household`: a row of the training households, else unknown; `timestamp`: a datetime
        or None.
        """
        items, scores, fallback = self._rank_one(basket, household, timestamp)
        if len(items) < k:
            rest = below(fallback, items, scores)
            more = top_k(rest[None], k - len(items))[0]
            more = more[more >= 0]
            items, scores = np.append(items, more), np.append(scores, rest[more])
        best = np.argsort(-scores, kind="stable")[:k]
        return items[best], scores[best]

    def _rank_one(self, basket: Any, household: int, timestamp: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates of one query, their scores, and the fallback's scores of all items (n_items,)."""
        query = Query(np.unique(np.asarray(basket, dtype=np.int64)), household, timestamp, slot_of(timestamp))
        found, items = self._candidates(query)
        scores = self._predict(self._tree_features(found, items, query), num_threads=1)
        return items, scores, found.values[list(self.members).index(self.settings.fallback)]

    def _tree_features(self, found: MemberScores, items: np.ndarray, query: Query) -> np.ndarray:
        """The columns that the trees read, in their order."""
        features = self.features.build_features(found, items, query)
        return features if self.trees.columns == self.features.columns else features[:, self.tree_columns]

    def _predict(self, features: np.ndarray, **how: int) -> np.ndarray:
        if not len(features):
            return np.zeros(0, np.float32)
        return np.asarray(self.trees.booster.predict(features, **how), dtype=np.float32)

    def fired_rules(self, basket: np.ndarray, item: int) -> pd.DataFrame | None:
        """See `Recommender.fired_rules`: those of the first member that has rules."""
        found = (member.fired_rules(basket, item) for member in self.members.values())
        return next((rules for rules in found if rules is not None), None)

    # ------------------------------------------------------------------------------------------ state

    def state(self) -> dict[str, Any]:
        """See `Recommender.state`."""
        return {
            "members": dict(self.members),
            "features": self.features.state(),
            "trees": {"columns": self.trees.columns, "model": self.trees.booster.model_to_string()},
            "settings": asdict(self.settings),
            "n_items": self.n_items,
            "n_households": self.n_households,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """See `Recommender.from_state`."""
        ranker = cls.__new__(cls)
        rest = {name: value for name, value in state.items() if name != "trees"}
        vars(ranker).update(rest, groups=None, item_columns=None, label_baskets=None, to_fit=[])
        ranker.settings = RankerSettings(**state["settings"])
        ranker.features = FeatureBuilder.from_state(state["features"])
        return ranker.use_trees(Trees.from_text(state["trees"]["columns"], state["trees"]["model"]))


def _each(queries: Baskets) -> Iterator[Query]:
    """The queries one by one."""
    matrix, slots = queries.matrix, time_slot(queries.timestamps).tolist()
    moments = pd.DatetimeIndex(queries.timestamps)
    for row, (household, moment, slot) in enumerate(zip(queries.households.tolist(), moments, slots, strict=True)):
        basket = np.sort(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]])
        yield Query(basket, household, None if moment is pd.NaT else moment, slot)


def _nothing(n_members: int) -> tuple[np.ndarray, ...]:
    """The part of no query, so that a table of none has its columns too: rows, columns, labels, retrieved by."""
    none = np.zeros(0, np.int64)
    return none, none, none.astype(bool), np.zeros((0, n_members), bool)


def below(fallback: np.ndarray, items: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores of all items but the candidates, below every candidate's, in the order of `fallback` (n_items,).

    Equal ones stay equal; -inf stays, and stands for the candidates too. Whole steps downwards, so that float32
    keeps the order however large or close the fallback's own scores are.
    """
    rest = fallback.copy()
    rest[items] = -np.inf
    finite = np.flatnonzero(rest > -np.inf)
    _, level = np.unique(-rest[finite], return_inverse=True)
    rest[finite] = np.floor(scores.min(initial=0)) - 1 - level
    return rest


def shop_members(words: np.ndarray, network: Recommender) -> dict[str, Recommender]:
    """The nine members of the book's ranker: chapter 02's vectors, chapter 03's network, all else new."""
    return {
        "ease": EASE(100.0),
        "item_knn": ItemKNN(None),
        "rules": RuleRecommender(),
        "text": EmbeddingRecommender(words),
        "graph": network,
        "frequency_share": HouseholdRecency(100_000),  # no decay
        "recency": HouseholdRecency(90),
        "recency_30": HouseholdRecency(30),
        "session_knn": HouseholdSessionKNN(),
    }


SHOP_CANDIDATES = {
    "ease": 40,
    "item_knn": 30,
    "rules": 20,
    "text": 10,
    "graph": 10,
    "frequency_share": 40,
    "recency": 40,
    "recency_30": 20,
    "session_knn": 40,
}
SHOP_SETTINGS = RankerSettings(
    SHOP_CANDIDATES,
    n_negatives=30,
    origins=(35, 70, 112),
    n_origin_baskets=5000,
    silent=("text", "graph"),
    n_trees=300,
    learning_rate=0.06,
)


def shop_ranker(
    items: pd.DataFrame,
    prices: np.ndarray,
    members: Mapping[str, Recommender],
    label_baskets: Baskets | None = None,
    settings: RankerSettings = SHOP_SETTINGS,
) -> HybridRanker:
    """The book's ranker, not yet fitted: `shop_members`, how many each retrieves, an item's groups and price."""
    groups, item_columns = items[["department", "category", "type"]], pd.DataFrame({"price": prices})
    return HybridRanker(members, groups, item_columns, label_baskets, settings)


def _described(member: Recommender) -> tuple[type[Recommender], bool, dict[str, Any]]:
    """A member as what it does depends on: its class, whether it is fitted, and its state or else its arguments."""
    fitted = member.n_items is not None
    return type(member), fitted, member.state() if fitted else member.get_params()


@cached(libraries=("lightgbm",))
def _trees_after(
    members: dict[str, tuple[type[Recommender], bool, dict[str, Any]]],
    group_codes: dict[str, np.ndarray],
    item_columns: pd.DataFrame | None,
    settings: dict[str, Any],
    past: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
    later: tuple[sparse.csr_matrix, np.ndarray, np.ndarray],
) -> tuple[list[str], str]:
    """Columns and text of the trees that a ranker of these members grows, kept on disk: its tables take a minute."""
    made = {name: kind.from_state(how) if fitted else kind(**how) for name, (kind, fitted, how) in members.items()}
    ranker = HybridRanker(made, pd.DataFrame(group_codes), item_columns, settings=RankerSettings(**settings))
    train, labels = Baskets(*past), Baskets(*later)
    parts = ranker.origin_tables(train)  # before the members lie in memory
    parts.insert(0, ranker.fit(train)._labelled(labels))
    del ranker, made
    release_memory()
    trees = _trees_of(Candidates.concatenate(parts), RankerSettings(**settings))
    return trees.columns, trees.booster.model_to_string()


def _trees_of(table: Candidates, settings: RankerSettings) -> Trees:
    """LambdaMART on a table of candidates; what was grown is kept on disk."""
    features, sizes = table.features.to_numpy(np.float32), np.bincount(table.rows)
    empty = table.features["size"] == 0 if "size" in table.features else np.zeros(len(features), bool)
    weights = np.where(empty, settings.empty_weight, 1).astype(np.float32)
    how = {"n_estimators": settings.n_trees, "learning_rate": settings.learning_rate, "random_state": settings.seed}
    return Trees.from_text(list(table.features), _grow_trees(features, table.labels, sizes, weights, how))


@cached(libraries=("lightgbm",))
def _grow_trees(
    features: np.ndarray, labels: np.ndarray, sizes: np.ndarray, weights: np.ndarray, how: dict[str, Any]
) -> str:
    import lightgbm

    ranker = lightgbm.LGBMRanker(
        objective="lambdarank",
        lambdarank_truncation_level=10,
        num_leaves=31,
        min_child_samples=50,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5,
        max_bin=127,
        n_jobs=n_threads(),
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
        **how,
    )
    ranker.fit(features, labels.astype(np.int8), group=sizes[sizes > 0], sample_weight=weights)
    return ranker.booster_.model_to_string()


class Silent(Recommender):
    """A member that says nothing: in the place of one that cannot be asked."""

    def _fit(self, train: Baskets) -> None:
        pass

    def _score(self, queries: Baskets) -> np.ndarray:
        return np.full(queries.matrix.shape, -np.inf, dtype=np.float32)

    def score_one(self, basket: np.ndarray, household: int = ANONYMOUS, timestamp: Any = None) -> OneScore:
        """See `Recommender.score_one`."""
        return NOTHING
