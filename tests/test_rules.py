"""Mining against brute force, against mlxtend, and against the counts published for Groceries."""

from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from mlxtend.frequent_patterns import association_rules as mlxtend_rules
from mlxtend.frequent_patterns import fpgrowth
from scipy import sparse

from recutils import rules
from recutils.data.schema import Baskets
from recutils.models.rules import RuleRecommender
from recutils.rules import association


@pytest.fixture(scope="module")
def groceries(shared):
    lines = (shared / "groceries_baskets.csv").read_text(encoding="utf-8").splitlines()
    return [line.split(",") for line in lines]


@pytest.mark.parametrize(
    "support, confidence, min_len, expected",
    [
        (0.001, 0.8, 1, {"all": 410, 3: 29, 4: 229, 5: 140, 6: 12}),
        (0.001, 0.5, 1, {"all": 5668}),
        (0.01, 0.5, 1, {"all": 15}),
        (0.006, 0.25, 2, {"all": 463, 2: 150, 3: 297, 4: 16}),
    ],
)
def test_published_counts_of_groceries(groceries, support, confidence, min_len, expected):
    found = rules.association_rules(groceries, support, confidence)
    length = found["antecedents"].map(len) + 1
    assert (length >= min_len).sum() == expected.pop("all")
    for n, count in expected.items():
        assert (length == n).sum() == count


def test_groceries_equal_mlxtend_but_for_boundary_rules(groceries):
    """mlxtend divides rounded supports; the rules it misses are right exactly eight times in ten."""
    items = sorted({item for basket in groceries for item in basket})
    table = pd.DataFrame([[item in basket for item in items] for basket in map(set, groceries)], columns=items)
    sets = fpgrowth(table, 0.001, use_colnames=True)
    ours = rules.frequent_itemsets(groceries, 0.001)
    count = dict(zip(ours["itemset"], ours["count"], strict=True))
    assert count == {s: round(v * 9835) for s, v in zip(sets["itemsets"], sets["support"], strict=True)}
    theirs = mlxtend_rules(sets, metric="confidence", min_threshold=0.8)
    theirs = theirs[theirs["consequents"].map(len) == 1]
    mine = rules.association_rules(groceries, 0.001, 0.8)
    pairs = [set(zip(t["antecedents"], t["consequents"], strict=True)) for t in (mine, theirs)]
    assert (len(pairs[0]), len(pairs[1])) == (410, 406) and pairs[1] < pairs[0]
    for left, right in pairs[0] - pairs[1]:
        assert Fraction(count[left | right], count[left]) == Fraction(4, 5)


def test_the_store_equals_mlxtend(journey_split):
    """On every fourth training basket: mlxtend takes its time with all. No rule has just this confidence."""
    matrix = journey_split.train.matrix[::4]
    sets = fpgrowth(pd.DataFrame.sparse.from_spmatrix(matrix.astype(bool)), 0.003)
    ours = rules.frequent_itemsets(matrix, 0.003)
    n = matrix.shape[0]
    expected = {s: round(v * n) for s, v in zip(sets["itemsets"], sets["support"], strict=True)}
    assert dict(zip(ours["itemset"], ours["count"], strict=True)) == expected and len(expected) > 500
    theirs = mlxtend_rules(sets, metric="confidence", min_threshold=0.201)
    mine = rules.association_rules(matrix, 0.003, 0.201, single_consequent=False)
    columns = ["support", "confidence", "lift", "leverage", "conviction"]
    key = ["antecedents", "consequents"]
    both = mine.set_index(key)[columns].join(theirs.set_index(key)[columns], rsuffix="_mlxtend", how="outer")
    assert len(both) == len(mine) == len(theirs) > 100
    for column in columns:
        np.testing.assert_allclose(both[column], both[f"{column}_mlxtend"], rtol=1e-9)


