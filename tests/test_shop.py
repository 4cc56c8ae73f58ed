"""A reader's own shop: what is read, what is said, what is measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import strange
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from recutils import cli
from recutils.data.schema import Baskets, Split, StoreError
from recutils.rules import association_rules
from recutils.shop import compare, pairs, periods, read_shop, reading, words
from recutils.shop.columns import guess_columns, parse_named
from recutils.shop.report import write_report

# ------------------------------------------------------------------------------------ reading


@pytest.fixture(scope="module", params=strange.GOOD, ids=str)
def odd(request, tmp_path_factory):
    """A strange shop that can be read: its case and its folder."""
    folder = tmp_path_factory.mktemp("odd")
    strange.GOOD[request.param].write(folder)
    return strange.GOOD[request.param], folder


def test_a_strange_shop_is_understood_and_its_account_adds_up(odd, capsys):
    case, folder = odd
    assert cli.main(["check", str(folder), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert all(piece in said for piece in case.says), said
    account = read_shop(folder).account["lines"]
    assert account.iloc[0] == account.iloc[1:].sum()
    assert case.used is None or account.iloc[-1] == case.used


KINDS = ["no customer", "no hours", "no product name", "200 baskets", "one product everywhere", "a single week",
         "chinese", "no date", "lists"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_shop_gets_a_report(name, tmp_path):
    """No traceback, and every gap has its sentence on the page."""
    strange.GOOD[name].write(tmp_path)
    shop = read_shop(tmp_path)
    said = write_report(shop, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and ">nan" not in page and "Traceback" not in page
    assert said["thin"] and all(collect for _, collect in said["thin"])
    assert [m for m in said["models"] if m["best"]] or "too few" in " ".join(said["model_said"])
    if "household" not in shop.known:
        assert not any("household" in m["model"] for m in said["models"])


@pytest.mark.parametrize("write, message", strange.BAD.values(), ids=strange.BAD)
def test_a_broken_shop_gets_one_clear_sentence(write, message, tmp_path, capsys):
    write(tmp_path)
    assert cli.main(["check", str(tmp_path), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_two_ways_of_writing_give_one_shop(tmp_path):
    """German dirt and plain English are the same baskets, customers, products and sums."""
    shops = []
    for name in ("plain", "german", "parquet", "partitions", "two sheets", "tabs, utf-16", "three files"):
        folder = tmp_path / name
        folder.mkdir()
        strange.GOOD[name].write(folder)
        shops.append(read_shop(folder))
    for shop in shops[1:]:
        assert (shop.baskets.matrix != shops[0].baskets.matrix).nnz == 0
        assert (shop.baskets.timestamps == shops[0].baskets.timestamps).all()
        assert shop.items["item_id"].to_list() == shops[0].items["item_id"].to_list()
    for shop in shops[1:-1]:  # the last one has no prices
        np.testing.assert_allclose(shop.values, shops[0].values, rtol=1e-5)
    table = strange.lines()
    assert shops[0].values.sum() == pytest.approx((table["qty"] * table["price"]).sum(), rel=1e-5)


CELLS = st.sampled_from(["", "7", "x", "-2", "0", "2024-03-04", "tea", "Postage", "1,5", "C12", '"', "NaN", " "])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELLS, min_size=1, max_size=7), min_size=1, max_size=30))
@pytest.mark.slow
def test_no_row_vanishes_whatever_it_holds(rows, tmp_path):
    """Good lines with any others among them: rows read are rows used and rows left out."""
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    good = [["1", "tea", "2024-03-04", "2"], ["1", "milk", "2024-03-04", "1"]] * 40
    text = ["receipt,sku,date,qty", *(",".join('"' + c.replace('"', '""') + '"' for c in r) for r in good + rows)]
    (folder / "sales.csv").write_text("\n".join(text) + "\n")
    account = read_shop(folder).account["lines"]
    assert account.iloc[0] == len(good) + len(rows) == account.iloc[1:].sum() and account.iloc[-1] >= len(good)


def test_columns_are_guessed_in_several_languages_and_named_ones_come_first():
    assert guess_columns(["Invoice No.", "Código", "Fecha", "客户编号"]) == {
        "basket": "Invoice No.", "item": "Código", "time": "Fecha", "household": "客户编号"}  # fmt: skip
    assert guess_columns(["order", "sku", "ean"], {"item": "ean"}) == {"item": "ean", "basket": "order"}
    assert parse_named("item=till code, basket=no") == {"item": "till code", "basket": "no"}
    for wrong in ("item", "=x", "item="):
        with pytest.raises(StoreError, match="write it as"):
            parse_named(wrong)
    with pytest.raises(StoreError, match="no field colour"):
        guess_columns([], {"colour": "x"})


def test_named_columns_are_kept(tmp_path, capsys):
    strange.csv(tmp_path, strange.lines().rename(columns={"sku": "thing", "product name": "label"}))
    assert cli.main(["check", str(tmp_path), "--quiet"]) == 1 and "--columns" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path), "--quiet", "--columns", "item=thing,name=label"]) == 0
    assert cli.main(["check", str(tmp_path), "--quiet"]) == 0 and "item = thing" in capsys.readouterr().out
    settings_ = reading.load_shop_settings(tmp_path)
    assert settings_.columns == {"item": "thing", "name": "label"}
    settings_.exclude = ['a "quoted" id']
    reading.save_shop_settings(tmp_path, settings_)
    assert reading.load_shop_settings(tmp_path) == settings_


def test_days_that_can_be_read_in_two_ways_are_said_and_chosen(tmp_path, capsys):
    table = strange.lines().assign(date=[f"{1 + n % 12:02d}/{1 + n % 11:02d}/2024" for n in strange.lines()["receipt"]])
    strange.csv(tmp_path, table)
    first = {}
    for way in ("day-first", "month-first"):
        assert cli.main(["check", str(tmp_path), "--quiet", "--dates", way]) == 0
        assert "could be read in two ways" in capsys.readouterr().out
        first[way] = pd.DatetimeIndex(read_shop(tmp_path).baskets.timestamps)
    assert set(first["day-first"].month) == set(first["month-first"].day) != set(first["day-first"].day)


def test_times_of_a_zone_stay_on_the_shops_clock(tmp_path):
    table = strange.lines()
    table.assign(date=table["date"].dt.tz_localize("Asia/Tokyo")).to_parquet(tmp_path / "sales.parquet")
    assert (np.sort(read_shop(tmp_path).baskets.timestamps) == np.sort(table.drop_duplicates("receipt")["date"])).all()


def test_another_shop_as_it_is_published(shared):
    """UCI Online Retail: what becomes of every line, as the page 'Your own shop' says."""
    shop = read_shop(shared / "online_retail.parquet")
    account = dict(zip(shop.account["what"], shop.account["lines"], strict=True))
    assert account["lines read"] == 541_909 and account["left out: cancelled"] == 9_288
    assert account["left out: quantity below zero (returned or written off)"] == 1_336
    assert account["left out: price of zero or less (gifts, write-offs)"] == 1_181
    assert account["lines used"] == 541_909 - sum(n for what, n in account.items() if what.startswith("left out"))
    assert "POSTAGE" in shop.excluded and shop.known >= {"time", "hours", "household", "price", "words"}
    page = (ROOT / "data" / "own_shop.md").read_text()
    assert set(re.findall(r"\| ([\d,]{5,}) \|", page)) == {f"{n:,}" for n in account.values()}
    groceries = read_shop(shared / "groceries_baskets.csv")
    assert groceries.baskets.matrix.shape == (9_835, 169) and groceries.baskets.matrix.nnz == 43_367


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
    """The piece of Python on the page 'Your own shop', as it stands there."""
    strange.csv(tmp_path, strange.lines())
    page = (ROOT / "data" / "own_shop.md").read_text()
    scope: dict = {}
    exec(page.split("```python\n")[1].split("```")[0].replace("FOLDER", str(tmp_path)), scope)
    assert scope["model"].n_items == 20


@pytest.mark.slow
def test_many_lines_are_read_in_bounded_memory(tmp_path):
    """200,000 lines; the 20 million are in tests/benchmarks."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    from lines import write_lines

    write_lines(tmp_path / "sales.csv", 200_000)
    shop = read_shop(tmp_path)
    assert shop.account["lines"].tolist() == [200_000, 200_000] and len(shop.baskets) == 200_000 // 8


