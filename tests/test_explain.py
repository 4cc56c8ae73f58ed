"""Explanations against sums that are known, libraries that do the same, and an endpoint that misbehaves."""

import copy
import dataclasses
import inspect
import itertools
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest
import torch
from chapter import definitions
from scipy import sparse

from recutils import data, explain, models, ranker, text
from recutils.data.schema import Baskets

DEFINED = (
    "all_subsets",
    "shapley_values",
    "counterfactual",
    "BilinearRecommender",
    "field_contributions",
    "field_texts",
    "field_subset_values",
    "fit_attribute_matcher",
    "check_rewrite",
    "RewriteRefused",
    "rewrite",
    "Reason",
    "without",
    "new_rank",
    "minimum_effect",
    "ratio_interval",
    "verdict_of",
    "messages",
)
TRIED = (
    "all_subsets",
    "shapley_values",
    "by_shapley",
    "by_shap",
    "by_lime",
    "curves",
    "judge",
    "rows_of_trial",
    "rank_agreement",
    "parts_of",
    "join",
    "part_tokens",
    "pool_by_part",
    "integrated_gradients",
    "blank_vector",
    "signals",
    "rollout",
    "received",
    "reword",
    "randomise_layers",
    "tree_shap_of_items",
    "shuffle_leaves",
)


@pytest.fixture(scope="module")
def notebook():
    """What chapter 06 defines in its cells."""
    return definitions("06_explanation", *DEFINED)


@pytest.fixture(scope="module")
def trial():
    """What chapter 06b defines in its cells."""
    return definitions("06b_explanations_on_trial", *TRIED)


def baskets(matrix, households=None):
    n = len(matrix)
    owners = np.zeros(n, int) if households is None else np.asarray(households)
    return Baskets(sparse.csr_matrix(np.asarray(matrix), dtype=np.float32), owners, np.zeros(n, "M8[ns]"))


def test_a_definition_that_the_notebook_lacks_is_missed():
    with pytest.raises(NameError, match="06_explanation defines no offers"):
        definitions("06_explanation", "offers")  # a variable of the notebook, which is not run


# ---------------------------------------------------------------------------------------------- Shapley values


def test_shapley_values_by_hand(notebook):
    """The glove game: parts 0 and 1 are left gloves, part 2 a right one; a pair is worth 1 (1/6, 1/6, 2/3)."""
    sets = notebook.all_subsets(3)
    subset_values = ((sets[:, 0] | sets[:, 1]) & sets[:, 2]).astype(float)
    np.testing.assert_allclose(notebook.shapley_values(subset_values), [1 / 6, 1 / 6, 2 / 3])
    assert explain.occlusion(lambda s: ((s[:, 0] | s[:, 1]) & s[:, 2]).astype(float), 3).tolist() == [0, 0, 1]


def test_shapley_values_equal_the_mean_over_all_orders(notebook):
    rng = np.random.default_rng(0)
    subset_values = rng.random((3, 16))
    for row, values in zip(subset_values, notebook.shapley_values(subset_values), strict=True):
        total = np.zeros(4)
        for order in itertools.permutations(range(4)):
            before = 0
            for part in order:
                total[part] += row[before + 2**part] - row[before]
                before += 2**part
        np.testing.assert_allclose(values, total / 24)
        assert values.sum() == pytest.approx(row[-1] - row[0])


def test_shapley_refuses_values_that_are_no_power_of_two(notebook):
    with pytest.raises(ValueError, match="one for each subset"):
        notebook.shapley_values(np.zeros(6))


def test_the_two_notebooks_have_the_same_shapley_values(notebook, trial):
    for name in ("all_subsets", "shapley_values"):
        one, other = (inspect.getsource(getattr(n, name)).strip() for n in (notebook, trial))
        assert one == other


def add_up(masks):
    """A sum of five parts."""
    return masks @ np.array([1.0, 16.0, 4.0, 2.0, 8.0])


def test_deletion_and_insertion_take_the_most_important_first(trial):
    gone, come = trial.curves(add_up, [1, 16, 4, 2, 8])
    assert gone.tolist() == [31, 15, 7, 3, 1, 0] and come.tolist() == [0, 16, 24, 28, 30, 31]
    worst = trial.curves(add_up, [-1, -16, -4, -2, -8])[0]
    assert worst.tolist() == [31, 30, 28, 24, 16, 0]
    measures = trial.judge([add_up], [[1, 16, 4, 2, 8]])[0]
    np.testing.assert_allclose(measures, [57 / 6 / 31, 129 / 6 / 31, 16 / 31, 15 / 31])


