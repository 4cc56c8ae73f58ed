"""Two stages: members propose, boosted trees put in order (chapter 05)."""

import copy
from collections.abc import Mapping
from typing import Self

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.models.base import Recommender, age_in_days, without_basket
from recutils.models.embeddings import EmbeddingRecommender
from recutils.models.habits import TIFUKNN, HouseholdFrequency, HouseholdRecency, OwnBaskets
from recutils.models.linear import EASE
from recutils.models.neighbours import ItemKNN, UserKNN
from recutils.models.rules import RuleRecommender
from recutils.ranker.candidates import Candidates, _joined, hide_in_turn, time_slot
from recutils.settings import TRAINING_SEED, cached, n_threads, release_memory

BATCH = 128  # queries at a time: each brings a row of all items for every member


class HybridRanker(Recommender):
    """Two stages: members propose candidates, boosted trees (LambdaMART) put them in order. Chapter 05.

    - `members`: named recommenders; each proposes its best items, `quota` of them (a number, or one a name), and
      gives two columns: its score, and the score standardised over all items it has scored for the query; a member
      that was fitted before it is passed in stays as it is
    - `labels`: baskets after training; from each, up to `hides` items are hidden in turn (and once all of them, so
      that the trees know empty baskets), and the trees learn to put what was hidden first; None: `fit` grows no
      trees, `learn` does
    - `groups`: a table (n_items rows) of labels, such as type and category: how many of the basket's items, and how
      many of the household's, share the candidate's
    - `numbers`: a table (n_items rows) of further item columns, such as the price

    Items that no member proposes follow behind in the order of the member `behind`, so that every item has a
    place. Source: Burges (2010); trees by LightGBM (Ke et al., 2017).
    """

    def __init__(
        self,
        members: Mapping[str, Recommender],
        labels: Baskets | None,
        groups: pd.DataFrame,
        numbers: pd.DataFrame | None = None,
        behind: str = "text",
        quota: int | Mapping[str, int] = 50,
        hides: int = 4,
        trees: int = 100,
        seed: int = TRAINING_SEED,
    ) -> None:
        if behind not in members:
            raise ValueError(f"behind is {behind!r}; name one of the members: {', '.join(members)}.")
        self.members, self.labels, self.groups, self.numbers = dict(members), labels, groups, numbers
        self.behind, self.hides, self.trees, self.seed = behind, hides, trees, seed
        self.quota = {name: quota if isinstance(quota, int) else quota[name] for name in members}
        self.to_fit = [name for name, member in members.items() if member.n_items is None]

    def _fit(self, train: Baskets) -> None:
        for name in self.to_fit:
            self.members[name].fit(train)
        release_memory()  # what fitting needed for a while
        self._know_items(train)
        self._know_households(train)
        if self.labels is not None:
            self.learn(self.table(*hide_in_turn(self.labels, self.hides), negatives=40))

    def learn(self, table: "Candidates") -> Self:
        """Grow the trees on a table of candidates; nothing else changes. What was grown is kept on disk."""
        told = table.told.to_numpy(np.float32)
        self.names = list(table.told)
        text = _grow_trees(told, table.wanted, np.bincount(table.rows), self.trees, self.seed)
        import lightgbm

        self.booster = lightgbm.Booster(model_str=text)
        return self

    def remember(self, train: Baskets) -> Self:
        """A copy in which only what households did is learned anew, from `train`; nothing else changes."""
        other = copy.copy(self)
        other.n_households = int(train.households.max(initial=-1)) + 1
        personal = (HouseholdFrequency, HouseholdRecency, OwnBaskets, TIFUKNN, UserKNN)
        other.members = {
            name: copy.copy(member).fit(train) if isinstance(member, personal) else member
            for name, member in self.members.items()
        }
        other._know_households(train)
        return other

    def _know_items(self, train: Baskets) -> None:
        matrix, size, age = train.matrix, np.diff(train.matrix.indptr), age_in_days(train)
        sold = np.asarray(matrix.sum(axis=0)).ravel()
        self.sold = sold > 0
        lately = np.asarray(matrix[age < 28].sum(axis=0)).ravel()
        buyers = self._purchases(train).tocsc()
        again = np.add.reduceat(np.append(buyers.data > 1, 0), buyers.indptr[:-1]) * (np.diff(buyers.indptr) > 0)
        self.of_items = {
            "popularity": np.log1p(sold),
            "trend": np.log((lately + 5) / (sold * np.mean(age < 28) + 5)),
            "repeat": again / np.maximum(np.diff(buyers.indptr), 1),
            "usual_size": (matrix.T @ size) / np.maximum(sold, 1),
            **({} if self.numbers is None else {c: self.numbers[c].to_numpy(float) for c in self.numbers}),
        }
        slot = time_slot(train.timestamps)
        share = np.bincount(slot + 1, minlength=13)[:, None] / len(train)  # row 0: moment unknown
        rows = sparse.csr_matrix((np.ones(len(train)), (slot + 1, np.arange(len(train)))), (13, len(train)))
        self.slots = np.log(((rows @ matrix).toarray() + 20 * share + 1e-9) / (share * (sold + 20) + 1e-9))
        self.slots[0] = 0
        self.codes = {c: pd.factorize(self.groups[c], use_na_sentinel=False)[0] for c in self.groups}
        self.one_hot = {c: sparse.csr_matrix(pd.get_dummies(v).to_numpy(np.float32)) for c, v in self.codes.items()}

    def _know_households(self, train: Baskets) -> None:
        bought = self._purchases(train)
        n = np.bincount(train.households[train.households >= 0], minlength=self.n_households)
        per = sparse.diags(1 / np.maximum(n, 1)) @ bought
        self.of_households = {"baskets": n, "their_size": np.asarray(per.sum(axis=1)).ravel()}
        self.of_households |= {f"their_{c}": (per @ m).toarray() for c, m in self.one_hot.items()}

    def table(
        self,
        queries: Baskets,
        wanted: sparse.csr_matrix | None = None,
        negatives: int | None = None,
        also: int | None = None,
    ) -> "Candidates":
        """The candidates of all queries, in batches; `wanted` (n_queries, n_items) marks what was hidden.

        `also`: an item that is looked at for every query, proposed or not.

        With `negatives`, about that many candidates that were not wanted are drawn for each query, and queries
        without a wanted candidate are left out: enough to learn from, never to measure with.
        """
        rng = np.random.default_rng(self.seed)
        parts = []
        for start in range(0, len(queries), BATCH):
            part = queries[start : start + BATCH]
            hidden = None if wanted is None else wanted[start : start + BATCH]
            parts.append(self._table(part, self._heard(part), hidden, negatives, rng, also))
            parts[-1].rows += start
        return _joined(parts)

    def look(self, queries: Baskets, items: np.ndarray) -> pd.DataFrame:
        """What the trees would see of one item a query, `items` (n_queries,), proposed or not: a row a query."""
        heard = self._heard(queries)
        for score in heard.values():
            without_basket(score, queries)
        told = self._tell(queries, heard, np.arange(len(queries)), np.asarray(items))
        return pd.DataFrame(told, dtype=np.float32)[self.names]

    def _heard(self, queries: Baskets) -> dict[str, np.ndarray]:
        """What each member says of every item: arrays of our own, which `_table` writes into."""
        return {name: member.score(queries).copy() for name, member in self.members.items()}

    def _table(
        self,
        queries: Baskets,
        scores: dict[str, np.ndarray],
        wanted: sparse.csr_matrix | None = None,
        negatives: int | None = None,
        rng: np.random.Generator | None = None,
        also: int | None = None,
    ) -> "Candidates":
        for score in scores.values():
            without_basket(score, queries)
        proposed = np.zeros((len(scores), *queries.matrix.shape), dtype=bool)
        for place, (name, score) in enumerate(scores.items()):
            best = np.argpartition(-score, min(self.quota[name], score.shape[1] - 1), axis=1)[:, : self.quota[name]]
            np.put_along_axis(proposed[place], best, np.isfinite(np.take_along_axis(score, best, axis=1)), axis=1)
        proposed &= self.sold  # of an item never sold only the member `behind` may speak
        mask = np.asarray(proposed.any(axis=0))
        if also is not None:
            mask[:, also] = True
        hidden = np.zeros(mask.shape, bool) if wanted is None else wanted.toarray() > 0
        if negatives is not None and rng is not None:
            drawn = rng.random(mask.shape) < negatives / np.maximum(mask.sum(axis=1, keepdims=True), 1)
            mask &= (drawn | hidden) & (mask & hidden).any(axis=1, keepdims=True)
        rows, columns = mask.nonzero()
        told = pd.DataFrame(self._tell(queries, scores, rows, columns), dtype=np.float32)
        return Candidates(rows, columns, told, hidden[rows, columns], proposed[:, rows, columns].T, list(scores))

    def _tell(
        self, queries: Baskets, scores: dict[str, np.ndarray], rows: np.ndarray, columns: np.ndarray
    ) -> dict[str, np.ndarray]:
        told: dict[str, np.ndarray] = {}
        for name, score in scores.items():
            value = score[rows, columns]
            value[np.isneginf(value)] = np.nan
            finite = np.isfinite(score)
            score[~finite] = 0
            n = np.maximum(finite.sum(axis=1), 1)
            mean = score.sum(axis=1) / n
            square = np.einsum("ij,ij->i", score, score) / n - mean**2
            told |= {name: value, f"{name}_z": (value - mean[rows]) / np.sqrt(np.maximum(square, 1e-12))[rows]}
        size = np.diff(queries.matrix.indptr)
        told |= {name: value[columns] for name, value in self.of_items.items()}
        told |= {"slot": self.slots[time_slot(queries.timestamps)[rows] + 1, columns], "size": size[rows]}
        for name, code in self.codes.items():
            told[f"same_{name}"] = (queries.matrix @ self.one_hot[name]).toarray()[rows, code[columns]]
        # A stranger is a household that has bought nothing: the last row, all zeros, is its.
        known = (queries.households >= 0) & (queries.households < self.n_households)
        house = np.where(known, queries.households, -1)[rows]
        for name, value in self.of_households.items():
            of = value[house] if value.ndim == 1 else value[house, self.codes[name.removeprefix("their_")][columns]]
            told[name] = np.where(house >= 0, of, 0)
        return told

    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        for start in range(0, len(queries), BATCH):
            part = queries[start : start + BATCH]
            heard = self._heard(part)
            scores[start : start + BATCH] = heard[self.behind] - 100  # below every sum of leaves
            table = self._table(part, heard)
            if len(table.rows):
                scores[start + table.rows, table.columns] = self.booster.predict(table.told[self.names].to_numpy())
        return scores


