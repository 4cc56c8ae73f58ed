"""One contract for every recommender, and each model against a known answer."""

import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from recutils import bundles, evaluate, models, ranker
from recutils.data.schema import Baskets
from recutils.ranker.candidates import stack
from recutils.ranker.history import HISTORY_COLUMNS, history_rows, purchase_history


def hybrid():
    """The two-stage ranker on the made-up shop; its labels are drawn from the sample's own first weeks."""
    members = {
        "ease": models.EASE(10.0),
        "text": models.EmbeddingRecommender(VECTORS, prior=0.1),
        "recency": models.HouseholdRecency(),
        "session_knn": models.HouseholdSessionKNN(),
    }
    rng = np.random.default_rng(1)
    labels = baskets((rng.random((80, 30)) < 0.2).astype(int), rng.integers(40, size=80))
    groups = pd.DataFrame({"kind": np.arange(30) % 10})
    return ranker.HybridRanker(members, groups, None, labels, ranker.RankerSettings(10, n_trees=10))


MODELS = {
    "popularity": models.Popularity,
    "household_frequency": models.HouseholdFrequency,
    "item_knn": models.ItemKNN,
    "ease": lambda: models.EASE(regularisation=10.0),
    "rules": lambda: models.RuleRecommender(min_support=0.01, min_confidence=0.05),
    "recency": models.HouseholdRecency,
    "session_knn": models.HouseholdSessionKNN,
    "user_knn": lambda: models.UserKNN(neighbours=10),
    "tifu_knn": lambda: models.TIFUKNN(neighbours=5),
    "als": lambda: models.ALS(factors=8),
    "feature_factors": lambda: models.FeatureFactors(VECTORS, factors=4),
    "hybrid": hybrid,
    "embedding": lambda: models.EmbeddingRecommender(VECTORS, prior=0.1, household=0.5),
    "with_history": lambda: models.WithHistory(models.EASE(10.0), weight=0.5),
    "blend": lambda: models.Blend([models.EASE(10.0), models.HouseholdRecency()], [1.0, 0.2]),
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


def test_unknown_households_and_empty_baskets_are_answered(make, sample_split):
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


@pytest.mark.parametrize("name", ["popularity", "household_frequency", "item_knn", "ease", "rules", "embedding"])
def test_toy_with_a_known_answer(name):
    """Pasta in the basket: every model that looks at the basket offers sauce; the others do what they say."""
    of_its_size = {
        "RuleRecommender": lambda: models.RuleRecommender(0.1, 0.1),
        "EmbeddingRecommender": lambda: models.EmbeddingRecommender(
            np.array([[1, 0], [1, 0], [0, 1], [0, 1], [-1, -1]])
        ),
    }
    make = MODELS[name]
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
    options = {"rules": lambda: models.RuleRecommender(0.0003), "ease": lambda: models.EASE(100.0)}
    model = options.get(name, MODELS[name])().fit(journey_split.train)
    popularity = evaluate.complete_the_basket(
        models.Popularity().fit(journey_split.train), journey_split, on="validation"
    )
    result = evaluate.complete_the_basket(model, journey_split, on="validation")
    low, _ = evaluate.bootstrap_ci(result.values("ndcg@10") - popularity.values("ndcg@10"), result.households)
    assert low > 0.02 and popularity.mean("ndcg@10") == pytest.approx(0.0536, rel=0.01)


def test_popularity_and_household_frequency_by_hand():
    query = baskets([[0, 0, 0, 0, 0]] * 2, [1, -1])
    np.testing.assert_allclose(models.Popularity().fit(TOY).score(query)[0], np.array([4, 2, 2, 2, 2]) / 7, rtol=1e-6)
    scores = models.HouseholdFrequency().fit(TOY).score(query)
    np.testing.assert_allclose(scores[0], np.array([1, 0, 0, 0, 2]) + np.array([4, 2, 2, 2, 2]) / 14, rtol=1e-6)
    np.testing.assert_allclose(scores[1], np.array([4, 2, 2, 2, 2]) / 14, rtol=1e-6)


def test_item_knn_is_the_cosine_of_scikit_learn(sample_split):
    model = models.ItemKNN(neighbours=None).fit(sample_split.train)
    cosine = cosine_similarity(sample_split.train.matrix.T)
    np.fill_diagonal(cosine, 0)
    expected = sample_split.test.matrix @ cosine
    got = model.score(sample_split.test)
    np.testing.assert_allclose(np.where(np.isneginf(got), 0, got), expected, atol=1e-5)


def test_item_knn_keeps_the_nearest_neighbours(sample_split):
    model = models.ItemKNN(neighbours=3).fit(sample_split.train)
    cosine = cosine_similarity(sample_split.train.matrix.T)
    np.fill_diagonal(cosine, 0)
    for item in range(model.n_items):
        column = model.similarity[:, [item]].toarray().ravel()
        assert set(np.flatnonzero(column)) == set(np.argsort(-cosine[item])[:3])


def test_ease_is_a_ridge_regression_an_item(sample_split):
    """Column j of B solves the ridge regression of item j on all other items."""
    model = models.EASE(regularisation=10.0).fit(sample_split.train)
    x = sample_split.train.matrix.toarray()
    assert (np.diag(model.weights) == 0).all()
    for j in (0, 7, x.shape[1] - 1):
        others = np.delete(np.arange(x.shape[1]), j)
        ridge = Ridge(alpha=10.0, fit_intercept=False).fit(x[:, others], x[:, j])
        np.testing.assert_allclose(model.weights[others, j], ridge.coef_, atol=1e-4)


@pytest.mark.parametrize("measure", ["confidence", "lift"])
def test_rules_score_by_the_strongest_rule_that_fires(measure, sample_split):
    model = models.RuleRecommender(0.01, 0.05, max_len=3, measure=measure).fit(sample_split.train)
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
    assert models.top_k(scores, 3).tolist() == [[1, 2, 0], [2, -1, -1]]
    rng = np.random.default_rng(0)
    many = rng.integers(5, size=(50, 30)).astype(float)
    expected = np.argsort(-many, axis=1, kind="stable")
    for k in (1, 7, 30, 99):
        np.testing.assert_array_equal(models.top_k(many, k), expected[:, :k])


def test_the_table_of_a_fitted_rule_model_says_what_it_knows():
    rules = models.RuleRecommender(0.1, 0.1).fit(TOY).rules
    assert isinstance(rules, pd.DataFrame) and rules["confidence"].is_monotonic_increasing


def test_embeddings_score_by_cosine_prior_and_household():
    vectors = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [0.0, -1.0]])
    train = baskets([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]], [0, 0, 1, 1])
    query = baskets([[1, 0, 0, 0], [0, 0, 0, 0]], [1, -1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    plain = models.EmbeddingRecommender(vectors).fit(train).score(query)
    np.testing.assert_allclose(plain, [unit @ unit[0], np.zeros(4)], atol=1e-6)
    tastes = models.EmbeddingRecommender(vectors, household=0.5).fit(train).score(query)
    wish = unit[0] + 0.5 * (2 * unit[1] + unit[2]) / 3  # household 1 bought item 1 twice and item 2 once
    np.testing.assert_allclose(tastes[0], unit @ wish / np.linalg.norm(wish), atol=1e-6)
    model = models.EmbeddingRecommender(vectors, prior=0.3).fit(train)
    logs = np.log([2, 3, 1])
    np.testing.assert_allclose(model.popularity[:3], (logs - logs.mean()) / logs.std(), rtol=1e-5)
    # Item 3 was never sold and points away from the popular item 1: its predicted popularity is low.
    assert model.popularity[3] < 0
    np.testing.assert_allclose(model.score(query), plain + 0.3 * model.popularity, atol=1e-6)
    with pytest.raises(ValueError, match="4 vectors for 5 items"):
        models.EmbeddingRecommender(vectors).fit(TOY)


def test_predicted_popularity_is_ridge_regression(sample_split):
    hidden = sparse.diags((np.arange(30) != 3).astype(np.float32))
    emptied = replace(sample_split.train, matrix=sparse.csr_matrix(sample_split.train.matrix @ hidden))
    model = models.EmbeddingRecommender(VECTORS, prior=1.0).fit(emptied)
    sold = np.asarray(emptied.matrix.sum(axis=0)).ravel() > 0
    ridge = Ridge(alpha=1.0, fit_intercept=False).fit(model.unit_vectors[sold], model.popularity[sold])
    np.testing.assert_allclose(model.popularity[~sold], ridge.predict(model.unit_vectors[~sold]), rtol=1e-4)


# ---------------------------------------------------------------------------------------------- households


def diary(days, rows, households=None):
    """Baskets on given days; the last of them is the end of training."""
    made = baskets(np.array([list(map(int, row)) for row in rows]), households)
    return replace(made, timestamps=np.datetime64("2024-01-01", "ns") + np.array(days) * np.timedelta64(1, "D"))


def test_recency_and_session_knn_by_hand():
    train = diary([0, 10, 20], ["110", "011", "001"], [0, 0, 1])
    query = baskets([[0, 1, 0], [0, 1, 0], [0, 0, 0]], [0, 1, 7])
    scores = models.HouseholdRecency(half_life=10).fit(train).score(query)
    np.testing.assert_allclose(scores[0], [1 / 3, 1, 2 / 3], rtol=1e-5)  # weights 1/4 and 1/2
    assert (scores[1] == [-np.inf, -np.inf, 1]).all() and np.isneginf(scores[2]).all()
    own = models.HouseholdSessionKNN(half_life=10).fit(train).score(query)
    rarity = np.log(3 / 2)
    np.testing.assert_allclose(own[0], rarity / np.sqrt(2) * np.array([0.25, 0.75, 0.5]), rtol=1e-5)
    assert np.isneginf(own[1:]).all()  # nothing in common, nobody known


def test_the_past_is_read_as_a_basket_with_a_weight():
    """Household 0 bought a (decayed to 1/4) and b, c: EASE is asked about the basket and these shares."""
    train = diary([0, 10, 20], ["110", "011", "001"], [0, 0, 1])
    query = baskets([[0, 1, 0], [0, 1, 0]], [0, 7])
    base = models.EASE(1.0).fit(train)
    model = models.WithHistory(base, weight=0.5, half_life=10).fit(train)
    past = np.array([1 / 3, 1, 2 / 3])  # weights 1/4 and 1/2, as shares
    expected = (np.array([0, 1, 0]) + 0.5 * past) @ base.weights
    np.testing.assert_allclose(model.score(query)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(model.score(query)[1], base.weights[1], rtol=1e-6)  # nobody's past is empty
    assert model.base is base and query.matrix.sum() == 2
    later = model.refresh(train[np.array([1])])  # only the second basket is known
    np.testing.assert_allclose(later.score(query)[0], np.array([0, 1.5, 0.5]) @ base.weights, rtol=1e-5)


def test_a_blend_is_the_weighted_sum_of_its_parts():
    train = diary([0, 10, 20], ["110", "011", "001"], [0, 0, 1])
    query = baskets([[0, 1, 0], [0, 1, 0]], [0, 7])
    parts = [models.EASE(1.0), models.HouseholdRecency(10)]
    model = models.Blend(parts, [1.0, 0.3]).fit(train)
    expected = parts[0].weights[1] + 0.3 * np.array([1 / 3, 1, 2 / 3])
    np.testing.assert_allclose(model.score(query)[0], expected, rtol=1e-5)
    np.testing.assert_allclose(model.score(query)[1], parts[0].weights[1], rtol=1e-6)  # who is unknown adds 0
    fresh, before = model.refresh(train[np.array([1])]), model.score(query)
    np.testing.assert_allclose(fresh.score(query)[0], parts[0].weights[1] + np.array([0, 0.3, 0.3]), rtol=1e-5)
    np.testing.assert_array_equal(model.score(query), before)
    assert fresh.parts[0] is parts[0]


def test_baselines_are_made_by_their_names(sample_split):
    """Every name in TUNED; what is made of others takes these as they were fitted."""
    fitted = {}
    for name, settings in models.TUNED.items():
        model = models.make_baseline(name, settings, fitted)
        assert model.n_items is None
        if name in models.BASELINES:
            assert type(model) is models.BASELINES[name] and settings.items() <= model.get_params().items()
        fitted[name] = model
    assert fitted["ease_history"].base is fitted["ease"] and fitted["item_knn_history"].weight == 0.03
    assert fitted["blend_three"].parts == [fitted[n] for n in ("ease", "household_recency", "session_knn")]
    assert fitted["blend_three"].weights == [1.0, 0.2, 0.02] and fitted["blend_two"].weights == [1.0, 1.0]
    assert (fitted["blend_two"].fit(sample_split.train).recommend(sample_split.test[:5], 3) >= 0).all()


def test_tifu_knn_is_the_published_recipe(sample_split):
    train, group, within, across, k, alpha = sample_split.train, 3, 0.9, 0.6, 4, 0.3
    model = models.TIFUKNN(group, within, across, k, alpha).fit(train)
    vectors = []
    for household in range(model.n_households):
        own = train.matrix[train.households == household].toarray()[::-1]  # the last basket first
        groups = [own[i : i + group] for i in range(0, len(own), group)]
        means = [np.mean([within**j * b for j, b in enumerate(g)], axis=0) * across**i for i, g in enumerate(groups)]
        vectors.append(np.mean(means, axis=0) if means else np.zeros(30))
    vectors = np.array(vectors)
    for household in (0, 5, 17):
        far = np.linalg.norm(vectors - vectors[household], axis=1)
        far[household] = np.inf
        near = vectors[np.argsort(far)[:k]].mean(axis=0)
        query = Baskets(sparse.csr_matrix((1, 30), dtype=np.float32), np.array([household]), np.zeros(1, "M8[ns]"))
        np.testing.assert_allclose(model.score(query)[0], alpha * vectors[household] + (1 - alpha) * near, atol=1e-5)


@pytest.mark.parametrize("neighbours", [1, 2, 300])
def test_tifu_knn_asks_no_household_without_a_past(neighbours):
    """Household 2 has none: nearer to 0 than any other, it says nothing, and the mean is over those that exist."""
    matrix = sparse.csr_matrix(np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]], dtype=np.float32))
    train = Baskets(matrix, np.array([0, 1, 3]), np.zeros(3, "M8[ns]"))
    model = models.TIFUKNN(neighbours=neighbours, alpha=0.5).fit(train)
    queries = Baskets(sparse.csr_matrix((4, 4), dtype=np.float32), np.arange(4), np.zeros(4, "M8[ns]"))
    own = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    near = own[1] if neighbours == 1 else own[[1, 3]].mean(axis=0)
    np.testing.assert_allclose(model.score(queries)[0], own[0] / 2 + near / 2)
    np.testing.assert_allclose(model.score(queries)[2], own.mean(axis=0))
    alone = models.TIFUKNN(neighbours=neighbours, alpha=0.5).fit(train[[1]])  # household 1 has no neighbour at all
    np.testing.assert_allclose(alone.score(queries)[1], own[1] / 2)