# ------------------------------------------------------------------------------------ pairs, words, models


def _split(matrix: np.ndarray, names: list[str], cut: float = 0.7) -> Split:
    """A split of baskets (n_baskets, n_items) without households, by order."""
    n = len(matrix)
    whole = Baskets(
        sparse.csr_matrix(matrix, dtype=np.float32), np.full(n, -1), np.full(n, np.datetime64("2024-01-01"))
    )
    a, b = int(cut * n), int((1 + cut) / 2 * n)
    items = pd.DataFrame({"item_id": names, "name": names})
    day = pd.Timestamp("2024-01-01")
    return Split(items, pd.Index([]), whole[:a], whole[a:b], whole[b:], day, day, np.zeros(len(names), bool))


def _planted(seed: int = 0, later: bool = True) -> Split:
    """3,000 baskets of twelve products at random, of which `pasta` brings `sauce`; not in the later ones, if so."""
    rng = np.random.default_rng(seed)
    names = ["pasta", "sauce", "tea red", "tea blue", *(f"thing {c}" for c in "abcdefgh")]
    names[4:] = ["soap", "milk", "jam", "rice", "salt", "eggs", "corn", "plum"]
    matrix = rng.random((3000, 12)) < 0.12
    brings = matrix[:, 0] & (rng.random(3000) < 0.8)
    variants = matrix[:, 2] & (rng.random(3000) < 0.9)
    matrix[: 3000 if later else 2100, 1] |= brings[: 3000 if later else 2100]
    matrix[:, 3] |= variants
    return _split(matrix[matrix.sum(axis=1) > 0], names)