def shop_members(words: np.ndarray, network: Recommender) -> dict[str, Recommender]:
    """The nine members of the book's ranker: chapter 02's vectors, chapter 03's network, all else new."""
    return {
        "ease": EASE(100.0),
        "item_knn": ItemKNN(None),
        "rules": RuleRecommender(),
        "text": EmbeddingRecommender(words),
        "graph": network,
        "share": HouseholdRecency(100_000),  # never fades
        "recency": HouseholdRecency(90),
        "lately": HouseholdRecency(30),
        "own_baskets": OwnBaskets(),
    }


def shop_ranker(
    items: pd.DataFrame, prices: np.ndarray, members: Mapping[str, Recommender], labels: Baskets | None = None
) -> HybridRanker:
    """The book's ranker, not yet fitted: `shop_members`, how many each proposes, an item's groups and price."""
    quota = dict(zip(members, (40, 30, 20, 10, 10, 40, 40, 20, 40), strict=True))
    groups, numbers = items[["department", "category", "type"]], pd.DataFrame({"price": prices})
    return HybridRanker(members, labels, groups, numbers, quota=quota)


@cached(libraries=("lightgbm",))
def _grow_trees(told: np.ndarray, wanted: np.ndarray, sizes: np.ndarray, trees: int, seed: int) -> str:
    import lightgbm

    ranker = lightgbm.LGBMRanker(
        objective="lambdarank",
        lambdarank_truncation_level=10,
        n_estimators=trees,
        learning_rate=0.12,
        num_leaves=31,
        min_child_samples=50,
        subsample=0.8,
        subsample_freq=1,
        colsample_bytree=0.5,
        reg_lambda=5,
        max_bin=127,
        n_jobs=n_threads(),
        random_state=seed,
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )
    ranker.fit(told, wanted.astype(np.int8), group=sizes[sizes > 0])
    return ranker.booster_.model_to_string()