def test_user_knn_is_its_formula(sample_split):
    train, k = sample_split.train, 6
    model = models.UserKNN(neighbours=k, half_life=30).fit(train)
    age = (train.timestamps.max() - train.timestamps) / np.timedelta64(1, "D")
    r = np.zeros((model.n_households, 30))
    for basket, household in enumerate(train.households):
        r[household] += train.matrix[basket].toarray()[0] * 0.5 ** (age[basket] / 30)
    r = np.log1p(r)
    mean = r.mean(axis=1)
    for u in (1, 8):
        w = cosine_similarity(r - mean[:, None])[u]
        w[u] = 0
        near = np.argsort(-np.abs(w))[:k]
        expected = mean[u] + sum(w[v] * (r[v] - mean[v]) for v in near) / np.abs(w[near]).sum()
        query = Baskets(sparse.csr_matrix((1, 30), dtype=np.float32), np.array([u]), np.zeros(1, "M8[ns]"))
        np.testing.assert_allclose(model.score(query)[0], expected, atol=1e-4)


def test_als_folds_a_basket_in_exactly(sample_split):
    model = models.ALS(factors=6, regularisation=0.5, confidence=2.0, basket=1.0).fit(sample_split.train)
    query = baskets([[1, 0, 1] + [0] * 27], [-1])
    weight = np.where(query.matrix.toarray()[0] > 0, 1 + 2 * np.log(2), 1)
    ridge = Ridge(alpha=0.5, fit_intercept=False).fit(
        model.item_factors, query.matrix.toarray()[0], sample_weight=weight
    )
    np.testing.assert_allclose(model.score(query)[0], model.item_factors @ ridge.coef_, atol=1e-4)