def test_curves_have_six_points_whatever_the_number_of_parts(trial):
    for n in (1, 3, 12):
        gone, come = trial.curves(lambda masks: masks.sum(axis=1), np.arange(n))
        assert len(gone) == len(come) == 6 and gone[0] == come[-1] == n and gone[-1] == come[0] == 0


@pytest.mark.parametrize("weights", [[], [1.0, np.nan]])
def test_curves_refuse_what_is_no_weight(trial, weights):
    with pytest.raises(ValueError, match="give each part a number"):
        trial.curves(add_up, weights)


def test_of_a_sum_all_ways_find_the_terms(trial):
    terms = [1.0, 16.0, 4.0, 2.0, 8.0]
    np.testing.assert_allclose(trial.by_shapley(add_up, 5), terms)
    np.testing.assert_allclose(trial.by_shap(add_up, 5, 16), terms, rtol=1e-3)
    assert np.argsort(trial.by_lime(add_up, 5, 64)).tolist() == np.argsort(terms).tolist()
    np.testing.assert_allclose(trial.by_shap(lambda m: 3.0 * m[:, 0], 1, 16), [3])


def test_rank_agreement_by_hand(trial):
    assert trial.rank_agreement([1, 2, 3], [2, 4, 9]) == pytest.approx(1)
    assert trial.rank_agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert trial.rank_agreement([1, 1, 1], [3, 2, 1]) == 0
    with pytest.raises(ValueError, match="like parts"):
        trial.rank_agreement([1, 2], [1, 2, 3])


def test_rows_of_a_trial_hold_paired_differences(trial):
    measured = {"a": np.full((4, 4), 0.3), "b": np.full((4, 4), 0.1)}
    rows = {(r["model"], r["metric"]): r for r in trial.rows_of_trial("t", measured, np.arange(4), ["b"])}
    assert rows["a", "deletion less b"]["value"] == pytest.approx(0.2) and ("a", "sufficiency less b") not in rows
    assert rows["b", "insertion less b"]["high"] == 0 and rows["a", "sufficiency"]["n"] == 4


# ---------------------------------------------------------------------------------------------- parts of a score


@pytest.fixture(scope="module")
def shop_models(notebook, sample_split):
    rng = np.random.default_rng(0)
    blocks = [rng.standard_normal((30, 4)), rng.standard_normal((30, 3))]
    groups = np.arange(30) % 3
    fitted = {
        "ease": models.EASE(10.0),
        "item_knn": models.ItemKNN(None),
        "embedding": models.EmbeddingRecommender(rng.standard_normal((30, 8))),
        "bilinear": notebook.BilinearRecommender(blocks, groups, rank=2, steps=5),
    }
    return {name: model.fit(sample_split.train) for name, model in fitted.items()}


@pytest.mark.parametrize("name", ["ease", "item_knn", "embedding", "bilinear"])
def test_exact_contributions_sum_to_the_score(notebook, shop_models, sample_split, name):
    model = shop_models[name]
    basket = sample_split.test[int(np.argmax(np.diff(sample_split.test.matrix.indptr)))]
    item = int(np.setdiff1d(np.arange(30), basket.matrix.indices)[3])
    total = explain.basket_contributions(model, basket, item).sum()
    if name == "bilinear":
        total += notebook.field_contributions(model, basket, item)[-1].sum() + model.bias[item]
    assert total == pytest.approx(float(model.score(basket)[0, item]), rel=1e-4, abs=1e-5)


def test_for_a_sum_occlusion_and_shapley_are_the_parts(notebook, shop_models, sample_split):
    model = shop_models["ease"]
    basket = sample_split.test[int(np.argmax(np.diff(sample_split.test.matrix.indptr)))]
    item = int(np.setdiff1d(np.arange(30), basket.matrix.indices)[0])
    value, n = explain.basket_value_function(model, basket, item), basket.matrix.nnz
    parts = explain.basket_contributions(model, basket, item)
    np.testing.assert_allclose(explain.occlusion(value, n), parts, atol=1e-5)
    np.testing.assert_allclose(notebook.shapley_values(value(notebook.all_subsets(n))), parts, atol=1e-5)


@pytest.mark.slow
def test_the_bilinear_model_learns_what_goes_with_what(notebook, sample_split):
    """With a block of its own for each item it has to find the planted pairs; at rank 0 no group has a matrix."""
    train = sample_split.train
    model = notebook.BilinearRecommender([np.eye(30)], np.zeros(30), rank=0, steps=150).fit(train)
    assert not model.left.size and model.shared.shape == (60, 30)
    place = {name: i for i, name in enumerate(sample_split.items["name"])}
    lift = model.score(baskets(np.eye(30), np.full(30, -1)))
    lift = lift - lift.mean(axis=0)
    for cause, effect in (("pasta small", "sauce small"), ("tea small", "biscuit small")):
        assert place[effect] in np.argsort(-lift[place[cause]])[:3], (cause, effect)


