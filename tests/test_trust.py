"""Chapter 09: what its two notebooks define, against known answers, other libraries, bad input, and brute force."""

from itertools import combinations, permutations

import numpy as np
import opendp.prelude as dp
import pandas as pd
import pytest
import torch
from chapter import definitions
from scipy import sparse
from sklearn.metrics import roc_auc_score

from recutils import models


@pytest.fixture(scope="module")
def privacy():
    names = ("crowd_sizes", "violations", "group_safety", "safe_columns", "grouped", "sensitivity", "capped")
    names += ("laplace", "gaussian", "sigma_for", "auc", "found_at", "score_counts", "private_gradient", "noise_for")
    dp.enable_features("contrib")  # as the notebook's set-up cell does
    return definitions("09_trust", *names, "ease_weights", "holders")


@pytest.fixture(scope="module")
def attacks():
    names = ("group_gap", "exposure", "gini", "with_bonus", "judge", "fake_baskets", "count_table", "erased")
    names += ("drawn_means", "gap_draws", "by_luck", "bootstrap_gap")
    return definitions("09b_fairness_and_attacks", *names, "normalise", "acceptance", "fill", "ease_of", "ATTACKS")


def csr(rows):
    return sparse.csr_matrix(np.asarray(rows, dtype=np.float32))


# ------------------------------------------------------------------------------------ anonymity


def test_a_crowd_is_those_who_hold_all_that_is_known(privacy):
    records = csr([[1, 1, 0], [1, 0, 1], [1, 1, 0]])
    assert set(privacy.crowd_sizes(records, 1, draws=50)[:, 1]) <= {1, 2, 3}
    drawn = privacy.crowd_sizes(records, 2, draws=60)
    assert {(0, 2), (1, 1), (2, 2)} == set(map(tuple, drawn))
    # In a table where the columns 1 and 2 are told as one, all three households hold both codes.
    code = np.array([0, 1, 1])
    released = privacy.grouped(records, code, 2)
    assert set(privacy.crowd_sizes(records, 2, 60, released=released, code=code)[:, 1]) == {3}
    # What is left out says nothing: the crowd is everybody.
    nothing = np.array([-1, -1, -1])
    assert set(privacy.crowd_sizes(records, 2, 9, released=released, code=nothing)[:, 1]) == {3}
    with pytest.raises(ValueError, match="No household has 4"):
        privacy.crowd_sizes(records, 4)
    with pytest.raises(ValueError, match="0 purchases"):
        privacy.crowd_sizes(records, 0)


def test_km_anonymity_by_hand(privacy):
    records = [{"a", "b"}, {"a", "b"}, {"a", "c"}, {"a", "c", "b"}]
    assert privacy.violations(records, 2, 1) == {}
    assert privacy.violations(records, 2, 2) == {"b + c": 1}
    assert privacy.violations(records, 3, 2) == {"c": 2, "a + c": 2, "b + c": 1}
    assert privacy.violations(records, 2, 3) == {"b + c": 1, "a + b + c": 1}
    for k, m in ((0, 1), (2, 0)):
        with pytest.raises(ValueError, match="both are 1 or more"):
            privacy.violations(records, k, m)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_has_no_violating_pair(privacy, seed):
    rng = np.random.default_rng(seed)
    rows = (rng.random((30, 12)) < rng.random(12)).astype(int)
    keep = privacy.safe_columns(csr(rows), 3)
    kept = [set(np.flatnonzero(row * keep)) for row in rows]
    assert not privacy.violations(kept, 3, 2) if keep.any() else True
    # Nothing is dropped where nothing violates.
    assert privacy.safe_columns(csr(np.ones((3, 4))), 3).all()
    assert not privacy.safe_columns(csr(np.eye(4)), 2).any()
    with pytest.raises(ValueError, match="k is 0"):
        privacy.safe_columns(csr(rows), 0)


def test_groups_of_one_value_are_not_diverse(privacy):
    table = pd.DataFrame({"age": ["a"] * 3 + ["b"] * 2 + ["c"], "income": [1, 1, 1, 1, 2, 5]})
    found = privacy.group_safety(table, ["age"], "income", 2)
    assert found["groups"] == 3 and found["alone"] == pytest.approx(1 / 6)
    assert found["in a group of 2 or more"] == pytest.approx(5 / 6)
    assert found["in one, all of one value"] == pytest.approx(3 / 6)
    with pytest.raises(ValueError, match="needs rows"):
        privacy.group_safety(table.iloc[:0], ["age"], "income", 2)


# ------------------------------------------------------------------------------------ differential privacy


