"""Chapters 02, 02b and 02c: what their cells define, against answers worked out by hand, and bad inputs."""

import numpy as np
import pandas as pd
import pytest
from chapter import definitions
from scipy import sparse

from recutils.data import Baskets

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402


@pytest.fixture(scope="module")
def encoder_chapter():
    names = ("attend", "cold_task", "rank_hidden", "hit_rate", "cosine_scores", "predicted_popularity", "by_kind")
    names += ("draw_weights", "mean_interval", "plain_size", "near_twins", "standardise", "rate", "unit_rows")
    return definitions("02_bert_fine_tuning", *names)


@pytest.fixture(scope="module")
def training_chapter():
    return definitions("02b_training_methods", "training_examples", "verdict", "Adapter")


@pytest.fixture(scope="module")
def words_chapter():
    names = ("spans_of", "span_counts", "f1", "abbreviate", "bio_tags", "till_line", "f1_intervals", "stem", "misspell")
    return definitions("02c_words_at_work", *names, "class_f1", "word_features", "fit_linear_tagger", "join_spans")


# ------------------------------------------------------------------------------------ 02: attention


def test_attention_is_that_of_the_library_and_its_weights_add_up(encoder_chapter):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 4)  # two heads, five pieces, four numbers
    mixed, weights = encoder_chapter.attend(q, k, v)
    assert torch.allclose(mixed, functional.scaled_dot_product_attention(q, k, v), atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))
    shuffled = torch.tensor([3, 0, 4, 1, 2])  # the order of the pieces means nothing to it
    assert torch.allclose(encoder_chapter.attend(q, k[:, shuffled], v[:, shuffled])[0], mixed, atol=1e-6)
    with pytest.raises(ValueError, match="one width"):
        encoder_chapter.attend(q, k[..., :3], v)
    with pytest.raises(ValueError, match="a value each key"):
        encoder_chapter.attend(q, k, v[:, :4])


def test_the_learning_rate_rises_and_falls(encoder_chapter):
    rates = [encoder_chapter.rate(step, 10, 2) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == pytest.approx(1 / 8) and max(rates) == 1.0


# ------------------------------------------------------------------------------------ 02: cold items


def shop(rows):
    matrix = sparse.csr_matrix(np.asarray(rows, dtype=np.float32))
    return Baskets(matrix, np.arange(len(rows)), np.zeros(len(rows), "datetime64[ns]"))


def test_a_cold_task_hides_one_cold_item_and_keeps_warm_ones(encoder_chapter):
    cold = np.array([False, False, True, False, True])
    task = encoder_chapter.cold_task(shop([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]), cold)
    assert task.hidden.tolist() == [2, 4] and task.candidates.tolist() == [2, 4]  # the second has one warm item only
    assert task.households.tolist() == [0, 3] and task.queries[:, cold].sum() == 0
    assert task.queries.toarray()[:, [0, 1, 3]].tolist() == [[1, 1, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="No item is cold"):
        encoder_chapter.cold_task(shop([[1, 1, 1]]), np.zeros(3, bool))


def test_ranks_count_ties_against_the_model(encoder_chapter):
    cold = np.array([False, False, True, True, True])
    task = encoder_chapter.cold_task(shop([[1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]), cold)
    scores = np.array([[0.1, 0.5, 0.9], [0.3, 0.3, 0.3]])
    assert encoder_chapter.rank_hidden(scores, task).tolist() == [2, 3]
    assert encoder_chapter.hit_rate(scores, task, k=2) == 0.5


def test_a_predicted_popularity_follows_the_words(encoder_chapter):
    words = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1]], dtype=float)
    found = encoder_chapter.predicted_popularity(words, np.array([90, 100, 10, 9, 0, 0]))
    assert found[4] > 0 > found[5] and found[4] == found[0]


def test_kinds_fall_back_to_wider_ones(encoder_chapter):
    table = pd.DataFrame({"department": list("AAAAB"), "category": list("xxxyz"), "type": ["p", "p", "q", "r", "s"]})
    values, known = np.array([[1.0], [3.0], [5.0], [0.0], [0.0]]), np.array([True, True, True, False, False])
    found = encoder_chapter.by_kind(values, known, table)[:, 0]
    assert found.tolist() == [2, 2, 5, 3, 3]  # type; type; type; only its department is known; nothing is known
    assert encoder_chapter.by_kind(values, known, table, until="department")[:, 0].tolist() == [3] * 5
    with pytest.raises(ValueError, match="no kind"):
        encoder_chapter.by_kind(values, known, table, until="brand")