# ---------------------------------------------------------------------------------------------- the ranker


SETTINGS = ranker.RankerSettings(10, n_trees=10)


@pytest.fixture(scope="module")
def ranked(sample_split):
    """A two-stage ranker on the made-up shop, what explanations name, and an open basket of pasta, bread and tea."""
    members = {
        "ease": models.EASE(10.0),
        "rules": models.RuleRecommender(min_support=0.005, min_confidence=0.1),
        "text": models.EmbeddingRecommender(np.random.default_rng(0).standard_normal((30, 8))),
        "recency": models.HouseholdRecency(),
    }
    rng = np.random.default_rng(1)
    labels = baskets((rng.random((80, 30)) < 0.2).astype(int), rng.integers(40, size=80))
    groups = pd.DataFrame({"kind": np.arange(30) % 10})
    model = ranker.HybridRanker(members, groups, None, labels, SETTINGS).fit(sample_split.train)
    names = sample_split.items["name"].tolist()
    past = models.purchases(sample_split.train)
    visits = np.bincount(sample_split.train.households, minlength=past.shape[0])
    basket = np.zeros((1, 30))
    basket[0, [names.index(n) for n in ("pasta small", "bread small", "tea small")]] = 1
    return model, explain.ExplanationContext(names, past, visits), baskets(basket, [3])


def test_tree_shap_sums_to_the_score_and_equals_the_library(ranked):
    import shap

    model, _, basket = ranked
    features = model.features_for_items(basket[np.zeros(4, int)], np.array([5, 8, 11, 20]))
    values, base = explain.tree_shap(model, features)
    raw = model.trees.predict(features)
    np.testing.assert_allclose(values.sum(axis=1) + base, raw, atol=1e-8)
    np.testing.assert_allclose(values, shap.TreeExplainer(model.trees.booster).shap_values(features), atol=1e-6)
    assert {explain.feature_group(c) for c in features} >= {"habits", "rules", "words", "the open basket", "context"}


def test_an_item_looked_at_scores_as_it_does_among_the_candidates(ranked):
    model, _, basket = ranked
    scores = models.mask_basket(model.score(basket).copy(), basket)[0]
    best = models.top_k(scores[None], 3)[0]
    features = model.features_for_items(basket[np.zeros(3, int)], best)
    np.testing.assert_allclose(model.trees.predict(features), scores[best], rtol=1e-5)


def test_an_explanation_holds_only_what_was_measured(ranked, sample_split):
    model, context, basket = ranked
    item = int(model.recommend(basket, 1)[0, 0])
    found = explain.explain(model, basket, item, context)
    assert found.rank == 1 and found.name == context.item_names[item]
    assert found.base + sum(found.evidence.values()) == pytest.approx(found.score)
    assert found.score == pytest.approx(float(model.score(basket)[0, item]), rel=1e-5)
    assert {i for i, _, _ in found.basket} == set(basket.matrix.indices.tolist())
    theirs = sample_split.train[np.flatnonzero(sample_split.train.households == 3)]
    assert (found.household_count, found.household_baskets) == (int(theirs.matrix[:, item].sum()), len(theirs))
    for rule in found.rules:
        left = [context.item_names.index(n) for n in rule["if"]]
        both = np.asarray(sample_split.train.matrix[:, [*left, item]].min(axis=1).todense()).ravel()
        assert rule["support"] == pytest.approx(both.mean()) and set(left) <= set(basket.matrix.indices.tolist())
    assert json.loads(json.dumps(found.to_dict()))["sentence"] == found.sentence
    template, facts = explain.sentence_template(found, context.minimum_effect, context.shown)
    assert found.sentence == template.format(*facts) and found.name in found.sentence


def test_the_ranks_without_each_item_are_those_of_smaller_baskets(notebook, ranked):
    """And of the basket nothing is spoken where the offer would be shown without the item named, too."""
    model, context, basket = ranked
    item = int(model.recommend(basket, 1)[0, 0])
    for shown in (1, 29):
        found = explain.explain(model, basket, item, dataclasses.replace(context, minimum_effect={}, shown=shown))
        for (_, name, _), rank in zip(found.basket, found.basket_ranks, strict=True):
            smaller = notebook.without(basket, notebook.Reason("the open basket", 1.0, [name]), context.item_names)
            assert rank == notebook.new_rank(model, basket, smaller, item)
        if found.basket_ranks[0] <= shown:
            assert "speaks for it" not in found.sentence
    assert "speaks for it" not in found.sentence and found.to_dict()["basket_ranks"] == found.basket_ranks