def test_als_weighs_what_its_formula_says():
    """Converged factors of households solve their own weighted ridge regression, with c = 1 + confidence log(1 + n)."""
    train = baskets((np.random.default_rng(5).random((60, 12)) < 0.3).astype(int), np.arange(60) % 8)
    model = models.ALS(factors=3, regularisation=2.0, confidence=0.5).fit(train)
    bought = models.purchases(train).toarray()
    far = {}
    for one in (0, 1):  # with the 1 of the formula, and without it
        weight = np.where(bought > 0, one + 0.5 * np.log1p(bought), 1)
        expected = [
            Ridge(alpha=2.0, fit_intercept=False).fit(model.item_factors, b > 0, sample_weight=w).coef_
            for b, w in zip(bought, weight, strict=True)
        ]
        far[one] = np.abs(expected - model.user_factors).max()
    assert far[1] < far[0] / 5, far


def test_feature_factors_of_full_rank_are_ridge_regression(sample_split):
    model = models.FeatureFactors(VECTORS, factors=8, regularisation=3.0).fit(sample_split.train)
    ratings = np.log1p(models.purchases(sample_split.train).toarray())
    ratings /= np.maximum(np.linalg.norm(ratings, axis=1, keepdims=True), 1e-9)
    ridge = Ridge(alpha=3.0, fit_intercept=False).fit(VECTORS, ratings.T)
    query = Baskets(sparse.csr_matrix((3, 30), dtype=np.float32), np.arange(3), np.zeros(3, "M8[ns]"))
    np.testing.assert_allclose(model.score(query), ridge.predict(VECTORS).T[:3], atol=1e-5)
    # Fewer factors can only fit worse, and the best ones are kept first.
    errors = []
    for k in (1, 2, 4, 8):
        few = models.FeatureFactors(VECTORS, k, 1e-6).fit(sample_split.train)
        errors.append(((ratings - few.user_factors @ few.item_factors.T) ** 2).sum())
    assert errors == sorted(errors, reverse=True)