def test_drawing_items_too_makes_intervals_wider(encoder_chapter):
    rng = np.random.default_rng(0)
    items = rng.integers(20, size=2000)
    values = (items < 5).astype(float)  # all that matters is the item
    households = rng.integers(500, size=2000)
    both = encoder_chapter.mean_interval(values, encoder_chapter.draw_weights(households, items, n=400))
    one = encoder_chapter.mean_interval(values, encoder_chapter.draw_weights(households, np.arange(2000), n=400))
    assert both["value"] == one["value"] == pytest.approx(values.mean())
    assert both["high"] - both["low"] > 3 * (one["high"] - one["low"])
    alone = encoder_chapter.draw_weights(np.full(4, -1), np.arange(4), n=50)
    assert alone.shape == (50, 4) and (alone.std(axis=0) > 0).all()  # unknown households are groups of their own
    with pytest.raises(ValueError, match="households"):
        encoder_chapter.draw_weights(households, items[:5])


def test_sizes_are_read_one_way_and_twins_are_found(encoder_chapter):
    assert [encoder_chapter.plain_size(s) for s in ("5.50 OZ", "5.5 oz", ".5 LT", "12/12 oz")] == [
        "5.5oz",
        "5.5oz",
        "0.5lt",
        "12/12oz",
    ]
    columns = ["department", "category", "type", "brand", "size"]
    old = pd.DataFrame([["G", "pizza", "thin", "N", "5.5 OZ"]], columns=columns)
    new = [["G", "pizza", "thin", "N", "5.50 OZ"], ["G", "pizza", "thin", "N", "9 OZ"]]
    new += [["G", "pizza", "thin", "P", "5.5 OZ"], ["G", "pizza", "deep", "N", "5.5 OZ"]]
    assert encoder_chapter.near_twins(pd.DataFrame(new, columns=columns), old).tolist() == [
        "same but for how the size is written",
        "same type and brand",
        "same type",
        "type never seen",
    ]


# ------------------------------------------------------------------------------------ 02b


def test_batches_decide_who_is_a_negative(training_chapter):
    examples = training_chapter.training_examples
    baskets = [{"a", "b"}, {"b", "c"}, {"d", "e"}]
    whole, halves = examples([baskets]), examples([baskets[:2], baskets[2:]])
    assert len(whole) == len(halves) == 6
    assert ({"b"}, "a", {"c", "d", "e"}) in whole  # b is in its own basket: no negative
    assert ({"e"}, "d", set()) in halves and ({"e"}, "d", {"a", "b", "c"}) in whole
    with pytest.raises(ValueError, match="two items"):
        examples([[{"a"}]])


def test_verdicts_need_disjoint_intervals(training_chapter):
    reference = {"value": 0.5, "low": 0.45, "high": 0.55}
    verdict = training_chapter.verdict
    assert verdict({"value": 0.4, "low": 0.36, "high": 0.44}, reference, 0.02) == "below, disjoint"
    assert verdict({"value": 0.6, "low": 0.56, "high": 0.64}, reference, 0.02) == "above, disjoint"
    assert verdict({"value": 0.51, "low": 0.46, "high": 0.56}, reference, 0.02) == "within a seed"
    assert verdict({"value": 0.54, "low": 0.49, "high": 0.59}, reference, 0.02) == "open"


def test_an_untrained_adapter_changes_nothing(training_chapter):
    layer = torch.nn.Linear(8, 8)
    adapter, x = training_chapter.Adapter(layer, 8, narrow=2), torch.randn(3, 8)
    assert torch.equal(adapter(x), layer(x))
    adapter.up.bias.data += 1.0
    assert torch.allclose(adapter(x), layer(x) + 1.0)


# ------------------------------------------------------------------------------------ 02c