def test_only_the_first_offer_says_what_would_be_offered_instead(notebook, ranked):
    model, context, basket = ranked
    offers = model.recommend(basket, 3)[0]
    found = [explain.explain(model, basket, int(i), context) for i in offers]
    assert [f.rank for f in found] == [1, 2, 3] and found[1].counterfactual is None and found[2].counterfactual is None
    change = notebook.counterfactual(model, basket, max_removed=1)
    assert (found[0].counterfactual is None) == (change is None)


def test_of_a_large_basket_the_heaviest_items_are_looked_at(ranked):
    model, context, _ = ranked
    wide = baskets([[1] * 25 + [0] * 5], [3])
    found = explain.explain(model, wide, 27, context)
    assert len(found.basket) == len(found.basket_ranks) == 8
    weight = np.abs(model.members["ease"].weights[:25, 27])
    assert {i for i, _, _ in found.basket} == set(np.argsort(-weight, kind="stable")[:8].tolist())
    exact = explain.explain(model.members["ease"], wide, 27, context)
    assert len(exact.basket) == 25 and exact.base == pytest.approx(0, abs=1e-5)
    renamed = copy.copy(model)  # no member is called ease
    renamed.members = {("linear" if name == "ease" else name): member for name, member in model.members.items()}
    renamed.settings = dataclasses.replace(model.settings, fallback="text")
    found = explain.explain(renamed, wide, 27, context)
    assert {i for i, _, _ in found.basket} == set(range(8))


def test_shuffled_leaves_keep_the_trees_and_lose_the_scores(trial, ranked):
    model, _, basket = ranked
    other = trial.shuffle_leaves(model.trees)
    features = model.features_for_items(basket[np.zeros(4, int)], np.array([5, 8, 11, 20]))
    assert other.booster.num_trees() == model.trees.booster.num_trees() and other.columns == model.trees.columns
    assert np.abs(other.predict(features) - model.trees.predict(features)).max() > 1e-3
    again = trial.shuffle_leaves(model.trees)
    np.testing.assert_array_equal(other.predict(features), again.predict(features))

    def leaves(trees):
        found = re.findall(r"(?m)^leaf_value=(.*)$", trees.booster.model_to_string())
        return [sorted(map(float, line.split())) for line in found]

    for new, old in zip(leaves(other), leaves(model.trees), strict=True):
        np.testing.assert_allclose(new, old)


def test_tree_shap_is_shared_out_as_the_members_sums_are(trial, ranked):
    model, _, basket = ranked
    renamed = copy.copy(model)
    renamed.members = {**model.members, "item_knn": model.members["ease"]}
    item = int(model.recommend(basket, 1)[0, 0])
    features = model.features_for_items(basket, np.array([item]))
    values = explain.tree_shap(model, features)[0].iloc[0]
    expected = np.zeros(3)
    for name in ("ease", "text"):
        parts = explain.basket_contributions(model.members[name], basket, item)
        own = [c for c in values.index if c in (name, f"{name}_z", f"{name}_max")]
        expected += abs(values[own].sum()) * parts / np.abs(parts).sum()
    trial.PAIRWISE = ("ease", "text")  # the made-up ranker has no item kNN
    np.testing.assert_allclose(trial.tree_shap_of_items(model, basket, item), expected)


def test_a_reason_takes_away_what_it_names(notebook, ranked):
    model, context, basket = ranked
    reason = notebook.Reason("the open basket", 1.0, ["pasta small"])
    changed = notebook.without(basket, reason, context.item_names)
    kept = {context.item_names[i] for i in changed.matrix.indices}
    assert kept == {"bread small", "tea small"} and changed.households.tolist() == [3]
    unknown = notebook.without(basket, notebook.Reason("habits", 1.0, []), context.item_names)
    assert unknown.households.tolist() == [-1] and (unknown.matrix != basket.matrix).nnz == 0
    with pytest.raises(ValueError, match="holds no jam"):
        notebook.without(basket, notebook.Reason("rules", 1.0, ["jam"]), context.item_names)
    first = int(model.recommend(basket, 1)[0, 0])
    assert notebook.new_rank(model, basket, basket, first) == 1


def test_the_minimum_effect_by_hand(notebook):
    effect, passes = [0.1, 3, 2, 1, 0.5], [0, 1, 1, 0, 1]
    assert notebook.minimum_effect(effect, passes, wanted=1, at_least=1) == 2
    assert notebook.minimum_effect(effect, passes, wanted=0.75, at_least=1) == 0.5
    assert notebook.minimum_effect(effect, passes, wanted=0.75, at_least=5) == np.inf
    assert notebook.minimum_effect([], [], at_least=1) == np.inf
    with pytest.raises(ValueError, match="0 < share"):
        notebook.minimum_effect([1, 2], [1], wanted=0.8)