@pytest.mark.parametrize("support, itemsets", [(0.001, 5_858), (0.0003, 45_084), (0.0001, 523_469)])
def test_itemset_counts_of_the_store(journey_split, support, itemsets):
    """The counts are PyFIM's; `make bench` compares itemset by itemset."""
    assert len(rules.mine_itemsets(journey_split.train.matrix, support, max_len=5)) == itemsets


def test_ten_baskets_are_enough_in_any_length(journey_split):
    """13,825,928 itemsets of up to 17 items, as PyFIM counts them; known before memory is taken, exact when it is."""
    matrix = journey_split.train.matrix
    with pytest.raises(MemoryError, match="More than 3,333,333 itemsets are in 10 baskets"):
        rules.mine_itemsets(matrix, 10 / matrix.shape[0], memory=10**8)
    found = rules.mine_itemsets(matrix, 10 / matrix.shape[0])
    assert len(found) == 13_825_928 and len(found.levels) == 18
    length = 10
    rows = np.random.default_rng(0).choice(len(found.levels[length - 1][2]), 50)
    for itemset, count in zip(found.order[found.sets(length)[rows]], found.levels[length - 1][2][rows], strict=True):
        assert (matrix[:, itemset].sum(axis=1) == length).sum() == count


@pytest.mark.parametrize("seed", range(5))
def test_brute_force_on_dense_random_baskets(seed):
    """All itemsets and all rules, any split of both sides, on 40 dense baskets over 8 items."""
    x = np.random.default_rng(seed).random((40, 8)) < 0.55
    count = {frozenset(s): int(x[:, list(s)].all(axis=1).sum()) for k in range(1, 9) for s in combinations(range(8), k)}
    for support in (0.05, 0.3, 1.0):
        found = rules.frequent_itemsets(sparse.csr_matrix(x), support)
        got = dict(zip(found["itemset"], found["count"], strict=True))
        assert got == {s: n for s, n in count.items() if n >= support * 40 and n > 0}
    expected = {
        (left, s - left)
        for s, n in count.items()
        if n >= 4
        for k in range(1, len(s))
        for left in map(frozenset, combinations(s, k))
        if 10 * n >= 6 * count[left]
    }
    found = rules.association_rules(sparse.csr_matrix(x), 0.1, 0.6, single_consequent=False)
    assert set(zip(found["antecedents"], found["consequents"], strict=True)) == expected
    single = rules.association_rules(sparse.csr_matrix(x), 0.1, 0.6)
    assert set(zip(single["antecedents"], single["consequents"], strict=True)) == {
        r for r in expected if len(r[1]) == 1
    }
    assert found["antecedents"].map(len).min() == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_len", [None, 1, 3])
def test_closed_and_maximal_by_brute_force(seed, max_len):
    x = sparse.csr_matrix(np.random.default_rng(seed).random((50, 9)) < 0.6)
    table = rules.frequent_itemsets(x, 0.1)
    count = dict(zip(table["itemset"], table["count"], strict=True))
    longest = max_len or 9
    one_more = {s: [s | {i} for i in range(9) if i not in s and s | {i} in count] for s in count}
    closed = {s for s in count if len(s) <= longest and all(count[b] < count[s] for b in one_more[s])}
    maximal = {s for s in count if len(s) <= longest and not one_more[s]}
    for keep, expected in (("closed", closed), ("maximal", maximal)):
        found = rules.frequent_itemsets(x, 0.1, max_len, keep)
        assert dict(zip(found["itemset"], found["count"], strict=True)) == {s: count[s] for s in expected}