def test_the_planted_pair_is_found_and_variants_are_not_paired():
    found = pairs.find_rules(_planted())
    assert found[["left", "right"]].to_numpy().tolist() == [[0, 1]]
    rule, split = found.iloc[0], _planted()
    both = split.train.matrix[:, [0, 1]].toarray().all(axis=1).sum()
    assert rule.baskets == both and rule.held == "yes" and rule.households == -1 and rule.lift > 3
    assert "Offer sauce to those who buy pasta" in rule.advice or "Do not discount both" in rule.advice


def test_a_pair_that_is_gone_later_is_not_recommended():
    rule = pairs.find_rules(_planted(later=False)).iloc[0]
    assert rule.held == "no" and rule.advice.startswith("Wait")


def test_a_product_that_is_gone_is_not_recommended():
    split = _planted()
    gone = split.test.matrix.tolil()
    gone[:, 0] = 0
    split.test.matrix, split.validation = gone.tocsr(), split.validation[:0]
    rule = pairs.find_rules(split).iloc[0]
    assert rule.held == "too few" and "was not sold in the later weeks" in rule.advice


def test_chance_alone_gives_no_pairs():
    """Twenty random shops with baskets of very different sizes: the usual lift would find pairs in all of them."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(20):
        share = rng.choice([0.05, 0.5], size=(800, 1))
        matrix = rng.random((800, 15)) < share
        found += len(pairs.find_rules(_split(matrix[matrix.any(axis=1)], [f"w{chr(97 + i)}q" for i in range(15)])))
    assert found <= 2
    assert pairs.meeting_rate(sparse.csr_matrix(np.ones((4, 3)))) == pytest.approx(4 * 6 / 12**2)


def test_substitutes_and_bundles():
    split = _planted()
    table = pairs.best_sellers(split, words.word_vectors(split.items["name"].to_list()))
    companions = dict(zip(table["item"], table["companions"], strict=True))
    assert companions.get(1, [0]) == [0] and 2 not in companions.get(3, [])  # a variant is no companion
    rng = np.random.default_rng(2)
    matrix = rng.random((4000, 6)) < 0.1
    matrix[:120, :3] = True
    matrix[:, 4] &= ~matrix[:, 3]
    names = ["pasta", "sauce", "cheese", "green tea leaves", "black tea leaves", "soap"]
    split = _split(rng.permutation(matrix[matrix.any(axis=1)]), names)
    sets = pairs.bundles(split, pairs.find_rules(split), np.arange(6.0))
    assert [sorted(items) for items in sets["items"]] == [[0, 1, 2]] and sets["price"].tolist() == [3.0]
    rows = pairs.best_sellers(split, words.word_vectors(names)).set_index("item")["substitutes"]
    assert rows[3] == [4] and rows[4] == [3]


def test_variants_by_name():
    same = [
        ("GREEN REGENCY TEACUP AND SAUCER", "ROSES REGENCY TEACUP AND SAUCER"),
        ("bread small", "bread large"),
        ("纯牛奶250ml", "纯牛奶1L"),
        ("PACK OF 72 RETROSPOT CAKE CASES", "PACK OF 60 PINK PAISLEY CAKE CASES"),
    ]
    other = [
        ("bread small", "butter small"),
        ("SET OF 3 CAKE TINS", "SET OF 3 TEA TOWELS"),
        ("纯牛奶", "绿茶"),
        ("", ""),
    ]
    assert all(words.same_thing(*pair) for pair in same) and not any(words.same_thing(*pair) for pair in other)


def test_word_vectors_know_alike_names_in_any_script():
    vectors = words.word_vectors(["red tea cup", "blue tea cup", "garden hose", "绿茶袋泡", "绿茶散装", ""])
    close = vectors @ vectors.T
    assert close[0, 1] > 0.3 > abs(close[0, 2]) and close[3, 4] > 0.1 > abs(close[0, 3]) and not vectors[5].any()


def test_pair_rules_are_those_of_the_miner():
    """Counts, measures and scores agree with the compiled search of chapter 04."""
    matrix = _planted().train.matrix
    mine = compare.pair_rules(matrix, 10, 0.1)
    theirs = association_rules(matrix, 10 / matrix.shape[0], 0.1, max_len=2)
    assert len(mine) == len(theirs) > 10
    theirs["left"], theirs["right"] = ([min(side) for side in theirs[c]] for c in ("antecedents", "consequents"))
    both = mine.merge(theirs, on=["left", "right"], suffixes=("", "_theirs"))
    assert len(both) == len(mine)
    for name in ("count", "confidence", "lift", "zhang"):
        np.testing.assert_allclose(both[name], both[f"{name}_theirs"])
    split = _planted()
    mine, theirs = compare.PairRules(10, 0.1).fit(split.train), compare.RuleRecommender(10 / len(split.train), 0.1, 2)
    np.testing.assert_allclose(mine.score(split.test), theirs.fit(split.train).score(split.test), rtol=1e-6)
    kept = compare.RuleRecommender.from_state(mine.state())
    np.testing.assert_array_equal(kept.score(split.test), mine.score(split.test))
    again = compare.PairRules.from_state(mine.state())
    np.testing.assert_array_equal(again.score(split.test), mine.score(split.test))


def test_a_blend_ranks_what_neither_scores_last():
    split = _planted()
    blend = compare.Blend(compare.EASE(50.0).fit(split.train), compare.ItemKNN(2).fit(split.train), 0.5).fit(
        split.train
    )
    scores = blend.score(split.test)
    assert np.isfinite(scores).all() and np.allclose(scores.mean(axis=1), 0, atol=1e-4)


@pytest.mark.slow
def test_the_ranker_is_compared_where_there_are_labels_enough(sample_split, monkeypatch):
    """Its trees are grown from members that were fitted before."""
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(compare, "FEWEST_LABELS", 10)
    table = compare.compare_models(sample_split).set_index("model")
    assert set(table.index) > {"popularity", "EASE"} and any("ranker" in name for name in table.index)
    assert table["ndcg"].notna().all()


def test_models_are_compared_on_later_baskets(sample_split):
    table = compare.compare_models(sample_split)
    assert set(table["model"]) == {"popularity", "household frequency", "household recency", "item kNN", "EASE",
                                   "pair rules", "EASE + household recency"}  # fmt: skip
    assert table["best"].sum() == 1 and table.loc[table["best"], "tied"].all()
    assert ((table["low"] <= table["ndcg"]) & (table["ndcg"] <= table["high"])).all()
    row = table.set_index("model").loc["popularity"]
    assert row["over"] == row["over_low"] == row["over_high"] == 0
    from recutils import evaluate, models

    own = evaluate.complete_the_basket(models.Popularity().fit(sample_split.train), sample_split).mean("ndcg@10")
    assert row["ndcg"] == pytest.approx(own)


@pytest.mark.parametrize(
    "name, said",
    {
        "plain": "of 141 days",
        "a single week": "of 8 days",
        "no date": "random tenth",
        "no hours": "of 141 days",
    }.items(),
)
def test_periods_follow_the_span(name, said, tmp_path):
    strange.GOOD[name].write(tmp_path)
    shop = read_shop(tmp_path)
    split, sentence = periods.split_periods(shop)
    assert said in sentence and min(map(len, (split.train, split.validation, split.test))) > 0
    if "time" in shop.known:
        assert split.train.timestamps.max() < split.validation.timestamps.min()
        assert split.validation.timestamps.max() < split.test.timestamps.min()
    sold = np.asarray(split.train.matrix.sum(axis=0)).ravel()
    assert sold.min() >= periods.min_baskets(len(split.train))


# ------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report on the made-up shop."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    said = write_report(read_shop(ROOT / "data" / "sample"), out)
    return said, out


def test_the_page_is_whole_and_asks_for_nothing(page):
    said, out = page
    text = out.read_text()
    addresses = set(re.findall(r'(?:href|src|url\()="?([^"\s>)]+)', text))
    assert all(a.startswith(("#", "data:")) for a in addresses), addresses
    assert not re.search(r'="https?://(?!www\.w3\.org)', text)
    for part in ("understood", "shape", "rules", "sellers", "bundles", "promotions", "models", "thin", "words"):
        assert f'<details id="{part}">' in text
    charts = re.findall(r"<svg [^>]*>", text)
    assert len(charts) >= 5 and all('role="img"' in c and re.search(r'aria-label=".{25,}"', c) for c in charts)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert said["first"] and said["rules"][0]["advice"]


def test_colours_of_the_page_have_contrast():
    css = (ROOT / "recutils" / "shop" / "template.html").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css))

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        parts = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(parts @ [0.2126, 0.7152, 0.0722])

    for front in ("ink", "soft", "link"):
        for back in ("#ffffff", colours["tint"]):
            ratio = (luminance(back) + 0.05) / (luminance(colours[front]) + 0.05)
            assert ratio >= 4.5, (front, back, ratio)


@pytest.mark.slow
def test_the_report_reads_words_by_the_packaged_encoder(tmp_path, monkeypatch):
    """Where it is asked for and installed, English names go through it, once each; Chinese ones do not."""
    text = pytest.importorskip("recutils.text")
    read, encode = [], text.encode
    monkeypatch.setattr(text, "encode", lambda encoder, texts: read.append(texts) or encode(encoder, texts))
    for name in ("plain", "chinese"):
        (tmp_path / name).mkdir()
        strange.GOOD[name].write(tmp_path / name)
        assert cli.main(["report", str(tmp_path / name), "--quiet", "--encoder"]) == 0
        assert "<details" in (tmp_path / name / "report.html").read_text()
    assert [sorted(texts) for texts in read] == [sorted(strange.PRODUCTS)]


@pytest.mark.slow
def test_progress_says_which_model_of_how_many(tmp_path, capsys):
    strange.csv(tmp_path, strange.lines())
    assert cli.main(["report", str(tmp_path), "--no-encoder"]) == 0
    tried = re.findall(r"trying (.+) \(model (\d) of (\d), \d settings?\)", capsys.readouterr().err)
    assert [int(place) for _, place, _ in tried] == list(range(1, len(tried) + 1)) and {n for *_, n in tried} == {"6"}


@pytest.mark.slow
def test_names_cannot_put_markup_into_the_page(tmp_path):
    table = strange.lines()
    table["product name"] = table["product name"].replace("tea", "<img src=x onerror=alert(1)>")
    strange.csv(tmp_path, table)
    write_report(read_shop(tmp_path), tmp_path / "r.html")
    assert "<img" not in (tmp_path / "r.html").read_text()


def test_the_page_in_a_browser(page, chromium, tmp_path):
    """From a folder: no error, nothing fetched, folded parts open by the keyboard, a table sorts, print opens all."""
    from browser import browsing

    with browsing(chromium, tmp_path, page[1].as_uri()) as browser:
        browser.run("document.querySelector('#rules summary').focus()")
        browser.press("Enter")
        assert browser.wait("document.querySelector('#rules').open") is True
        browser.run(
            "document.querySelector('#models').open = true; document.querySelector('#models th button').click()"
        )
        assert browser.run("document.querySelector('#models th').getAttribute('aria-sort')") == "descending"
        browser.run("dispatchEvent(new Event('beforeprint'))")
        assert browser.run("[...document.querySelectorAll('details')].every(part => part.open)") is True
        asked = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in asked if not name.startswith("data:")] == [] == browser.errors


# ------------------------------------------------------------------------------------ the command line

BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "numba", "lightgbm", "sklearn", "fastapi"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from recutils.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    """The command line where torch, numba, LightGBM and the service are not installed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    run = [sys.executable, "-c", BLOCKED, *arguments]
    return subprocess.run(run, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.mark.slow
def test_check_report_and_rules_need_no_torch(tmp_path):
    strange.csv(tmp_path, strange.lines())
    report = command("report", ".", "--out", "page.html", folder=tmp_path)
    assert report.returncode == 0 and "The report: page.html" in report.stdout, report.stderr
    assert "trying EASE" in report.stderr and (tmp_path / "page.html").stat().st_size > 30_000
    rules = command("rules", ".", "--csv", "rules.csv", "--quiet", folder=tmp_path)
    table = pd.read_csv(tmp_path / "rules.csv")
    assert rules.returncode == 0 and table["left"].tolist() == ["pasta"] and table["left_id"].tolist() == [504]
    serve = command("update", ".", "--quiet", folder=tmp_path)
    assert serve.returncode == 1 and "pip install 'recutils[shop]'" in serve.stderr and "Traceback" not in serve.stderr


def test_the_command_is_installed_with_the_package():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"recutils": "recutils.cli:main"} and callable(cli.main)
    names = {re.split(r"[><=\[]", r)[0] for r in project["dependencies"] + project["optional-dependencies"]["shop"]}
    assert not names & {"torch", "transformers", "numba", "lightgbm", "scikit-learn"}