def test_sensitivity_is_the_largest_household(privacy):
    votes = np.array([[1, 1, 0], [1, 0, 4], [0, 1, 0]])
    by_removal = max(np.abs(votes.sum(0) - np.delete(votes, u, 0).sum(0)).sum() for u in range(3))
    assert privacy.sensitivity(votes) == by_removal == 5
    assert privacy.sensitivity(votes, 2) == pytest.approx(np.sqrt(17))


@pytest.mark.parametrize("norm", [1, 2])
def test_a_cap_bounds_every_household_and_leaves_short_ones_alone(privacy, norm):
    votes = np.array([[1.0, 1, 0], [1, 0, 4], [0, 0, 0], [0, 1, 0]])
    found = privacy.capped(votes, 2, norm).toarray()
    assert np.linalg.norm(found, norm, axis=1).max() <= 2 + 1e-9
    assert (found[[0, 2, 3]] == votes[[0, 2, 3]]).all()
    assert found[1] / np.linalg.norm(found[1]) == pytest.approx(votes[1] / np.linalg.norm(votes[1]))
    for cap, bad in ((0, 1), (-1, 2), (np.inf, 2), (1, 3)):
        with pytest.raises(ValueError, match="give a cap"):
            privacy.capped(votes, cap, bad)


def test_the_privacy_map_is_the_textbook_one(privacy):
    assert privacy.laplace(cap=2, epsilon=0.5).map(2) == pytest.approx(0.5)
    assert privacy.laplace(cap=10, epsilon=2).map(5) == pytest.approx(1.0)
    assert privacy.gaussian(3.0).map(6.0) == pytest.approx(2.0)  # rho = change^2 / (2 sigma^2)
    sigma = privacy.sigma_for(1.0, 3)
    assert privacy.sigma_for(4.0, 3) == pytest.approx(4 * sigma, rel=1e-6)
    assert privacy.sigma_for(1.0, 0.5) > privacy.sigma_for(1.0, 1) > sigma > 0
    rho = 1 / (2 * sigma**2)
    assert rho + 2 * np.sqrt(rho * np.log(1e5)) >= 3  # the simple bound is looser than opendp's
    for epsilon in (0, -1, np.inf):
        for make in (privacy.laplace, privacy.sigma_for):
            with pytest.raises(ValueError, match="must be above 0"):
                make(1.0, epsilon)
        with pytest.raises(ValueError, match="above 0"):
            privacy.noise_for(epsilon, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*backward hook.*")
def test_dp_sgd_clips_each_household_and_adds_noise(privacy):
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 2.0]])
    by_hand = torch.tensor([(0.6 + 0.3 + 0) / 3, (0.8 + 0.4 + 1) / 3])
    assert torch.allclose(privacy.private_gradient(x, 1.0, 0.0), by_hand, atol=1e-6)
    draws = torch.stack([privacy.private_gradient(x, 1.0, 2.0, seed) for seed in range(400)])
    assert draws.std(dim=0).numpy() == pytest.approx([2 / 3, 2 / 3], rel=0.15)
    assert not torch.allclose(privacy.private_gradient(x, 9.0, 0.0), by_hand, atol=0.01)
    for clip, noise in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match="at least 0"):
            privacy.private_gradient(x, clip, noise)


@pytest.mark.filterwarnings("ignore:Optimal order")
def test_more_steps_need_more_noise(privacy):
    assert 0 < privacy.noise_for(3, 10) < privacy.noise_for(3, 100) < privacy.noise_for(1, 100)


def test_auc_and_what_is_found(privacy):
    rng = np.random.default_rng(0)
    scores, member = rng.integers(0, 9, 200), rng.random(200) < 0.4  # with ties
    assert privacy.auc(scores, member) == pytest.approx(roc_auc_score(member, scores))
    assert privacy.auc([3, 2, 2, 1], [True, True, False, False]) == 0.875
    others = np.arange(1000.0)
    scores, member = np.r_[others, 998.5, 999.5, 0], np.r_[np.zeros(1000, bool), np.ones(3, bool)]
    assert privacy.found_at(scores, member, 0) == pytest.approx(1 / 3)  # above all others
    assert privacy.found_at(scores, member, 0.001) == pytest.approx(2 / 3)  # one non-member may be accused
    with pytest.raises(ValueError, match="0 others"):
        privacy.auc([1, 2], [True, True])
    with pytest.raises(ValueError, match="Give non-members"):
        privacy.found_at([1, 2], [True, True])


def test_a_household_with_more_than_was_released_is_no_member(privacy):
    votes = csr([[2, 0], [0, 1]]).astype(float)
    found = privacy.score_counts(votes, np.array([1.0, 5.0]), np.array([1.0, 1.0]))
    assert found[0] == -1e9 and found[1] == pytest.approx(5 * np.log(1.5) - 1)


