"""One contract for every recommender, and each model against a known answer."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from recutils import evaluate, recommend
from recutils.data import Baskets

MODELS = {
    "popularity": recommend.Popularity,
    "household_frequency": recommend.HouseholdFrequency,
    "item_knn": recommend.ItemKNN,
    "ease": lambda: recommend.EASE(regularisation=10.0),
    "rules": lambda: recommend.RuleRecommender(min_support=0.01, min_confidence=0.05),
    "embedding": lambda: recommend.EmbeddingRecommender(VECTORS, prior=0.1, household=0.5),
}
VECTORS = np.random.default_rng(0).normal(size=(30, 8))  # an item of the made-up shop each


def baskets(rows, households=None):
    matrix = sparse.csr_matrix(np.asarray(rows, dtype=np.float32))
    households = np.zeros(len(rows), int) if households is None else np.asarray(households)
    return Baskets(matrix, households, np.zeros(len(rows), "datetime64[ns]"))


# bread 0, butter 1, pasta 2, sauce 3, tea 4: pasta comes with sauce, bread with butter; household 1 drinks tea.
TOY = baskets(
    np.array([list(map(int, row)) for row in ["11000", "11000", "10000", "00110", "00110", "10001", "00001"]]),
    households=[0, 0, 0, 0, 0, 1, 1],
)


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def test_contract(make, sample_split):
    """fit returns self; scores have the right shape, do not change the queries, repeat, and go row by row."""
    model = make()
    assert model.fit(sample_split.train) is model
    queries, _ = evaluate.hide_one(sample_split.test)
    before = queries.matrix.copy()
    scores = model.score(queries)
    assert scores.shape == queries.matrix.shape and scores.dtype == np.float32 and not np.isnan(scores).any()
    assert (queries.matrix != before).nnz == 0
    np.testing.assert_array_equal(scores, make().fit(sample_split.train).score(queries))
    order = np.random.default_rng(0).permutation(len(queries))
    np.testing.assert_allclose(model.score(queries[order]), scores[order], rtol=1e-5)
    assert np.isfinite(scores).any()


def test_recommend_leaves_out_the_basket_and_works_in_batches(make, sample_split):
    model = make().fit(sample_split.train)
    queries = sample_split.test
    top = model.recommend(queries, k=5)
    assert top.shape == (len(queries), 5)
    held = queries.matrix.toarray()
    for row, items in enumerate(top):
        offered = items[items >= 0]
        assert len(set(offered)) == len(offered) and held[row, offered].sum() == 0
    np.testing.assert_array_equal(top[:7], model.recommend(queries[:7], k=5))
    assert model.recommend(queries[:0], k=5).shape == (0, 5)


def test_strangers_and_empty_baskets_are_answered(make, sample_split):
    model = make().fit(sample_split.train)
    nothing = Baskets(
        sparse.csr_matrix((2, model.n_items), dtype=np.float32), np.array([-1, 10**6]), np.zeros(2, "M8[ns]")
    )
    assert model.score(nothing).shape == (2, model.n_items)
    assert len(model.similar_items(0, k=3)) == 3 and 0 not in model.similar_items(0, k=3)


def test_misuse_gets_one_clear_error(make, sample_split):
    with pytest.raises(ValueError, match="call fit"):
        make().score(sample_split.test)
    with pytest.raises(ValueError, match="got no purchases"):
        make().fit(sample_split.train[:0])
    model = make().fit(sample_split.train)
    with pytest.raises(ValueError, match="make both with the same items"):
        model.score(TOY)
    with pytest.raises(ValueError, match="ask for 1 item or more"):
        model.recommend(sample_split.test, k=0)
    with pytest.raises(ValueError, match="Item 99 is unknown"):
        model.similar_items(99)


def test_toy_with_a_known_answer(make):
    """Pasta in the basket: every model that looks at the basket offers sauce; the others do what they say."""
    of_its_size = {
        "RuleRecommender": lambda: recommend.RuleRecommender(0.1, 0.1),
        "EmbeddingRecommender": lambda: recommend.EmbeddingRecommender(
            np.array([[1, 0], [1, 0], [0, 1], [0, 1], [-1, -1]])
        ),
    }
    model = of_its_size.get(type(make()).__name__, make)().fit(TOY)
    first = model.recommend(baskets([[0, 0, 1, 0, 0]], [1]), k=1)[0, 0]
    expected = {"Popularity": 0, "HouseholdFrequency": 4}.get(type(model).__name__, 3)
    assert first == expected


@pytest.mark.parametrize("name", ["item_knn", "ease", "rules"])
def test_planted_companions_are_found(name, sample, sample_split):
    """The made-up shop plants bread -> butter, pasta -> sauce, tea -> biscuit."""
    model = MODELS[name]().fit(sample_split.train)
    place = {name: i for i, name in enumerate(sample_split.items["name"])}
    for cause, effect in (("pasta small", "sauce small"), ("tea small", "biscuit small")):
        assert place[effect] in model.similar_items(place[cause], k=2), (name, cause)


@pytest.mark.parametrize("name", ["household_frequency", "item_knn", "ease", "rules"])
def test_models_beat_popularity_on_the_store(name, journey_split):
    options = {"rules": lambda: recommend.RuleRecommender(0.0003), "ease": lambda: recommend.EASE(100.0)}
    model = options.get(name, MODELS[name])().fit(journey_split.train)
    popularity = evaluate.complete_the_basket(
        recommend.Popularity().fit(journey_split.train), journey_split, on="validation"
    )
    result = evaluate.complete_the_basket(model, journey_split, on="validation")
    low, _ = evaluate.bootstrap_ci(result.values("ndcg@10") - popularity.values("ndcg@10"), result.households)
    assert low > 0.02 and popularity.mean("ndcg@10") == pytest.approx(0.0536, rel=0.01)


def test_popularity_and_household_frequency_by_hand():
    query = baskets([[0, 0, 0, 0, 0]] * 2, [1, -1])
    np.testing.assert_allclose(
        recommend.Popularity().fit(TOY).score(query)[0], np.array([4, 2, 2, 2, 2]) / 7, rtol=1e-6
    )
    scores = recommend.HouseholdFrequency().fit(TOY).score(query)
    np.testing.assert_allclose(scores[0], np.array([1, 0, 0, 0, 2]) + np.array([4, 2, 2, 2, 2]) / 14, rtol=1e-6)
    np.testing.assert_allclose(scores[1], np.array([4, 2, 2, 2, 2]) / 14, rtol=1e-6)


def test_item_knn_is_the_cosine_of_scikit_learn(sample_split):
    model = recommend.ItemKNN(neighbours=None).fit(sample_split.train)
    cosine = cosine_similarity(sample_split.train.matrix.T)
    np.fill_diagonal(cosine, 0)
    expected = sample_split.test.matrix @ cosine
    got = model.score(sample_split.test)
    np.testing.assert_allclose(np.where(np.isneginf(got), 0, got), expected, atol=1e-5)


def test_item_knn_keeps_the_nearest_neighbours(sample_split):
    model = recommend.ItemKNN(neighbours=3).fit(sample_split.train)
    cosine = cosine_similarity(sample_split.train.matrix.T)
    np.fill_diagonal(cosine, 0)
    for item in range(model.n_items):
        column = model.similarity[:, [item]].toarray().ravel()
        assert set(np.flatnonzero(column)) == set(np.argsort(-cosine[item])[:3])


def test_ease_is_a_ridge_regression_an_item(sample_split):
    """Column j of B solves the ridge regression of item j on all other items."""
    model = recommend.EASE(regularisation=10.0).fit(sample_split.train)
    x = sample_split.train.matrix.toarray()
    assert (np.diag(model.weights) == 0).all()
    for j in (0, 7, x.shape[1] - 1):
        others = np.delete(np.arange(x.shape[1]), j)
        ridge = Ridge(alpha=10.0, fit_intercept=False).fit(x[:, others], x[:, j])
        np.testing.assert_allclose(model.weights[others, j], ridge.coef_, atol=1e-4)


@pytest.mark.parametrize("measure", ["confidence", "lift"])
def test_rules_score_by_the_strongest_rule_that_fires(measure, sample_split):
    model = recommend.RuleRecommender(0.01, 0.05, max_len=3, measure=measure).fit(sample_split.train)
    scores = model.score(sample_split.test[:25])
    for row in range(25):
        held = set(sample_split.test.matrix[row].indices)
        best: dict[int, float] = {}
        for rule in model.rules.itertuples():
            if rule.antecedents <= held:
                item = next(iter(rule.consequents))
                best[item] = max(best.get(item, -np.inf), getattr(rule, measure))
        expected = np.full(model.n_items, -np.inf)
        expected[list(best)] = list(best.values())
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5)


def test_top_k_breaks_ties_by_column_and_marks_what_is_left_out():
    scores = np.array([[1.0, 3.0, 3.0, 0.0], [-np.inf, -np.inf, 2.0, -np.inf]])
    assert recommend.top_k(scores, 3).tolist() == [[1, 2, 0], [2, -1, -1]]
    rng = np.random.default_rng(0)
    many = rng.integers(5, size=(50, 30)).astype(float)
    expected = np.argsort(-many, axis=1, kind="stable")
    for k in (1, 7, 30, 99):
        np.testing.assert_array_equal(recommend.top_k(many, k), expected[:, :k])


def test_the_table_of_a_fitted_rule_model_says_what_it_knows():
    rules = recommend.RuleRecommender(0.1, 0.1).fit(TOY).rules
    assert isinstance(rules, pd.DataFrame) and rules["confidence"].is_monotonic_increasing


def test_embeddings_score_by_cosine_prior_and_household():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, -1.0]])
    train = baskets([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], [0, 0, 1, 1])
    query = baskets([[1, 0, 0, 0], [0, 0, 0, 0]], [1, -1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    plain = recommend.EmbeddingRecommender(vectors).fit(train).score(query)
    np.testing.assert_allclose(plain, [unit @ unit[0], np.zeros(4)], atol=1e-6)
    tastes = recommend.EmbeddingRecommender(vectors, household=0.5).fit(train).score(query)
    wish = unit[0] + 0.5 * (2 * unit[1] + unit[2]) / 3  # household 1 bought item 1 twice and item 2 once
    np.testing.assert_allclose(tastes[0], unit @ wish / np.linalg.norm(wish), atol=1e-6)
    model = recommend.EmbeddingRecommender(vectors, prior=0.3).fit(train)
    logs = np.log([2, 3, 1])
    np.testing.assert_allclose(model.popularity[:3], (logs - logs.mean()) / logs.std(), rtol=1e-5)
    # Item 3 was never sold and points away from the popular item 1: its predicted popularity is low.
    assert model.popularity[3] < 0
    np.testing.assert_allclose(model.score(query), plain + 0.3 * model.popularity, atol=1e-6)
    with pytest.raises(ValueError, match="4 vectors for 5 items"):
        recommend.EmbeddingRecommender(vectors).fit(TOY)


def test_predicted_popularity_is_ridge_regression(sample_split):
    hidden = sparse.diags((np.arange(30) != 3).astype(np.float32))
    emptied = replace(sample_split.train, matrix=sparse.csr_matrix(sample_split.train.matrix @ hidden))
    model = recommend.EmbeddingRecommender(VECTORS, prior=1.0).fit(emptied)
    sold = np.asarray(emptied.matrix.sum(axis=0)).ravel() > 0
    ridge = Ridge(alpha=1.0, fit_intercept=False).fit(model.vectors[sold], model.popularity[sold])
    np.testing.assert_allclose(model.popularity[~sold], ridge.predict(model.vectors[~sold]), rtol=1e-4)