# ---------------------------------------------------------------------------------------------- two stages


def test_holdout_queries():
    train = baskets([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1]], [4, 5, 6])
    queries, labels = ranker.holdout_queries(train, n_holdouts=2)
    assert queries.households.tolist() == [4, 4, 4, 6, 6, 6]  # the basket of two items is left out
    assert labels.sum(axis=1).A1.tolist() == [1, 1, 4, 1, 1, 3]
    both = queries.matrix + labels
    np.testing.assert_array_equal(both.toarray(), train.matrix[[0, 0, 0, 2, 2, 2]].toarray())
    assert (labels[0] != labels[1]).nnz == 2


@pytest.mark.slow
def test_the_ranker_puts_candidates_first_and_unsold_items_in_the_order_of_the_fallback(sample_split):
    matrix = sample_split.train.matrix.tolil()
    matrix[:, [3, 7, 11]] = 0
    train = replace(sample_split.train, matrix=sparse.csr_matrix(matrix))
    model = hybrid().fit(train)
    queries, _ = evaluate.hide_one(sample_split.test)
    scores, behind = model.score(queries), model.members["text"].score(queries)
    table = model.table(queries)
    proposed = np.zeros(scores.shape, bool)
    proposed[table.rows, table.columns] = True
    assert not proposed[:, [3, 7, 11]].any() and proposed.sum(axis=1).min() >= 10
    assert scores[proposed].min() > scores[~proposed].max()
    proposed |= queries.matrix.toarray() > 0
    for row in range(len(queries)):
        rest = np.flatnonzero(~proposed[row])
        np.testing.assert_array_equal(np.argsort(-scores[row, rest]), np.argsort(-behind[row, rest]))


@pytest.mark.slow
def test_a_family_can_be_left_out_and_histories_renewed(sample_split):
    model = hybrid().fit(sample_split.train)
    queries, labels = ranker.holdout_queries(sample_split.test, n_holdouts=2)
    table = model.table(queries, labels)
    assert table.labels.sum() <= labels.sum() and set(np.unique(table.features["same_kind"])) >= {0.0, 1.0}
    less = table.without(["ease"], ["popularity"])
    assert not {"ease", "ease_z", "popularity"} & set(less.features) and less.members == list(model.members)[1:]
    assert less.retrieved_by.any(axis=1).all() and len(less.rows) < len(table.rows)
    forgetful = model.refresh(sample_split.train[:5])
    assert (
        forgetful.members["ease"] is model.members["ease"]
        and forgetful.features.household_features["baskets"].sum() == 5
    )
    assert model.features.household_features["baskets"].sum() == len(sample_split.train)
    known = models.EASE(10.0).fit(sample_split.train[:50])
    weights, two = known.weights, {"ease": known, "recency": models.HouseholdRecency()}
    model = ranker.HybridRanker(two, model.groups, settings=ranker.RankerSettings(fallback="ease")).fit(
        sample_split.train
    )
    assert model.fit(sample_split.train).members["ease"].weights is weights  # fitted before: stays as it is
    assert model.members["recency"].n_households == model.n_households  # both times fitted anew
    with pytest.raises(ValueError, match="name one of the members"):
        ranker.HybridRanker({"ease": models.EASE()}, pd.DataFrame())


class Scaled(models.Popularity):
    """Popularity times a factor: an order that must survive whatever its size."""

    def __init__(self, factor):
        self.factor = factor

    def _score(self, queries):
        return super()._score(queries) * np.float32(self.factor)


@pytest.mark.parametrize("factor", [1e6, 1.0, 1e-9])
@pytest.mark.slow
def test_the_order_below_the_candidates_does_not_hang_on_the_size_of_the_fallbacks_scores(factor, sample_split):
    """Scores far above 100 stay below the candidates, and close ones are not rounded together."""
    members = {"rare": models.RuleRecommender(0.05, 0.3), "all": Scaled(factor)}
    settings = ranker.RankerSettings({"rare": 3, "all": 2}, "all", n_trees=5)
    groups = sample_split.items[["department"]]
    model = ranker.HybridRanker(members, groups, None, sample_split.validation, settings).fit(sample_split.train)
    queries = sample_split.test[:20]
    scores, table = model.score(queries), model.table(queries)
    share = np.asarray(sample_split.train.matrix.mean(axis=0)).ravel()
    for row in range(20):
        own = table.columns[table.rows == row]
        rest = np.setdiff1d(np.arange(30), np.union1d(own, queries.matrix[row].indices))
        assert scores[row, own].min() > scores[row, rest].max()
        np.testing.assert_array_equal(
            np.argsort(-scores[row, rest], kind="stable"), np.argsort(-share[rest], kind="stable")
        )
        assert len(np.unique(scores[row, rest])) == len(np.unique(share[rest]))  # a tie stays a tie


@pytest.mark.parametrize("gone", [["ease"], ["text", "recency"]])
@pytest.mark.slow
def test_trees_that_read_fewer_columns_score_one_basket_and_a_batch_alike(gone, sample_split):
    """Columns go to the trees by name: trained without a member, known and unknown households are served."""
    model = hybrid().fit(sample_split.train)
    queries, labels = ranker.holdout_queries(sample_split.validation, 2)
    table = model.table(queries, labels, n_negatives=20).without(gone, ["popularity", "size"])
    assert set(table.features) < set(model.features.columns)
    less = model.fit_ranker(table)
    test = sample_split.test[:40]
    scores = less.score(test)
    for row in range(len(test)):
        for household in (int(test.households[row]), -1):
            items, own = less.recommend_one(test.matrix[row].indices, household, None, 5)
            asked = models.one_query(test.matrix[row].indices, household, None, 30)
            np.testing.assert_array_equal(own, less.score(asked)[0, items])
    whole = less.table(test)
    by_name = less.trees.booster.predict(whole.features[list(table.features)].to_numpy(np.float32))
    np.testing.assert_array_equal(scores[whole.rows, whole.columns], by_name.astype(np.float32))
    with pytest.raises(ValueError, match="trees read other"):
        less.use_trees(ranker.Trees(["ease", "other"], None))