# ------------------------------------------------------------------------------------ serving


@pytest.fixture
def growing(tmp_path):
    """A folder with the first fifteen weeks of a shop, and a function that adds the rest."""
    pytest.importorskip("lightgbm")
    table = strange.lines(2400)
    place = (3 * table["customer"] + np.random.default_rng(0).integers(5, size=len(table))) % 20  # five products each
    table = table.assign(sku=500 + place, **{"product name": [strange.PRODUCTS[p] for p in place]})
    new = table["date"] >= "2024-04-15"
    strange.csv(tmp_path, table[~new])
    return tmp_path, lambda: strange.csv(tmp_path, table[new], "may.csv")


@pytest.mark.slow
def test_a_new_version_passes_a_gate_and_a_worse_one_is_refused(growing, monkeypatch, capsys):
    from recutils.service import artifact
    from recutils.shop import serving

    folder, more = growing
    update = ["update", str(folder), "--quiet", "--no-encoder"]
    assert cli.main(update) == 0 and "plain popularity" in capsys.readouterr().out
    first = artifact.load(folder / "served")
    assert first.encoder is None and len(first.names) == 20 and first.search("tea")
    assert cli.main(update) == 2 and "newer than the current version" in capsys.readouterr().out
    more()
    fit = serving.fit_ranker

    def worse(split, shop, vectors):
        ranker = fit(split, shop, vectors)
        score = ranker.score
        ranker.score = lambda queries: -score(queries)
        return ranker

    monkeypatch.setattr(serving, "fit_ranker", worse)
    assert cli.main(update) == 2
    said = capsys.readouterr().out
    assert said.startswith("Refused: NDCG@10 on") and "5%" in said
    assert artifact.load(folder / "served").version == first.version
    monkeypatch.setattr(serving, "fit_ranker", fit)
    assert cli.main([*update, "--threshold", "0.5"]) == 0 and "the current version" in capsys.readouterr().out
    second = artifact.load(folder / "served")
    assert second.version != first.version and second.visits.sum() > first.visits.sum()
    made = json.loads((folder / "served" / f"{second.version}.made.json").read_text())
    assert made["until"] > "2024-05-01"