@pytest.mark.parametrize("most_pairs", [0, 10**6])
@pytest.mark.parametrize("room", [8, 10**6])
@pytest.mark.parametrize("max_len", [None, 1, 2, 3])
def test_threads_change_nothing(monkeypatch, most_pairs, room, max_len):
    """Many runs over first items, with and without counted pairs, with too little room at first: the same arrays."""
    from recutils.rules import itemsets

    x = sparse.csr_matrix(np.random.default_rng(5).random((400, 60)) < np.linspace(0.02, 0.5, 60))
    alone = rules.mine_itemsets(x, 0.02, max_len)
    monkeypatch.setattr(itemsets, "SMALL", 0)
    monkeypatch.setattr(itemsets, "MOST_PAIRS", most_pairs)
    monkeypatch.setattr(itemsets, "ROOM", room)
    for _ in range(3):
        found = rules.mine_itemsets(x, 0.02, max_len)
        assert len(found.levels) == len(alone.levels)
        for ours, theirs in zip(found.levels, alone.levels, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
    with pytest.raises(MemoryError, match="More than 33 itemsets"):
        rules.mine_itemsets(x, 0.02, max_len, memory=1000)


def test_pairs_that_never_grow():
    """Every basket has one partner at most: the search must not look a level too deep."""
    pairs = [[i, i + 1] for i in range(0, 200, 2)] * 2
    assert rules.frequent_itemsets(pairs, 0.01)["length"].value_counts().to_dict() == {1: 200, 2: 100}


@pytest.mark.parametrize("share, expected", [(1 / 3, 2), (2 / 3, 1), (0.5, 2)])
def test_a_confidence_that_is_no_decimal(share, expected):
    """3,000 baskets hold a, 1,500 of them c too: confidences 1/2 and 1, at counts that once overflowed."""
    baskets = [["a", "c"]] * 1500 + [["a"]] * 1500 + [["b"]] * 1000
    assert len(rules.association_rules(baskets, 0.1, share)) == expected


def test_stored_zeros_are_no_purchases():
    x = sparse.csr_matrix(np.array([[1, 1], [1, 1], [1, 0], [1, 0]], dtype=np.float32))
    x.data[1] = 0  # stored, but nothing
    assert rules.frequent_itemsets(x, 0.1)["count"].tolist() == [4, 1, 1] and x.nnz == 6


@pytest.mark.parametrize("measure", rules.MEASURES)
def test_the_best_rules_by_a_measure(measure):
    x = sparse.csr_matrix(np.random.default_rng(3).random((60, 9)) < 0.5)
    everything = rules.association_rules(x, 0.05, 0.2, single_consequent=False, by=measure)
    best = rules.association_rules(x, 0.05, 0.2, single_consequent=False, best=20, by=measure)
    np.testing.assert_allclose(best[measure], everything[measure][:20])
    assert len(best) == 20 and everything[measure].is_monotonic_decreasing
    np.testing.assert_array_equal(best["count"], everything["count"][:20])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bounds", [[0, 120], [0, 40, 80, 120], [0, 5, 6, 119, 120]])
def test_partitions_find_what_all_baskets_hold(seed, bounds):
    """Unequal parts, some of one basket, sorted so that the parts differ."""
    x = sparse.csr_matrix(np.random.default_rng(seed).random((120, 9)) < np.linspace(0.1, 0.7, 9))
    x = x[np.argsort(x[:, 4].toarray().ravel(), kind="stable")]
    parts = [x[a:b] for a, b in pairwise(bounds)]
    for support in (0.05, 0.101, 0.3):
        found = rules.frequent_in_partitions(lambda: parts, support, 4)
        whole = rules.frequent_itemsets(x, support, 4)
        assert dict(zip(found["itemset"], found["count"], strict=True)) == dict(
            zip(whole["itemset"], whole["count"], strict=True)
        )
        assert found["support"].tolist() == (found["count"] / 120).tolist()
    with pytest.raises(ValueError, match="no partitions"):
        rules.frequent_in_partitions(lambda: [], 0.1)


@pytest.mark.parametrize("max_len", [1, 2, 3, 4])
def test_max_len_only_cuts(max_len):
    x = sparse.csr_matrix(np.random.default_rng(1).random((60, 9)) < 0.5)
    everything = rules.frequent_itemsets(x, 0.1)
    cut = rules.frequent_itemsets(x, 0.1, max_len=max_len)
    pd.testing.assert_frame_equal(cut, everything[everything["length"] <= max_len].reset_index(drop=True))


def test_iterables_of_anything_hashable():
    found = rules.frequent_itemsets([("a", 1), ("a",), {"a", 1, None}], 0.6)
    assert dict(zip(found["itemset"], found["count"], strict=True)) == {
        frozenset({"a"}): 3,
        frozenset({1}): 2,
        frozenset({"a", 1}): 2,
    }
    assert len(rules.frequent_itemsets((basket for basket in [["x"], []]), 0.5)) == 1


@pytest.mark.parametrize(
    "support, baskets, smallest",
    [(0.07, 100, 7), (0.1, 30, 3), (0.3, 10, 3), (0.001, 9835, 10), (10 / 115411, 115411, 10)],
)
def test_support_is_an_exact_integer_threshold(support, baskets, smallest):
    """In floating point 0.07 * 100 is a little above 7 and 0.1 * 30 above 3."""
    assert association.min_count_of(support, baskets) == smallest


def test_measures_by_hand():
    m = rules.interest_measures([300], [500], [400], 1000)
    expected = {"support": 0.3, "confidence": 0.6, "lift": 1.5, "leverage": 0.1, "conviction": 1.5, "zhang": 0.1 / 0.15}
    assert {k: v.item() for k, v in m.items() if k != "count"} == pytest.approx(expected)
    assert rules.interest_measures([5], [5], [50], 100)["conviction"] == np.inf
    extreme = rules.interest_measures([10, 0, 100], [10, 10, 100], [10, 10, 100], 100)
    assert extreme["zhang"].tolist() == pytest.approx([1, -1, 0])


def test_matching_rules_by_brute_force():
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix((rng.random((2500, 12)) < 0.3).astype(np.float32))
    table = rules.association_rules(x, 0.01, 0.2, max_len=4)
    basket, rule = rules.matching_rules(x, rules.antecedent_matrix(table, 12))
    held = [set(x[b].indices) for b in range(2500)]
    got = set(zip(basket.tolist(), rule.tolist(), strict=True))
    expected = {(b, r) for r, left in enumerate(table["antecedents"]) for b in range(2500) if left <= held[b]}
    assert got == expected and (np.diff(rule) >= 0).all()


def test_hits_of_rules_by_brute_force():
    rng = np.random.default_rng(1)
    x, later = (sparse.csr_matrix((rng.random((300, 9)) < 0.4).astype(np.float32)) for _ in range(2))
    table = rules.association_rules(x, 0.05, 0.3, max_len=3)
    held = [set(later[b].indices) for b in range(300)]
    sides = list(zip(table["antecedents"], table["consequents"], strict=True))
    expected = [
        (b, r, right <= held[b]) for r, (left, right) in enumerate(sides) for b in range(300) if left <= held[b]
    ]
    assert sorted(zip(*rules.rule_hits(table, later), strict=True)) == sorted(expected)
    nothing = sparse.csr_matrix((5, 9), dtype=np.float32)
    assert [len(part) for part in rules.rule_hits(table, nothing)] == [0, 0, 0]


@pytest.mark.parametrize("support", [0, -0.1, 2, float("nan")])
def test_support_out_of_range(support):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        rules.frequent_itemsets([["a"]], support)


def test_misuse_gets_one_clear_error():
    with pytest.raises(ValueError, match="min_confidence is 1.5"):
        rules.association_rules([["a"]], 0.5, 1.5)
    with pytest.raises(ValueError, match="max_len is 0"):
        rules.frequent_itemsets([["a"]], 0.5, max_len=0)
    with pytest.raises(ValueError, match="no baskets"):
        rules.frequent_itemsets([], 0.5)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        rules.frequent_itemsets(sparse.csr_matrix([[2, 1]]), 0.5)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        rules.frequent_itemsets(sparse.csr_matrix([[0.5, 1]]), 0.5)
    with pytest.raises(ValueError, match="'sure' is no measure"):
        rules.association_rules([["a"]], 0.5, 0.5, by="sure")
    with pytest.raises(ValueError, match="keep is 'some'"):
        rules.frequent_itemsets([["a"]], 0.5, keep="some")
    with pytest.raises(ValueError, match="pass a list of items"):
        rules.frequent_itemsets(["milk"], 0.5)


def test_nothing_found_is_an_empty_table():
    assert rules.association_rules([["a"], ["b"]], 0.5, 0.5).columns.tolist()[:2] == ["antecedents", "consequents"]
    assert len(rules.frequent_itemsets([["a"], ["b"]], 0.9)) == 0
    assert len(rules.frequent_itemsets([[], []], 0.5)) == 0


def test_a_table_that_would_not_fit(monkeypatch):
    from recutils.rules import itemsets

    found = rules.mine_itemsets([["a", "b"]] * 3, 0.5)
    monkeypatch.setattr(itemsets.psutil, "virtual_memory", lambda: type("M", (), {"available": 100}))
    with pytest.raises(MemoryError, match="3 itemsets as a table need"):
        found.to_frame()


@pytest.fixture
def bread_and_butter():
    """Items 0, 1: two breads, 2: butter, 3: soap, 4: another butter; breads go with butter, soap with nothing."""
    rng = np.random.default_rng(0)
    rows = [[rng.integers(2), 2 if rng.random() < 0.9 else 4] for _ in range(60)] + [[3]] * 40
    x = sparse.lil_matrix((100, 5), dtype=np.float32)
    for basket, items in enumerate(rows):
        x[basket, items] = 1
    return x.tocsr(), np.array([0, 0, 1, 2, 1])


def test_baskets_hold_the_groups_of_their_items(bread_and_butter):
    x, groups = bread_and_butter
    wide = rules.add_group_columns(x, groups).toarray()
    assert wide.shape == (100, 8) and set(np.unique(wide)) == {0, 1}
    for basket in wide:
        assert {groups[i] for i in np.flatnonzero(basket[:5])} == set(np.flatnonzero(basket[5:]))
    with pytest.raises(ValueError, match="3 groups for 5 items"):
        rules.add_group_columns(x, groups[:3])


def test_generalised_rules_offer_items_and_say_something(bread_and_butter):
    x, groups = bread_and_butter
    found = rules.association_rules(rules.add_group_columns(x, groups), 0.02, 0.02, max_len=3)
    kept = rules.prune_generalised_rules(found, groups)
    said = set(zip(kept["antecedents"], kept["consequents"], strict=True))
    assert (frozenset({5}), frozenset({2})) in said  # any bread -> butter
    assert (frozenset({6}), frozenset({2})) not in said  # any butter -> butter
    for left, right in said:
        assert min(right) < 5 and groups[min(right)] + 5 not in left
        assert not {groups[i] + 5 for i in left if i < 5} & left
    dropped = len(found) - len(kept)
    trivial = [
        min(c) >= 5 or groups[min(c)] + 5 in a or 7 in a or bool({groups[i] + 5 for i in a if i < 5} & a)
        for a, c in zip(found["antecedents"], found["consequents"], strict=True)
    ]
    assert dropped == sum(trivial) > 0


def test_a_group_speaks_for_its_rare_item(bread_and_butter):
    """Bread 1 in two baskets only: too few for a rule of its own, but any bread has butter with it."""
    x, groups = bread_and_butter
    rare = np.flatnonzero(x[:, 1].toarray().ravel())[2:]
    x = x.tolil()
    x[rare, 1], x[rare, 0] = 0, 1
    n = x.shape[0]
    train = Baskets(x.tocsr(), np.zeros(n, int), np.zeros(n, "datetime64[ns]"))
    query = Baskets(sparse.csr_matrix(np.eye(5, dtype=np.float32)[[1]]), np.zeros(1, int), train.timestamps[:1])
    alone = RuleRecommender(0.05).fit(train)
    helped = RuleRecommender(0.05, groups=groups).fit(train)
    assert not np.isfinite(alone.score(query)).any() and helped.score(query).argmax() == 2