@pytest.mark.slow
def test_counts_of_candidates_go_by_name(sample_split):
    """The same counts, members in another order: the same candidates."""
    counts = {"ease": 1, "recency": 30, "text": 4}
    makers = {
        "ease": models.EASE,
        "recency": models.HouseholdRecency,
        "text": lambda: models.EmbeddingRecommender(VECTORS),
    }
    groups, found = sample_split.items[["department"]], {}
    for order in (["ease", "recency", "text"], ["text", "ease", "recency"]):
        members = {name: makers[name]() for name in order}
        model = ranker.HybridRanker(members, groups, settings=ranker.RankerSettings(counts)).fit(sample_split.train)
        table = model.table(sample_split.test)
        by = dict(zip(table.members, table.retrieved_by.T, strict=True))
        assert np.bincount(table.rows[by["ease"]]).max() == 1 and np.bincount(table.rows[by["text"]]).max() == 4
        found[tuple(order)] = list(zip(table.rows, table.columns, strict=True))
    first, second = found.values()
    assert first == second
    wrong = ranker.RankerSettings({"ease": 1, "recency": 2})
    with pytest.raises(ValueError, match="differ in text"):
        ranker.HybridRanker(members, groups, settings=wrong)
    shop = ranker.shop_members(VECTORS, models.DotProduct(VECTORS, np.zeros(30)))
    items = pd.DataFrame({c: np.arange(30) % 3 for c in ("department", "category", "type")})
    shuffled = ranker.shop_ranker(items, np.ones(30), dict(reversed(shop.items())))
    assert (shuffled.settings.count("ease"), shuffled.settings.count("session_knn")) == (40, 40)
    assert (shuffled.settings.count("rules"), shuffled.settings.count("graph")) == (20, 10)


def test_ties_at_the_end_of_a_list_go_by_column():
    from recutils.ranker.candidates import best_columns

    scores = np.array([1, 3, 2, 2, -np.inf, 2, 5], dtype=np.float32)
    assert sorted(best_columns(scores, 3)) == [1, 2, 6] and sorted(best_columns(scores, 4)) == [1, 2, 3, 6]
    assert sorted(best_columns(scores, 99)) == [0, 1, 2, 3, 5, 6] and len(best_columns(scores, 0)) == 0