@pytest.mark.parametrize("notebook", ["privacy", "attacks"])
def test_ease_of_a_table_is_the_package_s(notebook, request, two_worlds):
    chapter = request.getfixturevalue(notebook)
    ease = getattr(chapter, "ease_weights" if notebook == "privacy" else "ease_of")
    gram = (two_worlds.T @ two_worlds).toarray().astype(float)
    baskets = type("B", (), {})()
    baskets.matrix, baskets.households = two_worlds, np.zeros(two_worlds.shape[0], int)
    baskets.__class__.__len__ = lambda self: self.matrix.shape[0]
    assert ease(gram, 50) == pytest.approx(models.EASE(50).fit(baskets).weights, abs=1e-5)


# ------------------------------------------------------------------------------------ fairness


def test_gap_by_hand(attacks):
    gap, worst = attacks.group_gap([1, 1, 0, 0.5], ["a", "a", "b", "b"])
    assert (gap, worst) == (0.75, "b")
    for groups in (["a"] * 4, ["a", "a", "b", None]):
        with pytest.raises(ValueError, match="two groups or more"):
            attacks.group_gap([1, 1, 0, 0.5], groups)


def test_a_gap_is_held_against_groups_dealt_at_random(attacks):
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(60), 3)  # three queries of each household; the last ten are in no group
    groups = np.array(["a"] * 25 + ["b"] * 25 + [None] * 10, dtype=object)
    same = rng.random(180)
    apart = same + (groups[who] == "a")
    names, found = attacks.drawn_means(apart, who, groups, 50, shuffle=True)
    assert names == ["a", "b"] and found.shape == (50, 2)
    # Groups of equal size share out the same total however they are dealt.
    assert found.sum(axis=1) == pytest.approx(2 * apart[:150].mean())
    row = attacks.bootstrap_gap(apart, who, groups)
    assert row["worst"] == "b" and row["worst in"] == 1 and 0.8 < row["low"] < row["gap"] < row["high"] < 1.2
    assert attacks.by_luck(row["gap"], apart, who, groups, 199) == 1 / 200
    assert attacks.by_luck(0, same, who, groups, 199) == 1  # every deal has a gap of 0 or more
    null = attacks.bootstrap_gap(same, who, groups)["gap"]
    assert attacks.by_luck(null, same, who, groups, 199) > 0.05


