"""What chapters 02, 03, 05b to 05e and 08 define in their cells: known answers, toys, the recommenders' contract.

The cells that define them are executed from the notebooks.
"""

import hashlib
import types

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from chapter import definitions
from conftest import ROOT
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional

from recutils import data, evaluate, graph, models
from recutils.data.schema import Baskets
from recutils.ranker.candidates import Candidates


def chapter_code(name, *wanted):
    """The functions and classes of a notebook that are wanted, by name."""
    return vars(definitions(name, *wanted))


def baskets(rows):
    matrix = sparse.csr_matrix(np.asarray(rows, dtype=np.float32))
    return Baskets(matrix, np.full(len(rows), -1), np.zeros(len(rows), "datetime64[ns]"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path))


# ------------------------------------------------------------------------------------ chapter 02c: the tagger


@pytest.fixture(scope="module")
def tagging():
    names = ("Tagger", "bio_tags", "tokenize_words", "first_tokens", "token_loss", "load_tagger", "train_tagger")
    names += ("predict_tags", "join_spans", "extract_attributes")
    return chapter_code("02c_words_at_work", *names)


def test_bio_marks_where_fields_begin(tagging):
    words, tags = tagging["bio_tags"]([("type", "FRZN  Pizza"), ("brand", ""), ("size", "9 OZ"), ("type", "thin")])
    assert words == ["frzn", "pizza", "9", "oz", "thin"]
    assert tags == ["B-type", "I-type", "B-size", "I-size", "B-type"]


def test_spans_are_read_off_the_tags(tagging):
    words = ["9", "oz", "the", "pizza", "pie", "national"]
    tags = ["I-size", "I-size", "O", "B-type", "B-type", "I-brand"]
    expected = [("size", "9 oz"), ("type", "pizza"), ("type", "pie"), ("brand", "national")]
    assert tagging["join_spans"](words, tags) == expected and tagging["join_spans"]([], []) == []


@pytest.mark.slow
def test_a_tagger_learns_and_reads_odd_texts(tagging):
    rng = np.random.default_rng(0)
    kinds, brands = ["soft drinks", "white bread", "cat litter", "orange juice"], ["national", "private"]

    def lines(n, sizes):
        made = []
        for _ in range(n):
            fields = [("type", rng.choice(kinds)), ("brand", rng.choice(brands)), ("size", f"{rng.choice(sizes)} oz")]
            made.append(tagging["bio_tags"]([fields[i] for i in rng.permutation(3)]))
        return [m[0] for m in made], [m[1] for m in made]

    tagger = tagging["train_tagger"](*lines(200, [2, 4, 6, 8]), steps=25, batch_size=16)
    predict, extract = tagging["predict_tags"], tagging["extract_attributes"]
    assert tagger.labels == ["O", "B-brand", "I-brand", "B-size", "I-size", "B-type", "I-type"]
    words, tags = lines(40, [3, 5, 12])  # sizes never seen
    found = predict(tagger, words)
    assert np.mean([a == b for x, y in zip(found, tags, strict=True) for a, b in zip(x, y, strict=True)]) > 0.95
    assert extract(tagger, ["private 5 oz cat litter", ""]) == [
        [("brand", "private"), ("size", "5 oz"), ("type", "cat litter")],
        [],
    ]
    assert predict(tagger, [[], ["\u200b", "milk"]])[0] == []
    cut = predict(tagger, [["milk"] * 5000])[0]
    assert len(cut) == 5000 and cut[-1] == "O"


# ------------------------------------------------------------------------------------ chapter 03: links


@pytest.fixture(scope="module")
def linking():
    names = ("new_links", "candidate_scores", "measure_ranks", "rank_links", "graded_loss", "label_loss")
    names += ("EarlyStopping", "train_link_predictor", "strongest_edges", "link_scores", "train_link_embeddings")
    return chapter_code("03_product_graph", *names)


def test_new_links_are_those_not_known(linking):
    before, after = (graph.adjacency(edges, 4) for edges in ([[0, 1], [1, 2]], [[0, 0, 1], [1, 2, 3]]))
    found = linking["new_links"](before, after)
    assert set(zip(*found.nonzero(), strict=True)) == {(0, 2), (2, 0), (1, 3), (3, 1)} and found.nnz == 4