def test_an_interval_of_a_ratio_draws_whole_households(notebook):
    low, high = notebook.ratio_interval(np.array([1.0, 1, 0, 0]), np.ones(4), np.array([0, 0, 1, 1]))
    assert (low, high) == (0, 1)


def test_the_planted_rule_is_the_reason(ranked):
    model, context, basket = ranked
    found = explain.explain(model.members["rules"], basket, context.item_names.index("sauce small"), context)
    assert found.rules[0]["if"] == ["pasta small"] and found.rules[0]["confidence"] > 0.7
    assert found.basket[0][1] == "pasta small" and "pasta small" in found.sentence


@pytest.mark.parametrize(
    ("item", "message"), [(-1, "unknown"), (30, "unknown"), (4, "lies in the basket"), (None, "gives item")]
)
def test_what_cannot_be_explained_gets_one_clear_message(ranked, item, message):
    model, context, basket = ranked
    if item is None:  # no rule speaks of it
        model = model.members["rules"]
        item = int(np.flatnonzero(np.isneginf(model.score(basket)[0]))[-1])
    with pytest.raises(ValueError, match=message):
        explain.explain(model, basket, item, context)
    with pytest.raises(ValueError, match="one at a time"):
        explain.explain(model, basket[[0, 0]], 5, context)


def test_unknown_households_and_empty_baskets_get_an_explanation_too(ranked):
    model, context, _ = ranked
    nobody = baskets(np.zeros((1, 30)), [-1])
    found = explain.explain(model, nobody, int(model.recommend(nobody, 1)[0, 0]), context)
    assert (found.household_count, found.household_baskets, found.basket, found.counterfactual) == (0, 0, [], None)
    assert (found.item_count, found.n_baskets) == (
        context.purchases[:, found.item].sum(),
        context.household_baskets.sum(),
    )
    last = int(np.flatnonzero(np.arange(30) != found.item)[-1])
    assert explain.explain(model, nobody, np.int64(last), context).to_dict()["item"] == last  # an int, ready for JSON
    assert found.sentence.startswith("We offer")


def test_counterfactuals_are_the_smallest_and_hold(notebook, shop_models, sample_split):
    model = shop_models["ease"]
    tried = 0
    for n in range(len(sample_split.test)):
        basket = sample_split.test[n]
        if not 3 <= basket.matrix.nnz <= 6:
            continue
        first = int(model.recommend(basket, 1)[0, 0])
        found = notebook.counterfactual(model, basket, max_removed=2)
        columns = basket.matrix.indices

        def offer(removed, basket=basket, columns=columns):
            scores = model.score(explain.perturb_basket(basket, ~np.isin(columns, removed)[None]))[0]
            scores[columns] = -np.inf
            return int(np.argmax(scores))

        changing = [s for k in (1, 2) for s in itertools.combinations(columns, k) if offer(s) != first]
        if found is None:
            assert not changing
        else:
            assert offer(found.removed) == found.offer != first
            assert len(found.removed) == min(map(len, changing))
            tried += 1
    assert tried > 5


# ---------------------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def encoder():
    return text.load_encoder()


FIELDS = [["grocery", "pasta sauce", "mainstream", "private", "26 oz"], ["produce", "berries", "strawberries", "", ""]]


def parts(trial, unit):
    return [trial.parts_of(row, unit) for row in FIELDS]


@pytest.mark.parametrize("unit", ["fields", "words"])
def test_tokens_are_given_to_their_parts(trial, encoder, unit):
    rows = parts(trial, unit)
    inputs, owner = trial.part_tokens(encoder, rows)
    for row, own in enumerate(rows):
        for number, (_, part) in enumerate(own):
            ids = inputs["input_ids"][row].cpu().numpy()[owner[row] == number]
            assert encoder.tokenizer.decode(ids) == part
    total, mean = (trial.pool_by_part(np.ones(owner.shape), owner, rows, m) for m in (False, True))
    assert all((t >= 1).all() for t in total) and all((m == 1).all() for m in mean)


def test_a_text_without_parts_keeps_its_commas(trial):
    words = trial.parts_of(FIELDS[0], "words")
    assert trial.join(words) == ", ".join(FIELDS[0])
    assert trial.join(words, [True, False, True, False, True, False, False]) == "grocery, sauce, private"
    assert trial.join(words, np.zeros(7, bool)) == ""


def test_rewording_writes_abbreviations_out(trial):
    assert trial.reword(["frzn meat/meat dinners", "soft drinks", "private", "26 oz", ""]) == [
        "frozen meat/meat dinners",
        "soda",
        "own brand",
        "26 ounces",
        "",
    ]