def test_household_features_by_hand_and_without_a_dense_table(sample_split):
    """Mean items of each group in a household's baskets; memory grows with purchases, not households x groups."""
    train = sample_split.train
    groups = pd.DataFrame({"kind": np.arange(30) % 10})
    features = ranker.FeatureBuilder({}, groups).fit_item_features(train).fit_household_features(train)
    known = features.household_features
    for household in (0, 7, 23):
        own = train.matrix[train.households == household].toarray()
        by_kind = [own[:, np.arange(30) % 10 == kind].sum() / len(own) for kind in range(10)]
        np.testing.assert_allclose(known["their_kind"][household].toarray()[0], by_kind, rtol=1e-6)
        assert known["baskets"][household] == len(own)
        assert known["their_size"][household] == pytest.approx(own.sum() / len(own))
    many, kinds = 300_000, 2_000  # dense: 2.4 GB
    matrix = sparse.csr_matrix((np.ones(many, np.float32), (np.arange(many), np.arange(many) % kinds)), (many, kinds))
    wide = Baskets(matrix, np.arange(many), np.zeros(many, "M8[ns]"))
    tracemalloc.start()
    ranker.FeatureBuilder({}, pd.DataFrame({"item": np.arange(kinds)})).fit_household_features(wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


@pytest.mark.parametrize(
    ("members", "groups", "extra", "twice"),
    [
        ([], ["kind"], ["trend"], "trend"),
        ([], ["kind"], ["mean_basket_size", "popularity"], "mean_basket_size, popularity"),
        ([], ["kind", "kind"], [], "same_kind, their_kind"),
        ([], ["size", "item_size"], [], "same_item_size, their_item_size"),
        (["size"], ["kind"], [], "size"),
        (["ease", "ease_z"], ["kind"], [], "ease_z"),
        ([], ["kind"], ["price", "price"], "price"),
    ],
)
def test_two_features_of_one_name_are_refused(members, groups, extra, twice):
    tables = (pd.DataFrame(np.ones((30, len(names))), columns=names) for names in (groups, extra))
    with pytest.raises(ValueError, match=f"Two features are called {twice}; rename a member"):
        ranker.FeatureBuilder({name: models.Popularity() for name in members}, *tables)


@pytest.mark.slow
def test_a_group_called_size_is_a_group_like_any_other(sample_split):
    """A shop whose first text column is `size`: the same numbers under another name."""
    kinds, tables = np.arange(30) % 3, []
    for name in ("size", "kind"):
        model = ranker.HybridRanker(
            {"text": models.EmbeddingRecommender(VECTORS)}, pd.DataFrame({name: kinds}), label_baskets=None
        )
        tables.append(model.fit(sample_split.train).table(sample_split.test[:5]).features)
    named = tables[0].rename(columns=lambda name: name.replace("item_size", "kind"))
    pd.testing.assert_frame_equal(named, tables[1])
    assert tables[0]["their_item_size"].max() > 0 and tables[0]["their_size"].max() > 1


def test_a_rule_model_without_rules_can_be_kept():
    model = models.RuleRecommender(0.9, 0.9).fit(TOY)
    state = model.state()
    assert len(model.rules) == 0 and all(v.dtype == float for v in state["rules"].values())
    again = models.RuleRecommender.from_state(state)
    assert len(again.rules) == 0 and np.isneginf(again.score(TOY)).all()


def test_a_numpy_number_of_candidates_is_a_number():
    settings = ranker.RankerSettings(np.int64(5), "ease")
    settings.check(["ease", "rules"])
    assert settings.count("rules") == 5


def test_members_are_asked_with_a_datetime_or_none():
    from recutils.ranker.features import slot_of
    from recutils.ranker.ranker import _each

    when = np.array(["2024-05-01T17:30", "NaT"], "datetime64[ns]")
    first, second = _each(replace(TOY[:2], timestamps=when))
    assert first.timestamp == pd.Timestamp(when[0]).to_pydatetime() and second.timestamp is None
    assert (first.slot, second.slot) == (slot_of(first.timestamp), -1) and slot_of(pd.NaT) == slot_of(None) == -1


def test_the_features_of_one_candidate_by_hand(sample_split):
    """Each number counted anew from the raw baskets, for a known household, an hour and an item."""
    train, kinds = sample_split.train, np.arange(30) % 10
    members = {"ease": models.EASE(10.0), "text": models.EmbeddingRecommender(VECTORS)}
    model = ranker.HybridRanker(members, pd.DataFrame({"kind": kinds})).fit(train)
    basket, item, household = np.array([0, 4, 10]), 14, 3
    when = np.datetime64("2024-05-04T17:30", "ns")  # a Saturday, 16 to 20 o'clock
    query = replace(models.one_query(basket, household, None, 30), timestamps=np.array([when]))
    table = model.table(query, force_include=item)
    got = table.features[table.columns == item].iloc[0]
    raw = train.matrix.toarray() > 0
    holds, size = raw[:, item], raw.sum(axis=1)
    days = (train.timestamps.max() - train.timestamps) / np.timedelta64(1, "D")
    sold, lately = holds.sum(), (holds & (days < 28)).sum()
    times = pd.DatetimeIndex(train.timestamps)
    here = (times.dayofweek >= 5) & (times.hour >= 16) & (times.hour < 20)
    counts = np.array([(holds & (train.households == h)).sum() for h in range(train.households.max() + 1)])
    own = raw[train.households == household]
    expected = {
        "popularity": np.log1p(sold),
        "trend": np.log((lately + 5) / (sold * (days < 28).mean() + 5)),
        "repeat": (counts > 1).sum() / (counts > 0).sum(),
        "mean_basket_size": size[holds].mean(),
        "slot": np.log(((holds & here).sum() + 20 * here.mean()) / (here.mean() * (sold + 20))),
        "size": 3,
        "same_kind": (kinds[basket] == kinds[item]).sum(),
        "baskets": len(own),
        "their_size": own.sum(axis=1).mean(),
        "their_kind": own[:, kinds == kinds[item]].sum(axis=1).mean(),
    }
    for name, member in members.items():
        s = member.score(query)[0].astype(float)
        rest = np.setdiff1d(np.arange(30), basket)
        expected |= {name: s[item], f"{name}_z": (s[item] - s[rest].mean()) / s[rest].std()}
    expected["ease_max"] = members["ease"].weights[basket, item].max()
    of_household = train.households == household
    later = (when - train.timestamps.max()) / np.timedelta64(1, "D")
    for level, same in (("bought", np.arange(30) == item), ("bought_kind", kinds == kinds[item])):
        ages = np.floor(np.sort(days[of_household & raw[:, same].any(axis=1)]))
        gap = max(ages[-1] - ages[0], 1) / (len(ages) - 1)
        found = [len(ages), ages[0] + later, (ages < 28).sum(), (ages < 112).sum(), gap, (ages[0] + later) / gap]
        expected |= {f"{level}_{name}": value for name, value in zip(HISTORY_COLUMNS, found, strict=True)}
    assert later > 0 and expected["bought_count"] > 1
    assert set(expected) == set(got.index) and expected["same_kind"] == 1
    np.testing.assert_allclose(got[list(expected)], list(expected.values()), rtol=1e-4, atol=1e-5)


def test_a_purchase_history_by_hand():
    """Two baskets with a group on one day, one long ago, another household, an unknown one, a group never bought."""
    when = np.array(["2024-01-01", "2024-05-01", "2024-05-01", "2024-05-11", "2024-05-21"], "datetime64[ns]")
    train = Baskets(
        sparse.csr_matrix(np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]], np.float32)),
        np.array([0, 0, 0, 1, -1]),
        when,
    )
    kept = purchase_history(train, np.array([0, 0, 1, 2]))
    assert kept["pairs"].toarray().tolist() == [[3, 0, 0], [0, 1, 0]]  # baskets, not items
    assert kept["days"].tolist() == [[20, 141, 2, 2], [10, 10, 1, 1]]
    got = history_rows(kept, 0, np.array([1, 0]), later=5.0)
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], [3, 25, 2, 2, 121 / 2, 25 / 60.5], rtol=1e-6)
    once = history_rows(kept, 1, np.array([1]), later=0.0)[0]
    assert once[:4].tolist() == [1, 10, 1, 1] and np.isnan(once[4:]).all()
    for unknown in (-1, 2):
        assert np.isnan(history_rows(kept, unknown, np.array([0, 1, 2]), 0.0)).all()
    nothing = purchase_history(replace(train, households=np.full(5, -1)), np.array([0, 0, 1, 2]))
    assert nothing["pairs"].shape == (0, 3) and np.isnan(history_rows(nothing, 0, np.array([1]), 0.0)).all()


def rolling(sample_split, **changes):
    """A ranker with an earlier origin, one member of which stays silent there."""
    members = {"recency": models.HouseholdRecency(), "knn": models.ItemKNN(None), "text": models.Popularity()}
    how = ranker.RankerSettings(8, n_holdouts=2, n_trees=5, origins=(35,), silent=("text",), **changes)
    return ranker.HybridRanker(members, sample_split.items[["department"]], None, sample_split.validation, how)


@pytest.mark.slow
def test_stacked_rows_are_given_up_on_the_way(monkeypatch):
    released = []
    monkeypatch.setattr("recutils.ranker.candidates.RELEASE_BYTES", 100)
    monkeypatch.setattr("recutils.ranker.candidates.release_memory", lambda: released.append(len(parts)))
    parts = [np.full((n, 3), n, np.float32) for n in (4, 0, 6, 5)]
    whole = np.concatenate(parts)
    np.testing.assert_array_equal(stack(parts, 3), whole)
    assert parts == [] and released == [1]  # 48 + 72 bytes are more than 100
    assert stack([], 3).shape == (0, 3)