def test_rank_links_against_scikit_learn(linking):
    rng, rank_links = np.random.default_rng(0), linking["rank_links"]
    known, later = (graph.adjacency(rng.integers(40, size=(2, n)), 40) for n in (60, 90))
    links, scores = linking["new_links"](known, later), rng.random((40, 40)).astype(np.float32)
    table = rank_links(lambda rows: scores[rows], known, links, k=5)
    assert list(table.index) == list(np.flatnonzero(links.getnnz(axis=1)))
    for i, row in table.iterrows():
        candidate = (known[i].toarray().ravel() == 0) & (np.arange(40) != i)
        truth, own = links[i].toarray().ravel()[candidate], scores[i, candidate]
        assert row["ap"] == pytest.approx(average_precision_score(truth, own))
        assert row["auc"] == pytest.approx(roc_auc_score(truth, own))
        assert row["hit"] == truth[np.argsort(-own)[:5]].max()
    flat = rank_links(lambda rows: np.zeros((len(rows), 40)), known, links)
    assert flat["auc"].max() == 0  # ties go against the link
    with pytest.raises(graph.GraphError, match="no new link"):
        rank_links(lambda rows: scores[rows], known, sparse.csr_matrix((40, 40)))


@pytest.mark.parametrize("graded", [True, False])
@pytest.mark.slow
def test_link_predictor_learns_two_worlds(linking, two_worlds, graded):
    # Pairs within a world go together 4/3 times as often as chance; without the pair 0, 1 in training
    matrix = two_worlds[np.flatnonzero(~((two_worlds[:, 0].toarray() + two_worlds[:, 1].toarray()) == 2).ravel())]
    edges = graph.build_item_graph(matrix, 5, 1.1)["copurchase"]
    assert edges[0, 1] == 0 and edges[0, 2] > 0
    encoder = graph.ItemEncoder(None, [edges], width=16)
    loss = linking["graded_loss"](matrix) if graded else linking["label_loss"](edges)
    losses = linking["train_link_predictor"](encoder, loss, steps=150)
    v = encoder.vectors()
    s = v @ v.T
    assert losses[-1] < losses[0] and s[0, 1] > s[0, 10:].max()  # neighbours of neighbours first


def test_the_best_state_is_kept(linking, two_worlds):
    edges = graph.build_item_graph(two_worlds, 5, 1.1)["copurchase"]
    encoder, seen = graph.ItemEncoder(None, [edges], width=16), []

    def eval_fn(vectors):  # the first evaluation is the best, the rest are worse
        seen.append(vectors.copy())
        return -float(len(seen))

    stopping = linking["EarlyStopping"](encoder, eval_fn, eval_every=10)
    loss = linking["graded_loss"](two_worlds)
    losses = linking["train_link_predictor"](encoder, loss, steps=100, callback=stopping)
    assert len(seen) == 3 and len(losses) == 30 and not np.allclose(encoder.vectors(), seen[0])
    stopping.restore()
    assert np.allclose(encoder.vectors(), seen[0])


# ------------------------------------------------------------------------------------ chapter 05d: transformers


@pytest.fixture(scope="module")
def sets():
    names = ("SetEncoder", "Attention", "Layer", "pad_sets", "mask_items", "masked_item_loss", "Sets", "cross_entropy")
    names += ("train_encoder", "SetTransformer", "score_sets", "sort_past", "earlier_baskets", "recent_items")
    names += ("household_history", "age_bin", "read_queries", "parts_of")
    return chapter_code("05d_transformer", *names)


def dated(rows, households, days):
    """Baskets at nine o'clock of these days of 2017."""
    when = np.datetime64("2017-01-01T09") + np.asarray(days) * np.timedelta64(1, "D")
    return Baskets(baskets(rows).matrix, np.asarray(households), when.astype("datetime64[ns]"))