def test_shapley_values_of_fields_agree_with_shap(notebook, encoder):
    import shap

    question = text.encode(encoder, ["spaghetti", "cream"])
    subset_values = notebook.field_subset_values(lambda t: text.encode(encoder, t), question, FIELDS)
    values = notebook.shapley_values(subset_values)
    whole = text.encode(encoder, [", ".join(f for f in row if f) for row in FIELDS])
    np.testing.assert_allclose(values.sum(axis=1), (whole * question).sum(axis=1), atol=2e-3)
    assert np.abs(values[1, 3:]).max() < 1e-6  # a field that is not there is owed nothing

    def score(there):
        return text.encode(encoder, notebook.field_texts(FIELDS[0], there.astype(bool))) @ question[0]

    kernel = shap.KernelExplainer(score, np.zeros((1, 5)), silent=True)
    np.testing.assert_allclose(kernel.shap_values(np.ones((1, 5)), silent=True)[0], values[0], atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["blank", "mean"])
def test_integrated_gradients_are_complete(trial, encoder, baseline):
    """The parts sum to the step from the score of the text that says nothing to that of the whole one."""
    question = text.encode(encoder, ["spaghetti", "cream"])
    values, gap = trial.integrated_gradients(encoder, question, parts(trial, "fields"), baseline, steps=64)
    np.testing.assert_allclose([v.sum() for v in values], gap, atol=0.005)
    whole = text.encode(encoder, [", ".join(f for f in row if f) for row in FIELDS])
    inputs, owner = trial.part_tokens(encoder, parts(trial, "fields"))
    table = encoder.model.embeddings.word_embeddings
    embeds = table(inputs["input_ids"]).detach()
    words = torch.as_tensor(owner >= 0)[:, :, None]
    with torch.no_grad():
        blank = torch.where(words, trial.blank_vector(encoder, baseline), embeds)
        out = encoder.model(inputs_embeds=blank, attention_mask=inputs["attention_mask"])
        vectors = text.pool(out.last_hidden_state, inputs["attention_mask"])
    start = torch.nn.functional.normalize(vectors, dim=1).numpy()
    np.testing.assert_allclose(gap, ((whole - start) * question).sum(axis=1), atol=0.01)
    with pytest.raises(ValueError, match="'blank' or 'mean'"):
        trial.blank_vector(encoder, "zero")


def test_attention_by_hand(trial):
    equal = torch.full((1, 3, 3), 1 / 3)
    np.testing.assert_allclose(trial.rollout([equal, equal])[0].sum(dim=1), 1, rtol=1e-6)
    mask = torch.tensor([[1, 1, 0]])  # the last token is padding
    weights = torch.tensor([[[0.2, 0.8, 0.0], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0]]])
    np.testing.assert_allclose(trial.received(weights, mask)[0], [0.3, 0.7, 0], rtol=1e-6)


def test_only_attention_times_gradient_reads_the_question(trial, encoder):
    encoder = copy.copy(encoder)
    encoder.model.set_attn_implementation("eager")
    rows, questions = parts(trial, "fields"), text.encode(encoder, ["spaghetti", "cream", "batteries"])
    one, two = (trial.signals(encoder, questions[k : k + 2], rows) for k in (0, 1))
    for name in one:
        same = all(np.allclose(a, b, atol=1e-7) for a, b in zip(one[name], two[name], strict=True))
        assert same == (name not in ("attention x gradient", "gradient x input")), name
        assert [len(v) for v in one[name]] == [5, 3]


def test_randomised_layers_are_new_and_the_others_are_not(trial, encoder):
    other = trial.randomise_layers(encoder, 2)
    for depth, (old, new) in enumerate(zip(encoder.model.encoder.layer, other.model.encoder.layer, strict=True)):
        same = bool((old.attention.self.query.weight == new.attention.self.query.weight).all())
        assert same == (depth < len(encoder.model.encoder.layer) - 2)


@pytest.mark.slow
def test_the_second_task_learns_the_reason(notebook, sample_split):
    """Two steps are no training; that it starts at what is usual, and moves, can be seen."""
    texts = data.item_text(sample_split.items).to_list()
    attributes = pd.DataFrame({"kind": [t.split()[-2] for t in texts]})
    matcher = notebook.fit_attribute_matcher(texts, sample_split.train.matrix, attributes, weight=1.0, steps=2)
    usual = matcher.reference["kind"]
    chances = matcher.probabilities(sample_split.test.matrix)["kind"]
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-5)
    assert 0 < np.abs(chances - usual).max() < 0.3
    found = matcher.lift(sample_split.test.matrix[:1], 4)
    assert found["kind"] == pytest.approx(chances[0, matcher.codes["kind"][4]] / usual[matcher.codes["kind"][4]])