@pytest.mark.slow
def test_the_gate_measures_a_version_as_it_measures_a_model(growing):
    """A version saved and loaded again has the NDCG@10 of the ranker that it was made from."""
    from recutils.service import artifact, auth
    from recutils.shop import serving

    folder, _ = growing
    shop = read_shop(folder)
    split, _ = periods.split_periods(shop)
    ranker = serving.fit_ranker(split, shop, words.item_vectors(split.items, shop.words, False))
    serving.update_folder(shop, folder, force=True)
    version = artifact.load(folder / "served")
    version.ranker = ranker
    queries, hidden = serving.hide_one(periods.sample_of(split.test, 100))
    gate = serving.Gate(queries, hidden, split.items["item_id"].to_list(), split.households.to_list())
    secret = auth.load_settings(folder / "served").secret
    assert gate.ndcg_of_version(version, secret) == pytest.approx(gate.ndcg(ranker))
    mixed = serving.Gate(queries, hidden, gate.item_ids[::-1], gate.household_ids)
    assert mixed.ndcg_of_version(version, secret) < gate.ndcg(ranker)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no customer", "no date", "no product name", "chinese"])
def test_every_kind_of_shop_is_served(name, tmp_path):
    from recutils.service import artifact
    from recutils.shop import serving

    strange.GOOD[name].write(tmp_path)
    done, said = serving.update_folder(read_shop(tmp_path), tmp_path, force=True)
    version = artifact.load(tmp_path / "served")
    assert done and version.version in said
    items, _ = version.ranker.recommend_one([0], k=3)
    assert len(items) == 3 and 0 not in items


@pytest.mark.slow
def test_serve_answers_at_once_and_takes_the_first_version_up(tmp_path):
    import shop as service

    strange.csv(tmp_path, strange.lines())
    with service.commanded(tmp_path) as (address, key, process):
        service.wait_until_answering(address, process)
        service.wait_until_ready(address, process, 180)
        status, answer = service.ask(f"{address}/recommend", key(), {"basket": ["504"], "household": "3", "k": 3})
        assert status == 200 and len(answer["items"]) == 3 and answer["items"][0]["name"] in strange.PRODUCTS
        assert service.ask(f"{address}/search?q=tea", key())[1]["items"][0]["name"] == "tea"