def test_spans_are_counted_as_seqeval_does(words_chapter):
    """The example of seqeval's documentation: accuracy 0.80, F1 0.50."""
    person = ["B-PER", "I-PER", "O"]
    truth = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], person]
    guess = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], person]
    counts = words_chapter.span_counts(truth, guess)
    assert counts.tolist() == [[0, 1, 1], [1, 1, 1]] and words_chapter.f1(counts) == 0.5
    assert words_chapter.span_counts(truth, guess, "PER").tolist() == [[0, 0, 0], [1, 1, 1]]
    tags = ["I-a", "I-a", "B-a", "I-b", "O", "I-b"]  # a span begins where a field does, B or not
    assert words_chapter.spans_of(tags) == [("a", 0, 1), ("a", 2, 2), ("b", 3, 3), ("b", 5, 5)]
    with pytest.raises(ValueError, match="no tag"):
        words_chapter.spans_of(["X-a"])
    with pytest.raises(ValueError, match="Line 0"):
        words_chapter.span_counts([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match="2 tags for 1 words"):
        words_chapter.join_spans(["a"], ["O", "O"])


def test_made_lines_keep_words_and_tags_together(words_chapter):
    rng = np.random.default_rng(0)
    product = {"category": "FROZEN PIZZA", "type": "PIZZA/PREMIUM", "size": "16 OZ"}
    lines = [words_chapter.till_line(product, rng) for _ in range(200)]
    assert all(len(words) == len(tags) for words, tags in lines)
    assert {"B-size", "I-size", "B-type", "B-category", "I-category", "O"} == {t for _, tags in lines for t in tags}
    glued = [words for words, _ in lines if "16oz" in words]
    assert 20 < len(glued) < 120 and any("16" in words and "oz" in words for words, _ in lines)
    assert all(tags[-1] == "O" for _, tags in lines)  # a price or a letter ends the line
    assert [words_chapter.abbreviate(w) for w in ("mainstream", "bread", "a1steak")] == ["mnstr", "bread", "a1steak"]


def test_f1_is_drawn_by_whole_groups(words_chapter):
    counts = {"a": np.array([[1, 1, 1], [0, 1, 1], [1, 2, 1]]), "b": np.array([[0, 1, 1]] * 3)}
    draws = words_chapter.f1_intervals(counts, np.array([7, 7, 7]), n=20)
    assert np.allclose(draws["a"], 2 * 2 / (4 + 3)) and (draws["b"] == 0).all()  # one group: nothing to draw
    draws = words_chapter.f1_intervals(counts, np.array([1, 2, 3]), n=200)
    assert draws["a"].std() > 0.05
    with pytest.raises(ValueError, match="groups"):
        words_chapter.f1_intervals(counts, np.array([1, 2]))


def test_a_linear_tagger_reads_the_neighbours(words_chapter):
    words = [["2", "@", "milk"], ["milk", "2", "ltr"]] * 30
    tags = [["O", "O", "B-type"], ["B-type", "B-size", "I-size"]] * 30
    tag = words_chapter.fit_linear_tagger(words, tags)
    assert tag([["2", "@", "bread"], ["bread", "2", "ltr"], []])[:2] == [tags[0], tags[1]]
    assert tag([[]]) == [[]]


def test_plurals_and_misspellings(words_chapter):
    assert [words_chapter.stem(w) for w in ("cherries", "diapers", "oranges", "glass", "asparagus", "eggs")] == [
        "cherry",
        "diaper",
        "orange",
        "glass",
        "asparagus",
        "egg",
    ]
    rng = np.random.default_rng(1)
    wrong = [words_chapter.misspell("white bread", rng) for _ in range(50)]
    assert "white bread" not in wrong and {len(w) for w in wrong} == {10, 11}
    with pytest.raises(ValueError, match="four letters"):
        words_chapter.misspell("of it", rng)


def test_macro_f1_weighs_classes_alike(words_chapter):
    truth, guess = np.array(list("aaab")), np.array(list("aaaa"))
    assert words_chapter.class_f1(truth, guess).tolist() == pytest.approx([6 / 7, 0.0])
    weights = np.array([1.0, 1.0, 1.0, 0.0])  # b was not drawn
    assert words_chapter.class_f1(truth, guess, weights).tolist() == pytest.approx([1.0])