# ---------------------------------------------------------------------------------------------- words

TEMPLATE, FACTS = "We offer {0}: it fits {1} in your basket.", ["pasta sauce, 26 oz", "spaghetti, 16 oz"]


@pytest.mark.parametrize(
    "answer",
    [
        "May we offer {0}, since it fits so well with {1} in your basket?",
        "Maybe we offer {0}? It fits {1}, here in your basket, too.",
    ],
)
def test_a_faithful_rewrite_is_filled_with_the_facts(notebook, answer):
    assert notebook.check_rewrite(answer, TEMPLATE, FACTS) == answer.format(*FACTS)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("We offer {0}: it fits {1} and organic tomatoes in your basket.", "organic"),
        ("We offer {0} for 2 dollars: it fits {1} in your basket.", "'2'"),
        ("We offer {0}, loved by most: it fits {1} in your basket.", "loved"),
        ("We offer {0}: it never fits {1} in your basket.", "never"),
        ("We offer {1}: it fits {0} in your basket.", "stand as"),
        ("We offer {0}.", "stand as"),
        ("We offer {0}, {0}: it fits {1} in your basket.", "stand as"),
        ("We offer {0}: {1} {2}", "stand as"),
        ("", "stand as none"),
        ("We offer <b>{0}</b>: it fits {1} in your basket.", "'<'"),
        ("We offer {0}: it fits {1} in your basket, see http://x", "'/'"),
        ("We offer {0}: it fits {1} in your basket. " + "It is so. " * 20, "twice as long"),
        ("We offer {0}: it fits {1} in your basket 买", "'买'"),
        ("We offer {0}: it fits {1} in your basket at half price", "at"),
        # Facts in order, and yet false or new.
        ("Since you have {0}, we offer {1}.", "have"),
        ("{0} is in your basket, so we offer {1}.", "does not say 'offer'"),
        ("{0} is on offer with {1}: buy one, have one more!", "does not say 'offer'"),
        ("All baskets with {0} hold {1}.", "all"),
        ("You had {0} in your last basket, along with {1}.", "had"),
        ("We are out of {0}, so see {1}.", "are"),
        ("We offer {0}: it fits {1} in each basket.", "each"),
    ],
)
def test_a_rewrite_that_adds_drops_or_moves_a_fact_is_refused(notebook, answer, why):
    with pytest.raises(notebook.RewriteRefused, match=why.replace("'", ".")):
        notebook.check_rewrite(answer, TEMPLATE, FACTS)


def test_a_refusal_is_counted_under_one_name(notebook):
    assert notebook.verdict_of(TEMPLATE, TEMPLATE, FACTS) == "accepted"
    assert notebook.verdict_of("We offer {0}.", TEMPLATE, FACTS) == "facts lost, doubled or moved"
    assert notebook.verdict_of(TEMPLATE + " It is organic.", TEMPLATE, FACTS) == "words added"
    assert notebook.verdict_of("{0} {1} in your basket.", TEMPLATE, FACTS) == "words left out"
    assert [m["role"] for m in notebook.messages(TEMPLATE, True)] == ["system", "user", "assistant", "user"]
    shown = notebook.EXAMPLE
    assert notebook.verdict_of(shown["assistant"], shown["user"], FACTS) == "accepted"