@pytest.mark.slow
def test_an_earlier_origin_reads_nothing_later(sample_split):
    """Its candidates stay the same whatever was bought after it, but for the labels; silent members say nothing."""
    train, model = sample_split.train, rolling(sample_split)
    days = (train.timestamps.max() - train.timestamps) / np.timedelta64(1, "D")
    later = sparse.diags((days >= 35).astype(np.float32)) @ train.matrix
    without = replace(train, matrix=sparse.csr_matrix(later))
    queries, labels = ranker.holdout_queries(train[np.flatnonzero((days < 28) & (days >= 0))], 2)
    tables = []
    for past in (train, without):
        origin = model.fit(train).at_origin(past[np.flatnonzero(days >= 35)])
        tables.append(origin.table(queries, labels))
    pd.testing.assert_frame_equal(tables[0].features, tables[1].features)
    assert tables[0].features[["text", "text_z"]].isna().all(axis=None)
    assert tables[0].features["recency"].notna().any() and tables[0].labels.any()
    whole = model.training_table(train, sample_split.validation)
    first = model.table(*ranker.holdout_queries(sample_split.validation, 2), model.settings.n_negatives)
    n = len(first.rows)
    pd.testing.assert_frame_equal(whole.features.iloc[:n], first.features)
    assert len(whole.rows) > 1.2 * n and (np.diff(whole.rows) >= 0).all()
    assert whole.features["text"].isna().sum() == first.features["text"].isna().sum() + len(whole.rows) - n
    assert (whole.features["text"].iloc[:n].notna()).any()


@pytest.mark.slow
def test_trees_of_a_fit_are_those_of_its_training_table(sample_split):
    """The stage that is kept on disk gives what the visible steps give; other labels give others."""
    model = rolling(sample_split).fit(sample_split.train)
    by_hand = rolling(sample_split)
    by_hand.label_baskets = None
    by_hand.fit(sample_split.train)
    by_hand.fit_ranker(by_hand.training_table(sample_split.train, sample_split.validation))
    assert by_hand.trees.booster.model_to_string() == model.trees.booster.model_to_string()
    fitted = rolling(sample_split)  # members fitted before they are passed in
    fitted = ranker.HybridRanker(
        {name: member.unfitted().fit(sample_split.train) for name, member in fitted.members.items()},
        *(fitted.groups, None, sample_split.validation, fitted.settings),
    ).fit(sample_split.train)
    assert fitted.trees.booster.model_to_string() == model.trees.booster.model_to_string()
    other = rolling(sample_split, empty_weight=1.0).fit(sample_split.train)
    assert other.trees.booster.model_to_string() != model.trees.booster.model_to_string()


def test_the_strongest_part_of_a_basket(make, sample_split):
    """Where a model compares pairs, the largest contribution; elsewhere it says that it has none."""
    model, basket = make().fit(sample_split.train), np.array([0, 4, 7])
    if not model.pairwise:
        with pytest.raises(NotImplementedError):
            model.strongest(basket)
        return
    parts = [model.contributions(models.one_query(basket, -1, None, 30), item).max() for item in range(30)]
    np.testing.assert_allclose(model.strongest(basket), np.maximum(parts, min(0, *parts)), rtol=1e-6)
    assert not model.strongest(basket[:0]).any() and model.strongest(basket[:0]).shape == (30,)


@pytest.mark.slow
def test_a_ranker_without_trees_or_groups_says_what_to_do(sample_split):
    members = {"text": models.EmbeddingRecommender(VECTORS)}
    model = ranker.HybridRanker(members, pd.DataFrame({"kind": np.arange(30) % 3})).fit(sample_split.train)
    for ask in (model.recommend, model.score):
        with pytest.raises(ValueError, match="No trees yet; pass label_baskets, or call fit_ranker or use_trees"):
            ask(sample_split.test[:2])
    table = model.table(*ranker.holdout_queries(sample_split.validation[:40], 1))
    loaded = ranker.HybridRanker.from_state(model.fit_ranker(table).state())
    with pytest.raises(ValueError, match="build it anew"):
        loaded.fit(sample_split.train)


@pytest.mark.parametrize("household_model", [models.UserKNN, models.TIFUKNN])
def test_models_of_households_refuse_a_shop_without_any(household_model):
    with pytest.raises(ValueError, match="no training basket names one"):
        household_model().fit(replace(TOY, households=np.full(len(TOY), -1)))


# ---------------------------------------------------------------------------------------------- the contract


def test_one_basket_scores_as_in_a_batch(make, sample_split):
    model = make().fit(sample_split.train)
    queries, _ = evaluate.hide_one(sample_split.test)
    queries = queries[:15]
    scores = model.score(queries)
    for row in range(15):
        for household in (int(queries.households[row]), -1):
            basket, when = queries.matrix[row].indices, queries.timestamps[row].astype("M8[s]").item()
            columns, own = model.score_one(basket, household, when)
            got = np.full(30, -np.inf, np.float32)
            got[slice(None) if columns is None else columns] = own
            assert columns is None or (np.diff(columns) > 0).all()
            asked = scores[row] if household >= 0 else model.score(models.one_query(basket, -1, when, 30))[0]
            np.testing.assert_allclose(got, asked, rtol=2e-5, atol=1e-6)


def test_scikit_learn_copies_a_model(make, sample_split):
    model = make().fit(sample_split.train)
    copied = clone(model)
    assert copied.n_items is None and type(copied) is type(model)
    assert copied.get_params().keys() == model.get_params().keys()
    np.testing.assert_array_equal(
        copied.fit(sample_split.train).score(sample_split.test[:9]), model.score(sample_split.test[:9])
    )


SERVED = ["popularity", "item_knn", "ease", "rules", "recency", "session_knn", "embedding", "hybrid"]
SERVED += ["with_history", "blend"]


@pytest.mark.parametrize("name", SERVED)
def test_a_model_from_its_state_scores_the_same(name, sample_split):
    model = MODELS[name]().fit(sample_split.train)
    again = type(model).from_state(model.state())
    queries = sample_split.test[:20]
    np.testing.assert_array_equal(again.score(queries), model.score(queries))
    basket = queries.matrix[0].indices
    for one, other in zip(again.score_one(basket, 3), model.score_one(basket, 3), strict=True):
        np.testing.assert_array_equal(one, other)