def test_pad_sets_by_hand(sets):
    matrix = sparse.csr_matrix(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]]))
    items, mask = sets["pad_sets"](matrix)
    assert items.tolist() == [[0, 2, 0], [0, 0, 0], [0, 1, 3]]
    assert mask.tolist() == [[True, True, False], [False] * 3, [True] * 3]  # item 0 is an item, not a pad
    items, mask = sets["pad_sets"](matrix, longest=2)
    assert items.tolist() == [[0, 2], [0, 0], [0, 1]] and mask.tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_mask_items_hides_one_to_half_and_splits_every_basket(sets):
    rng = np.random.default_rng(0)
    batch = sparse.csr_matrix((rng.random((300, 12)) < 0.4).astype(np.float32))
    batch = batch[np.flatnonzero(np.diff(batch.indptr) >= 2)]
    size = np.diff(batch.indptr)
    rest, targets = sets["mask_items"](batch, rng)
    hidden = targets.toarray() > 0
    assert ((rest.toarray() > 0) ^ hidden == (batch.toarray() > 0)).all()  # each item is open or hidden, never both
    assert (hidden.sum(axis=1) >= 1).all() and (hidden.sum(axis=1) <= size // 2).all()
    assert (hidden.sum(axis=1) == size // 2)[size >= 4].any() and (hidden.sum(axis=1) == 1)[size >= 4].any()
    np.testing.assert_allclose(targets.toarray().sum(axis=1), 1, rtol=1e-6)
    rest, targets = sets["mask_items"](batch, rng, empty=0.5)
    share = np.mean(np.diff(rest.indptr) == 0)
    assert 0.35 < share < 0.65 and np.allclose(targets.toarray().sum(axis=1), 1)


def test_cross_entropy_is_that_of_a_softmax_over_what_is_not_open(sets):
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    rest = sparse.csr_matrix(np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=np.float32))
    targets = sparse.csr_matrix(np.array([[0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 1]], dtype=np.float32))
    first, second = scores[0, 1:].log_softmax(0), scores[1].log_softmax(0)
    expected = -(0.5 * first[0] + 0.5 * first[1] + second[4]) / 2
    assert sets["cross_entropy"](scores, rest, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_attention_agrees_with_pytorch(sets):
    torch.manual_seed(0)
    own, theirs = sets["Attention"](8, heads=2), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    parts = (own.query, own.key, own.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(own.out.state_dict())
        x, mask = torch.randn(3, 4, 8), torch.tensor([[True] * 4, [True, True, False, False], [True] + [False] * 3])
        expected = theirs(x, x, x, ~mask)[0]
        torch.testing.assert_close(own(x, x, mask), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own(x[:, :1], x, mask), expected[:, :1], rtol=1e-4, atol=1e-5)


def test_no_basket_of_the_day_or_later_is_looked_at(sets):
    """Households 0 and 1; a look back from day 5 ends with the baskets of day 4."""
    past = sets["sort_past"](dated(np.eye(6), [1, 0, 0, 1, 0, -1], [0, 1, 4, 5, 5, 2]))
    assert past.baskets.matrix.indices.tolist() == [1, 2, 4, 0, 3]  # by household, then by time; nobody's left out
    asked = dated(np.zeros((4, 6)), [0, 1, 7, -1], [5, 5, 5, 5])
    query, row = sets["earlier_baskets"](past, asked.households, asked.timestamps)
    assert (query.tolist(), past.baskets.matrix.indices[row].tolist()) == ([0, 0, 1], [2, 1, 0])  # the latest first
    query, row = sets["earlier_baskets"](past, asked.households, asked.timestamps, most=1)
    assert past.baskets.matrix.indices[row].tolist() == [2, 0]
    later = asked.timestamps + np.timedelta64(1, "D")
    row = sets["earlier_baskets"](past, asked.households, later)[1]
    assert past.baskets.matrix.indices[row].tolist() == [4, 2, 1, 3, 0]


def test_the_history_is_decayed_shares_and_recent_items_have_ages(sets):
    past = sets["sort_past"](dated([[1, 1, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0], [0, 10, 11]))
    asked = dated(np.zeros((2, 3)), [0, 5], [20, 20])
    history = sets["household_history"](past, asked, asked.timestamps, half_life=10.0).toarray()
    weight = 0.5 ** (np.array([20, 10, 9]) / 10)
    expected = np.array([weight[0], weight[0] + weight[1], weight[2]])
    np.testing.assert_allclose(history, [expected / expected.sum(), [0, 0, 0]], rtol=1e-5)
    items, ages, mask = sets["recent_items"](past, asked, asked.timestamps, most=2)
    assert items.tolist() == [[2, 1], [0, 0]] and mask.tolist() == [[True, True], [False, False]]
    assert ages[0].tolist() == sets["age_bin"](np.array([9.0, 10.0])).tolist()
    assert sets["age_bin"](np.array([0, 0.9, 1, 3, 7, 15, 31, 400])).tolist() == [1, 1, 2, 3, 4, 5, 6, 9]


@pytest.mark.parametrize("variant", ["set", "household", "baskets"])
def test_the_set_transformer_keeps_the_contract(sets, sample_split, tmp_path, monkeypatch, variant):
    vectors = np.random.default_rng(0).normal(size=(30, 8))
    how = {"lr": 5e-3, "dropout": 0.1, "width": 16}
    make = lambda: sets["SetTransformer"](vectors, variant, steps=5, how=how)  # noqa: E731
    model, train = make(), sample_split.train
    with pytest.raises(ValueError, match="call fit"):
        model.score(sample_split.test)
    assert model.fit(train) is model
    queries, _ = evaluate.hide_one(sample_split.test)
    scores = model.score(queries)
    assert scores.shape == queries.matrix.shape and scores.dtype == np.float32 and not np.isnan(scores).any()
    order = np.random.default_rng(0).permutation(len(queries))
    np.testing.assert_allclose(model.score(queries[order]), scores[order], rtol=1e-4, atol=1e-5)
    monkeypatch.setenv("RECUTILS_CACHE", str(tmp_path / "other"))  # trained a second time, to the same bits
    np.testing.assert_array_equal(scores, make().fit(train).score(queries))
    nothing = baskets(np.zeros((2, 30)))  # of unknown households
    nothing.timestamps = sample_split.test.timestamps[:2]
    assert np.isneginf(model.score(nothing)).all()
    known = Baskets(nothing.matrix, train.households[:2], nothing.timestamps)
    assert np.isfinite(model.score(known)).all() == (variant != "set")  # an empty basket of a known household
    assert model.recommend(sample_split.test, k=5).shape == (len(sample_split.test), 5)


@pytest.mark.slow
def test_the_set_transformer_reads_sets(sets, sample_split):
    """The order of the items and the padding change nothing; an item less, or another age, does."""
    model = sets["SetTransformer"](None, "baskets", steps=30, how={"lr": 5e-3, "dropout": 0.1, "width": 16})
    encoder = model.fit(sample_split.train).encoder
    items, mask, ages = torch.tensor([[0, 2, 5]]), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[0, 1, 6]])
    history = sparse.csr_matrix(np.eye(30, dtype=np.float32)[[3]])

    def read(items=items, mask=mask, ages=ages, history=history):
        with torch.inference_mode():
            return encoder(sets["Sets"](items, mask, ages, history))

    one, back = read(), [2, 1, 0]
    pad = lambda x: functional.pad(x, (0, 2))  # noqa: E731
    same = [read(items[:, back], mask, ages[:, back]), read(pad(items), pad(mask), pad(ages))]
    other = [read(items[:, :2], mask[:, :2], ages[:, :2]), read(ages=ages[:, back]), read(history=history[:, ::-1])]
    least = min((one - x).abs().max() for x in other)
    assert all((one - x).abs().max() < 0.01 * least for x in same)


def test_a_transformer_of_the_household_never_reads_its_future(sets, sample_split):
    """Baskets from the query's day on, given to the model, change nothing."""
    model = sets["SetTransformer"](None, "baskets", steps=5, how={"lr": 5e-3, "dropout": 0.1, "width": 16})
    model.fit(sample_split.train)
    middle = len(sample_split.train) // 2
    query = sample_split.train[middle : middle + 1]
    scores = model.score(query)
    model.past = sets["sort_past"](sample_split.train[np.flatnonzero(sample_split.train.timestamps < query.timestamps)])
    np.testing.assert_allclose(model.score(query), scores, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_set_transformer_learns_planted_companions(sets, sample_split):
    how = {"lr": 5e-3, "dropout": 0.1, "width": 32}
    model = sets["SetTransformer"](None, steps=80, how=how).fit(sample_split.train)
    place = {name: i for i, name in enumerate(sample_split.items["name"])}
    lift = model.score(baskets(np.eye(30)))
    lift = lift - lift.mean(axis=0)  # what an item adds to the others, popularity apart
    for cause, effect in (("pasta small", "sauce small"), ("tea small", "biscuit small")):
        assert place[effect] in np.argsort(-lift[place[cause]])[:3], (cause, effect)


def test_training_stops_when_validation_does_and_keeps_the_best(sets, sample_split, monkeypatch):
    values = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.9])
    train_encoder = sets["train_encoder"]
    inside = train_encoder.__wrapped__.__globals__
    monkeypatch.setitem(inside, "validation_ndcg", lambda *a: next(values))
    monkeypatch.setitem(inside, "BUDGET", {"batch": 16, "warmup": 2, "evaluate_every": 2, "patience": 6})
    train = sets["parts_of"](sample_split.train)
    how = {"lr": 5e-3, "dropout": 0.1, "width": 16}
    run = train_encoder.__wrapped__(train, train, None, "set", how, 0, 100)
    assert [c[0] for c in run["curve"]] == [2, 4, 6, 8, 10] and (run["step"], run["ndcg"]) == (4, 0.3)


# ------------------------------------------------------------------------------------ chapter 05f: fresh counts


@pytest.fixture(scope="module")
def freshness():
    return chapter_code("05f_up_to_date", "stack", "before", "query_ndcg", "fresh_ndcg", "cadences")


def test_cadences_end_before_the_day_and_on_monday(freshness):
    when = np.array(["2017-12-04T00:00", "2017-12-07T23:59", "2017-12-10T12:00"], "datetime64[ns]")
    until = freshness["cadences"](when, np.datetime64("2017-10-30"))
    assert until["daily"].astype(str).tolist() == ["2017-12-04", "2017-12-07", "2017-12-10"]
    assert until["weekly"].astype(str).tolist() == ["2017-12-04"] * 3  # a Monday
    assert until["protocol"].astype(str).tolist() == ["2017-10-30"] * 3


def test_fresh_counts_never_hold_the_day_of_the_query(freshness):
    """A model that repeats all it was given: what was bought on the day itself must not be found."""
    rows = [[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    store = dated(rows, [0, 0, 0, 0], [0, 3, 3, 5])
    queries, hidden = evaluate.hide_one(store)
    until = freshness["cadences"](queries.timestamps, np.datetime64("2017-01-02"))
    seen = {}

    def fit(past):
        counts = np.asarray(past.matrix.sum(axis=0)).ravel()
        seen[len(past)] = counts

        class Counts:
            def score(self, queries):
                return np.tile(np.where(counts > 0, counts, -np.inf), (len(queries), 1)).astype(np.float32)

        yield "counts", Counts()

    asked = queries.timestamps > store.timestamps[0]
    rows = np.flatnonzero(asked)
    found = freshness["fresh_ndcg"](fit, store, queries[rows], hidden[rows], until["daily"][rows])
    assert sorted(seen) == [1, 3] and seen[1].tolist() == [1, 1, 1, 0]  # of day 3 neither basket, of day 5 three
    values = found["counts"]
    first_sold_that_day = hidden[rows].indices[0] == 3
    assert (values[0] == 0) == first_sold_that_day and not np.isnan(values).any()
    joined = freshness["stack"](store[:2], store[2:])
    assert (joined.matrix != store.matrix).nnz == 0 and (joined.timestamps == store.timestamps).all()


# ------------------------------------------------------------------------------------ chapter 05b: judging bundles


@pytest.fixture(scope="module")
def judging():
    names = ("set_score", "beam_search", "log2_lift", "judge", "complete_one")
    return chapter_code("05b_bundles", *names)


@pytest.fixture(scope="module")
def serving():
    names = ("difference_of_means", "verdict", "open_halves", "offers", "replay", "estimates")
    return chapter_code("05e_households", *names)


def test_a_wide_beam_finds_the_best_set_and_a_narrow_one_does_not(judging):
    affinity = np.zeros((5, 5))
    for i, j, value in ((0, 1, 1.0), (0, 2, 0.9), (2, 3, 5.0), (0, 3, 0.1)):
        affinity[i, j] = affinity[j, i] = value
    assert judging["beam_search"](0, 3, affinity, width=1) == (0, 1, 2)  # 1 is the best partner
    assert judging["beam_search"](0, 3, affinity, width=4) == (0, 2, 3)
    assert judging["set_score"]((0, 2, 3), affinity) == pytest.approx(6.0 / 3)


def test_log2_lift_by_hand(judging):
    """Item 0 in 4 of 8 baskets, item 1 in 2, both in 2: log2(3 / 2); item 2 in 4, without 0 or 1."""
    matrix = np.array([[1, 1, 0]] * 2 + [[1, 0, 0]] * 2 + [[0, 0, 1]] * 4)
    counts = sparse.csr_matrix(matrix.T @ matrix)
    assert judging["log2_lift"]([0, 1], counts, 8) == pytest.approx(np.log2(3 / 2))
    by_pair = [np.log2(3 / 2), np.log2(1 / 3), np.log2(1 / 2)]
    assert judging["log2_lift"]([0, 1, 2], counts, 8) == pytest.approx(np.mean(by_pair))


def test_a_bundle_that_cannot_be_made_completes_nothing(judging):
    judging["prices"] = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    tried = baskets([[1, 1, 1, 1, 0]] * 20)
    whole = judging["judge"](lambda item: [item, *(i for i in range(5) if i != item)][:4], tried, 20)
    assert set(whole["completed"]) == {1.0} and whole["made"].all()
    part = judging["judge"](lambda item: [item] if item < 2 else [item, 0, 1, 4], tried, 20)
    assert set(part.loc[part["made"], "completed"]) == {2 / 3}
    assert set(part.loc[~part["made"], "completed"]) == {0.0} and 0 < part["made"].mean() < 1
    assert set(part.loc[part["made"], "price, $"]) == {11.0}


def test_one_item_of_an_open_basket_is_left_out_and_asked_for(judging):
    judging["types"] = np.array(["pasta", "sauce", "sauce", "milk", "beer"])
    judging["prices"] = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    judging["baskets"], judging["answers"] = baskets([[1, 1, 0, 0, 0], [1, 0, 0, 1, 0]]), np.array([4, 1])
    judging["moments"] = [None, None]
    found = judging["complete_one"](lambda basket, *_: [2, 3, 4] if 1 in basket else [])
    assert found["hit"].tolist() == [1.0, 0.0] and found["made"].tolist() == [True, False]
    assert found["price, $"].tolist() == [12.0, 0.0]
    assert found["no two of a type"].tolist() == [False, True]  # a second sauce


# ------------------------------------------------------------------------------------ chapter 05e: whom it serves


def test_the_interval_of_a_difference_draws_whole_households(serving):
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(200), 20)  # baskets of a household are all alike
    values = np.repeat(rng.normal(size=200), 20) + np.where(who < 100, 1.0, 0.0)
    found = serving["difference_of_means"](values, who, who < 100, who >= 100)
    assert found["difference"] == pytest.approx(values[who < 100].mean() - values[who >= 100].mean())
    width = found["high"] - found["low"]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(2 / 100), rel=0.2)  # of 200 households, not of 4,000 baskets
    wider = serving["difference_of_means"](values, who, who < 100, who >= 100, level=0.999)
    assert wider["high"] - wider["low"] > 1.4 * width
    assert serving["verdict"](found) == "ahead"
    assert serving["verdict"]({"low": -1, "high": 0}) == "not to be told apart"


def test_open_halves_keep_each_item_half_of_the_time(serving):
    matrix = sparse.csr_matrix(np.ones((400, 10), dtype=np.float32))
    half = serving["open_halves"](matrix, np.random.default_rng(0))
    assert matrix.nnz == 4000 and half.nnz == pytest.approx(2000, abs=150) and set(half.data) == {1.0}


# ------------------------------------------------------------------------------------ chapter 05c: tuning, ablation


@pytest.fixture(scope="module")
def tuning():
    return chapter_code("05c_tuning_and_ablation", "suggest", "rank_hidden", "best_parameters")


def test_a_trial_draws_whole_numbers_from_whole_ranges(tuning):
    space = {"n": (5, 400, "log"), "share": (0.0, 1.0), "of": [3, None]}
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    drawn = [tuning["suggest"](study.ask(), space) for _ in range(200)]
    n = np.array([d["n"] for d in drawn])
    assert all(isinstance(d["n"], int) and isinstance(d["share"], float) for d in drawn)
    assert n.min() >= 5 and n.max() <= 400 and np.median(n) < 100  # even on a log scale: about 45
    assert {d["of"] for d in drawn} == {3, None} and 0.4 < np.mean([d["share"] for d in drawn]) < 0.6
    best = [{"value": 0.2, "n": 7}, {"value": 0.1, "n": 9}]
    assert tuning["best_parameters"](best) == {"n": 7}


def test_a_hidden_item_is_ranked_among_its_candidates(tuning):
    """Two queries with three candidates each; a third whose hidden item nobody retrieved."""
    table = Candidates(
        rows=np.array([0, 0, 0, 1, 1, 1, 2]),
        columns=np.array([4, 5, 6, 4, 5, 6, 4]),
        features=pd.DataFrame(index=range(7)),
        labels=np.array([False, True, False, True, False, False, False]),
        retrieved_by=np.ones((7, 1), bool),
        members=["m"],
    )
    scores = np.array([0.9, 0.5, 0.1, 0.3, 0.3, 0.2, 0.7])  # the second is tied: behind the other
    model = types.SimpleNamespace(score_candidates=lambda table: scores)
    assert tuning["rank_hidden"](model, table, 3).tolist() == [[2.0], [2.0], [np.inf]]


class Rules:
    """Item 0 recommends items 1 to 12, each with a confidence of its own; item 1 recommends item 12, strongly."""

    left = sparse.csr_matrix((np.ones(13), (np.array([0] * 12 + [1]), np.arange(13))), shape=(13, 13), dtype=np.float32)
    right = np.array([*range(1, 13), 12])
    weights = np.array([*np.linspace(0.6, 0.2, 12), 0.9], dtype=np.float32)


def test_the_ten_strongest_firing_rules_are_offered_each_item_once(serving):
    serving["rule_model"] = Rules
    row, rule = serving["offers"](baskets([[1] + [0] * 12, [1, 1] + [0] * 11, [0] * 13]).matrix, Rules.weights)
    assert rule[row == 0].tolist() == list(range(10))  # without the two weakest
    assert set(rule[row == 1]) == {*range(1, 10), 12}  # item 1 is open; item 12 by its strongest rule
    assert not (row == 2).any()


def test_weights_follow_what_was_accepted(serving):
    """Items 11 and 12, whose rules are weakest, are the only ones ever bought with item 0."""
    serving["rule_model"] = Rules
    bought = baskets([[1] + [0] * 10 + [1, 1]] * 600)
    bought.timestamps[:] = np.repeat(np.datetime64("2017-01-01") + np.arange(30), 20)
    accepted = {way: serving["replay"](bought, way, k=5) for way in ("frozen", "mean", "Thompson")}
    assert not accepted["frozen"].any()
    assert accepted["mean"][300:].mean() > 0.3 and accepted["Thompson"][300:].mean() > 0.3


def test_ips_has_no_bias_and_agreement_has(serving):
    rng = np.random.default_rng(0)
    n = 4000
    easy = rng.random(n) < 0.5  # where the new policy agrees with the old one, and offers are accepted
    new = np.where(easy, 0, rng.integers(1, 10, size=n))
    reward = np.where(easy[:, None], 0.8, 0.1) * np.ones((n, 10))
    serving |= {"ten": np.arange(n), "each": np.arange(n), "new_choice": new, "reward": reward}
    logs = [serving["estimates"](0.3, rng) for _ in range(50)]
    mean = {name: np.mean([log[name] for log in logs]) for name in logs[0]}
    truth = reward[np.arange(n), new].mean()
    assert mean["IPS"] == pytest.approx(truth, abs=0.01) == mean["SNIPS"]
    assert mean["naive: where both agree"] > truth + 0.2


# ------------------------------------------------------------------------------------ chapter 08: losses, richer text


@pytest.fixture(scope="module")
def own():
    names = ("LOSSES", "no_households", "no_hours", "no_dates", "measure", "expected_hits", "cold_queries", "cold_hits")
    names += ("tf_idf", "two_files", "against", "EXCERPT_SHA", "FROM", "UNTIL")
    return chapter_code("08_your_own_shop", *names)


def test_each_loss_takes_what_it_says_and_nothing_else(own, sample_split):
    before = sample_split.train
    for name, change in own["LOSSES"].items():
        after = change(before)
        assert (after.matrix != before.matrix).nnz == 0 and len(after) == len(before)
        who = (after.households == before.households).all()
        moment, day = after.timestamps, before.timestamps.astype("M8[D]")
        assert moment.dtype.kind == "M" and who == (name != "households")
        assert name != "households" or (after.households == -1).all()
        assert (len(np.unique(moment)) == 1) == (name == "dates")
        assert (moment == day).all() == (name == "hours")
        assert (moment == before.timestamps).all() == (name in ("nothing", "households"))


def test_one_pass_measures_a_blend_as_the_library_does(own, sample_split):
    ease, popular = models.EASE(10.0).fit(sample_split.train), models.Popularity().fit(sample_split.train)
    recency = models.HouseholdRecency(30.0).fit(sample_split.train)
    parts = {"ease": (ease, lambda b: b), "popular": (popular, lambda b: b), "nobody": (recency, own["no_households"])}
    blends = {"both": {"ease": 1.0, "popular": 0.5}, "popular": {"popular": 1.0}, "nobody": {"ease": 1, "nobody": 9.0}}
    found, who = own["measure"](sample_split.test, parts, blends, size=50)
    for name, model in {"both": models.Blend([ease, popular], [1.0, 0.5]), "popular": popular, "nobody": ease}.items():
        expected = evaluate.complete_the_basket(model.fit(sample_split.train), sample_split)
        np.testing.assert_allclose(found[name], expected.values("ndcg@10"))
    assert (who == expected.households).all()


def test_ties_fall_by_lot(own):
    """One above, three tied: 0, a third and all of the first 1, 2 and 4 places; drawn a thousand times, the same."""
    scores, rng = np.array([[3.0, 1.0, 1.0, 1.0, 0.0]]), np.random.default_rng(0)
    for k, expected in ((1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1)):
        assert own["expected_hits"](scores, np.array([1.0]), k) == pytest.approx([expected])
        noisy = scores + rng.random((3000, 5)) / 100
        assert (((noisy > noisy[:, [1]]).sum(axis=1) < k).mean()) == pytest.approx(expected, abs=0.04)


def test_cold_items_are_ranked_as_the_library_ranks_them(own, sample_split):
    cold = data.hide_cold_items(sample_split, share=0.3)
    vectors = np.random.default_rng(0).normal(size=(len(cold.items), 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    library = evaluate.cold_items(models.EmbeddingRecommender(vectors).fit(cold.train), cold)
    mine = own["cold_hits"](vectors, cold, 3)
    np.testing.assert_array_equal(mine, library.values("hr@3"))
    texts = ["red, tea", "red, cup", "blue"]
    np.testing.assert_allclose(own["tf_idf"](texts).toarray() @ own["tf_idf"](texts).T.toarray(), np.eye(3), atol=0.5)


def test_a_difference_is_paired(own):
    values = np.random.default_rng(0).random(400)
    table = own["against"]({"whole": values, "less": values - 0.01}, "whole", np.arange(400))
    less = table.loc["less"]
    assert less["low"] == less["high"] == pytest.approx(-0.01) and less["is"] == "behind"
    assert table.loc["whole", "is"] == ""


EXCERPT = ROOT / "data" / "excerpts" / "online_retail_2011_10_11.parquet"


def test_the_excerpt_is_what_its_card_says(own, tmp_path):
    found, card = hashlib.sha256(EXCERPT.read_bytes()).hexdigest(), (ROOT / "data" / "README.md").read_text()
    assert found == own["EXCERPT_SHA"] and found in card and EXCERPT.stat().st_size < 1e6
    for said in ("CC BY 4.0", "10.24432/C5BW33", "145,453 lines of 6,099 invoices", "2011-10-01 to before 2011-12-01"):
        assert said in card
    lines = pd.read_parquet(EXCERPT)
    assert len(lines) == 145_453 and lines["InvoiceNo"].nunique() == 6_099
    assert lines["InvoiceDate"].between(own["FROM"], own["UNTIL"], inclusive="left").all()
    account = own["two_files"](lines, tmp_path / "two")
    assert account.sum() == len(lines)
    sold = pd.read_parquet(tmp_path / "two" / "transactions.parquet")
    assert len(sold) == account["used"] and (sold["quantity"] > 0).all() and (sold["price"] > 0).all()


def test_the_excerpt_is_cut_from_the_whole_by_its_rule(own, shared):
    whole = pd.read_parquet(shared / "online_retail.parquet")
    cut = whole[whole["InvoiceDate"].between(own["FROM"], own["UNTIL"], inclusive="left")]
    pd.testing.assert_frame_equal(cut.reset_index(drop=True), pd.read_parquet(EXCERPT))