@pytest.fixture
def endpoint(monkeypatch):
    """A stand-in for a language model on this machine: it answers as `state` says, and keeps what came."""
    state = {}

    class Stub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["heard"], state["key"], state["path"] = json.loads(body), self.headers["Authorization"], self.path
            if "wait" in state:
                time.sleep(state["wait"])
            self.send_response(state.get("code", 200))
            self.end_headers()
            self.wfile.write(state["raw"])

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # seconds until it may stop
    monkeypatch.setenv("RECUTILS_LLM_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("RECUTILS_LLM_KEY", "not-a-key")
    yield state
    server.shutdown()
    server.server_close()


def said(content):
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.fixture
def found():
    parts = [(4, "spaghetti, 16 oz", 0.4)]
    found = explain.Explanation(5, FACTS[0], 1, 1.0, 0.6, {}, parts, [], 0, 0, 9, 90, {}, None)
    template, facts = explain.sentence_template(found)
    found.sentence = template.format(*facts)
    return found


def test_the_endpoint_sees_no_fact_and_its_faithful_words_are_used(notebook, endpoint, found):
    assert found.sentence == "We offer pasta sauce, 26 oz: spaghetti, 16 oz in your basket speaks for it."
    endpoint["raw"] = said("May we offer {0}? The {1} in your basket speaks for it.")
    expected = "May we offer pasta sauce, 26 oz? The spaghetti, 16 oz in your basket speaks for it."
    assert notebook.rewrite(found) == (expected, None)
    assert endpoint["path"] == "/v1/chat/completions" and endpoint["key"] == "Bearer not-a-key"
    assert "spaghetti" not in json.dumps(endpoint["heard"]) and "{0}" in json.dumps(endpoint["heard"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"basket": []}, "9 of 90 baskets held it"),
        ({"evidence": {"words": 0.9, "context": -0.8}}, "9 of 90 baskets held it"),
        (
            {"evidence": {"habits": 0.5}, "household_count": 3, "household_baskets": 8},
            "you had it in 3 of your 8 baskets",
        ),
        ({"evidence": {"habits": -0.5}, "household_count": 2, "household_baskets": 8}, "9 of 90"),
        (
            {"evidence": {"habits": -0.5}, "household_count": 3, "household_baskets": 8},
            "you often buy this, in 3 of your 8 baskets so far",
        ),
        ({"evidence": {"rules": 1.0}, "rules": [{"if": ["a"], "confidence": 0.06, "lift": 0.8}]}, "9 of 90"),
        ({"evidence": {"rules": 1.0}, "rules": [{"if": ["a"], "confidence": 0.06, "lift": 2}]}, "with a, 6% hold it"),
    ],
)
def test_a_sentence_says_what_speaks_for_the_item_and_was_measured(found, change, said):
    template, facts = explain.sentence_template(dataclasses.replace(found, **change))
    assert said in template.format(*facts)


HABITS = {"evidence": {"habits": 0.5}, "household_count": 3, "household_baskets": 8}


@pytest.mark.parametrize(
    ("change", "minimum", "said"),
    [
        (HABITS, {"habits": 0.5}, "you had it in 3 of your 8"),
        (HABITS, {"habits": 0.6}, "you often buy this, in 3 of your 8"),
        (HABITS | {"household_count": 2}, {"habits": 0.6}, "9 of 90 baskets held it"),
        ({"evidence": {"the open basket": 0.1}}, {"the open basket": 0.4}, "spaghetti, 16 oz in your basket"),
        ({"evidence": {"the open basket": 0.9}}, {"the open basket": 0.5}, "9 of 90"),  # what the item adds counts
        ({}, {"rules": 9.0}, "spaghetti, 16 oz in your basket"),
        ({"basket_ranks": [6]}, {}, "spaghetti, 16 oz in your basket"),
        ({"basket_ranks": [5]}, {}, "9 of 90"),  # it would be among the five without it, too
        ({"basket_ranks": [8], "rank": 8}, {}, "9 of 90"),
    ],
)
def test_a_reason_is_spoken_from_its_minimum_effect_on(found, change, minimum, said):
    template, facts = explain.sentence_template(dataclasses.replace(found, **change), minimum, shown=5)
    assert said in template.format(*facts)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"raw": said("We offer {0}, organic and cheap, with {1}.")}, "refused"),
        ({"raw": said(None)}, "no text"),
        ({"raw": said(["{0}", "{1}"])}, "no text"),
        ({"raw": b"not json"}, "expected form"),
        ({"raw": b"\xff\xfe"}, "expected form"),
        ({"raw": b'{"choices": []}'}, "expected form"),
        ({"raw": b"[1, 2]"}, "expected form"),
        ({"raw": b"", "code": 500}, "answered 500"),
        ({"raw": b"", "code": 401}, "answered 401"),
        ({"raw": said("{0} {1}"), "wait": 0.5}, "did not answer"),
        ({"raw": b" " * 100_000}, "too long"),
        ({"raw": b"[" * 60_000}, "expected form"),
    ],
)
def test_whatever_the_endpoint_does_the_sentence_stands(notebook, endpoint, found, state, why):
    endpoint.update(state)
    sentence, reason = notebook.rewrite(found, timeout=0.3 if "wait" in state else 10)
    assert sentence == found.sentence and why in reason


def test_without_an_endpoint_or_with_an_open_one_nothing_is_sent(notebook, found, monkeypatch):
    monkeypatch.delenv("RECUTILS_LLM_URL", raising=False)
    assert "no endpoint" in notebook.rewrite(found)[1]
    monkeypatch.setenv("RECUTILS_LLM_URL", "http://example.org/v1")
    assert "not https" in notebook.rewrite(found)[1]
    monkeypatch.setenv("RECUTILS_LLM_URL", "http://127.0.0.1:9/v1")
    assert "did not answer" in notebook.rewrite(found)[1]