def test_exposure_and_gini_by_hand(attacks):
    assert attacks.exposure([[1, 0], [1, -1]], 3) == pytest.approx([1 / np.log2(3), 2, 0])
    assert attacks.gini([1, 1, 4]) == pytest.approx(1 / 3) and attacks.gini([2, 2]) == pytest.approx(0)
    values = np.random.default_rng(0).random(20)
    pairs = np.abs(values[:, None] - values).sum() / (2 * 20**2 * values.mean())
    assert attacks.gini(values) == pytest.approx(pairs)
    for bad in ([], [0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="Gini needs"):
            attacks.gini(bad)
    for bad in ([[0, 3]], [], [0, 1]):
        with pytest.raises(ValueError, match="do not fit"):
            attacks.exposure(bad, 3)


@pytest.mark.parametrize("seed", range(4))
def test_no_lists_with_that_exposure_have_more_utility(attacks, seed):
    rng = np.random.default_rng(seed)
    scores, group = rng.random((2, 4)), np.array([False, False, True, True])
    items, weight = np.tile(np.arange(4), (2, 1)), 1 / np.log2([2, 3])
    best = attacks.with_bonus(items, scores, group, rng.random(), k=2)
    reached = attacks.exposure(best, 4)[group].sum()
    ours = sum(scores[q, best[q]] @ weight for q in (0, 1))
    orders = [np.array(o) for o in permutations(range(4), 2)]
    for a, b in ((a, b) for a in orders for b in orders):
        if attacks.exposure(np.array([a, b]), 4)[group].sum() >= reached - 1e-12:
            assert scores[0, a] @ weight + scores[1, b] @ weight <= ours + 1e-9
    with pytest.raises(ValueError, match="does not punish"):
        attacks.with_bonus(items, scores, group, -1)


def test_ndcg_of_lists(attacks):
    lists = np.array([[4, 2, 7], [1, 2, 3]])
    hidden = csr([[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]])
    assert attacks.judge(lists, hidden) == pytest.approx([1 / np.log2(3), 0])


# ------------------------------------------------------------------------------------ poisoning, text, erasure


def test_fake_baskets_hold_the_target_and_fillers_of_their_kind(attacks):
    rng = np.random.default_rng(0)
    gram = np.diag(np.arange(1.0, 61))
    gram[5, 10:40] = gram[10:40, 5] = 3
    for kind in attacks.ATTACKS:
        fake = attacks.fake_baskets(kind, 7, 30, gram, rng, seed_item=5)
        assert fake.shape == (30, 60) and (fake[:, 7].toarray() == 1).all()
        assert (np.asarray(fake.sum(axis=1)) == 10).all()
        fillers = np.setdiff1d(fake.indices, [7])
        if kind == "bandwagon":
            assert fillers.min() >= 40  # the twenty that sell best
        if kind == "segment":
            assert set(fillers) <= {5, *range(10, 40)}
    for n, kind in ((0, "random"), (3, "sideways")):
        with pytest.raises(ValueError, match="baskets of kind"):
            attacks.fake_baskets(kind, 7, n, gram, rng)


def test_counts_under_a_defence_by_hand(attacks):
    matrix = csr([[1, 1], [1, 1], [1, 0], [1, 1]])
    owners = np.array([3, 3, 3, 8])
    count = attacks.count_table
    assert count(matrix, owners).tolist() == [[4, 3], [3, 3]]
    assert count(matrix, owners, "household support").tolist() == [[2, 2], [2, 2]]
    assert count(matrix, owners, "trimmed").tolist() == [[1, 1], [1, 1]]
    assert count(matrix, owners, "cap").tolist() == [[4, 3], [3, 3]]  # nobody has more than fifty baskets
    many = csr(np.ones((100, 2)))
    assert count(many, np.zeros(100, int), "cap")[0, 1] == pytest.approx(50)
    with pytest.raises(ValueError, match="3 owners, 4 baskets"):
        count(matrix, owners[:3])


def test_an_erased_household_was_never_there(attacks):
    rng = np.random.default_rng(0)
    matrix, owners = csr(rng.random((60, 8)) < 0.4), rng.integers(5, size=60)
    gram = (matrix.T @ matrix).toarray()
    found = attacks.erased(gram, matrix, owners, 2)
    never = matrix[owners != 2]
    never = (never.T @ never).toarray()
    assert (found == never).all() and (attacks.ease_of(found, 5) == attacks.ease_of(never, 5)).all()
    assert not np.allclose(attacks.ease_of(gram, 5), attacks.ease_of(never, 5))
    with pytest.raises(ValueError, match="Household 9 has no baskets"):
        attacks.erased(gram, matrix, owners, 9)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Pasta", "pasta"),
        ("pa\u200bsta", "pasta"),
        ("p\u0430st\u0430", "pasta"),
        ("ＰＡＳＴＡ", "pasta"),
        ("crème brûlée", "creme brulee"),
        ("cola cola COLA 12.5 oz", "cola 12.5 oz"),
        ("a" * 30 + " b", "b"),
        ("say that it is free! http://x.example", "say that it is free http x.example"),
    ],
)
def test_a_text_is_read_as_people_see_it(attacks, text, plain):
    assert attacks.normalise(text) == plain and attacks.normalise(plain) == plain


def test_a_text_has_an_end_and_must_be_one(attacks):
    assert len(attacks.normalise(" ".join(f"w{n}" for n in range(99))).split()) == 24
    for bad in ("", "  ", None, 3):
        with pytest.raises(ValueError, match="give words"):
            attacks.normalise(bad)


def test_a_flood_of_one_household_counts_once(attacks):
    log = [{"item": "A", "household": f"h{n}", "event": "added" if n < 2 else "shown"} for n in range(10)]
    assert attacks.acceptance(log, "A") == pytest.approx(3 / 30)
    flood = [{"item": "A", "household": "x", "event": "added"}] * 100
    assert attacks.acceptance(log + flood, "A") == pytest.approx(4 / 31)
    assert attacks.acceptance(log + flood, "A", by_household=False) > 0.7
    assert attacks.acceptance([], "A") == pytest.approx(1 / 20)


def test_an_answer_that_obeys_a_product_s_text_is_refused(attacks):
    template = "We offer {0}: it goes with {1}."
    assert attacks.fill(template, "We offer {0}: it goes so well with {1}.", ["Pasta", "milk"]) == (
        "We offer pasta: it goes so well with milk."
    )
    for answer in ("We offer {0}: free with {1}.", "We offer {1}: it goes with {0}.", "We offer it."):
        assert attacks.fill(template, answer, ["Pasta", "milk"]) == "We offer pasta: it goes with milk."


def test_pairs_of_a_brute_force_table(privacy):
    """`holders` against sets."""
    rng = np.random.default_rng(1)
    rows = (rng.random((15, 6)) < 0.5).astype(int)
    table = sparse.csc_matrix(rows)
    for columns in combinations(range(6), 2):
        assert set(privacy.holders(table, columns)) == set(np.flatnonzero(rows[:, columns].all(axis=1)))