def test_contributions_add_up_to_the_score(make, sample_split):
    """Where a model says what each item adds, the parts and what an empty basket scores make up the score."""
    model = make().fit(sample_split.train)
    basket, empty = models.one_query([0, 4, 7], -1, None, 30), models.one_query([], -1, None, 30)
    parts = model.contributions(basket, 5)
    if parts is not None:
        rest = np.nan_to_num(model.score(empty)[0, 5], neginf=0)
        assert parts.shape == (3,) and parts.sum() + rest == pytest.approx(model.score(basket)[0, 5], abs=1e-5)
    additive = (models.EASE, models.ItemKNN)
    assert parts is not None or not isinstance(model, additive)


def test_refresh_counts_households_anew_and_nothing_else(make, sample_split):
    train, few = sample_split.train, sample_split.train[np.arange(60)]
    model = make().fit(train)
    before = model.score(sample_split.test[:5])
    fresh = model.refresh(few)
    np.testing.assert_array_equal(model.score(sample_split.test[:5]), before)  # the old one is untouched
    if isinstance(model, ranker.HybridRanker | models.WithHistory | models.Blend):  # what they are made of may stay
        assert fresh is not model
    elif model.personal:
        np.testing.assert_array_equal(fresh.score(sample_split.test[:5]), make().fit(few).score(sample_split.test[:5]))
    else:
        assert fresh is model


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_ease_refuses_a_penalty_that_is_not_above_zero(penalty, sample_split):
    with pytest.raises(ValueError, match="finite number above 0"):
        models.EASE(penalty).fit(sample_split.train)


def test_ease_refuses_a_singular_matrix():
    """Two items that are always bought together: without a penalty to speak of nothing can be inverted."""
    pairs = baskets([[1, 1, 0], [1, 1, 1], [0, 0, 1]])
    with pytest.raises(ValueError, match="singular"):
        models.EASE(1e-18).fit(pairs)
    assert np.isfinite(models.EASE(0.1).fit(pairs).weights).all()


def test_a_full_basket_gets_nothing(make, sample_split):
    model = make().fit(sample_split.train)
    full = baskets(np.ones((1, 30)), [0])
    assert (model.recommend(full, k=3) == -1).all()


def test_two_stages_beat_each_member_on_the_store(journey_split):
    """Three quick members; trees grown on the first two validation weeks, measured on the last two."""
    middle = np.datetime64(journey_split.validation_start + pd.Timedelta(weeks=2))
    early = journey_split.validation.timestamps < middle
    late = replace(journey_split, validation=journey_split.validation[np.flatnonzero(~early)])
    members = {
        "item_knn": models.ItemKNN(None),
        "recency": models.HouseholdRecency(),
        "session_knn": models.HouseholdSessionKNN(),
    }
    groups = journey_split.items[["category", "type"]]
    labels = journey_split.validation[np.flatnonzero(early)]
    settings = ranker.RankerSettings(fallback="item_knn", n_holdouts=2, n_trees=60)
    model = ranker.HybridRanker(members, groups, None, labels, settings)
    result = evaluate.complete_the_basket(model.fit(journey_split.train), late, on="validation")
    for member in model.members.values():
        alone = evaluate.complete_the_basket(member, late, on="validation")
        gain = result.values("ndcg@10") - alone.values("ndcg@10")
        assert evaluate.bootstrap_ci(gain, result.households)[0] > 0.02


# ---------------------------------------------------------------------------------------------- bundles


def test_pair_affinity_by_hand():
    train = baskets([[1, 1, 0]] * 6 + [[0, 0, 1]] * 4)
    pairs = bundles.pair_affinity(train.matrix)
    assert pairs.nnz == 2 and pairs[0, 1] == pytest.approx(np.log(7 / (3.6 + 1)))
    assert bundles.pair_affinity(train.matrix, popularity_weight=1.0)[0, 1] == pytest.approx(
        np.log(7 / 4.6) + np.log(3.6) / 2
    )
    assert bundles.bundle_score([0, 1, 2], pairs) == pytest.approx(np.log(7 / 4.6) / 3)


def test_bundles_are_the_best_that_meet_all_constraints():
    rng = np.random.default_rng(3)
    weights = np.triu(rng.random((12, 12)), 1)
    pairs = sparse.csr_matrix(weights + weights.T)
    kinds, prices, departments = np.arange(12) % 5, rng.random(12), np.arange(12) % 3
    constraints = bundles.BundleConstraints(kinds, prices, 1.5, departments, min_departments=3)
    found = bundles.make_bundle([4], pairs, 4, constraints, beam_width=200)
    best = max(
        (
            trio
            for trio in combinations([i for i in range(12) if i != 4], 3)
            if len(set(kinds[[4, *trio]])) == 4
            and prices[list(trio)].sum() <= 1.5
            and len(set(departments[[4, *trio]])) == 3
        ),
        key=lambda trio: bundles.bundle_score([4, *trio], pairs),
    )
    assert set(found) == {4, *best} and found[0] == 4
    assert bundles.make_bundle([4, 6], pairs, 2) == [4, 6]
    only = bundles.make_bundle([4], pairs, 3, bundles.BundleConstraints(allowed=np.arange(12) < 2))
    assert set(only) == {4, 0, 1}


def test_impossible_bundles_say_which_constraint_to_relax():
    pairs = sparse.csr_matrix(np.ones((4, 4)))
    with pytest.raises(bundles.BundleError, match="relax one of: budget, size"):
        bundles.make_bundle([0], pairs, 3, bundles.BundleConstraints(prices=np.full(4, 5.0), budget=9.0))
    with pytest.raises(bundles.BundleError, match="relax one of: substitutes, size"):
        bundles.make_bundle([0], pairs, 3, bundles.BundleConstraints(substitutes=np.zeros(4)))
    with pytest.raises(ValueError, match="from 0 to 3"):
        bundles.make_bundle([9], pairs)
    with pytest.raises(ValueError, match="from 0 to 3"):
        bundles.make_bundle([], pairs)
