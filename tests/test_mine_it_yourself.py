"""The page "Mine it yourself" in headless Chromium: its counts and rules against recutils.rules, keyboard, phone."""

import re
from itertools import combinations

import numpy as np
import pytest
from browser import browsing
from conftest import ROOT, missing
from scipy import sparse
from test_rendered import HTML

from recutils import rules

SCRIPT = ROOT / "_static" / "mine_it_yourself.js"
PRODUCTS = ["bread", "butter", "milk", "jam", "coffee", "cheese"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Kinds of trips: their share, and how often each product is bought on one.
TRIPS = {
    "sweet breakfast": (0.38, [0.95, 0.85, 0.5, 0.7, 0.3, 0.05]),
    "savoury breakfast": (0.27, [0.8, 0.6, 0.3, 0.03, 0.15, 0.85]),
    "coffee": (0.2, [0.08, 0.08, 0.7, 0.04, 0.95, 0.08]),
    "anything": (0.15, [0.25] * 6),
}
MEASURES = ["support", "confidence", "lift", "leverage", "conviction"]


def draw(seed=8):
    """The page's hundred baskets, (100, 6) bool; none is empty."""
    rng = np.random.default_rng(seed)
    shares, tastes = zip(*TRIPS.values(), strict=True)
    baskets: list[np.ndarray] = []
    while len(baskets) < 100:
        taste = tastes[rng.choice(len(tastes), p=shares)]
        basket = rng.random(6) < taste
        if basket.any():
            baskets.append(basket)
    return np.array(baskets)


def encode(baskets):
    """A letter a basket, as in the page's address."""
    return "".join(LETTERS[n] for n in baskets @ (1 << np.arange(6)))


def name(itemset):
    return " + ".join(PRODUCTS[i] for i in sorted(itemset))


@pytest.fixture(scope="module")
def browser(chromium, tmp_path_factory):
    """The rendered page, wide, with the focus of a real window."""
    page = HTML / "mine_it_yourself.html"
    if not page.exists():
        missing("The book was not rendered; make html does that.", "browser")
    for file in (SCRIPT, SCRIPT.with_suffix(".css")):
        assert (HTML / "_static" / file.name).read_text() == file.read_text(), "the book is older than this; make html"
    with browsing(chromium, tmp_path_factory.mktemp("chromium"), page.as_uri()) as browser:
        browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
        yield browser


def visit(browser, address):
    """Load the page anew, also where only the part behind # differs."""
    for url, ready in (("about:blank", "true"), (address, "document.querySelectorAll('#mine tr').length > 1")):
        browser.call("Page.navigate", url=url)
        browser.wait(f"document.readyState == 'complete' && {ready}")


@pytest.fixture
def page(browser):
    """The page as a reader finds it, and no error when the test is over."""
    browser.size(1300, 900)
    visit(browser, browser.run("location.href.split('#')[0]"))
    yield browser
    assert not browser.errors, browser.errors


def show(page, baskets, support, confidence):
    """Baskets and thresholds in per cent, by the address."""
    address = f"#s={support}&c={confidence}&o=-confidence&b={encode(baskets)}"
    page.run(
        "new Promise((done) => { addEventListener('hashchange', () => done(0), { once: true });"
        f"if (location.hash === {address!r}) done(0); location.hash = {address!r}; }})"
    )


def baskets_of(page):
    """What the grid says, (n, 6) bool."""
    pressed = "[...document.querySelectorAll('.baskets tbody tr')].map((row) =>"
    pressed += "[...row.querySelectorAll('[aria-pressed]')].map((b) => b.getAttribute('aria-pressed') === 'true'))"
    return np.array(page.run(pressed), dtype=bool)


def lattice_of(page):
    """For each itemset by name: its kind, the number in its box, what a screen reader says of it."""
    boxes = "[...document.querySelectorAll('.lattice [role=option]')].map((box) => [box.getAttribute('class'),"
    boxes += "box.querySelector('.count').textContent, box.getAttribute('aria-label')])"
    return {label.split(":")[0]: (kind, count, label) for kind, count, label in page.run(boxes)}


def rules_of(page):
    """Rows of the table of rules, as text, in their order."""
    rows = page.run(
        "[...document.querySelectorAll('.rules tbody tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    )
    return [] if rows[0][0].startswith("No rule") else rows


def agree(page, support, confidence):
    """Compare all that the page shows of its baskets with the book's miner."""
    x = baskets_of(page)
    matrix = sparse.csr_matrix(x.astype(np.int32))
    found = rules.frequent_itemsets(matrix, support / 100)
    frequent = dict(zip(found["itemset"], found["count"], strict=True))
    shown, n_counted = lattice_of(page), 0
    assert len(shown) == 63
    for size in range(1, 7):
        for itemset in map(frozenset, combinations(range(6), size)):
            kind, count, label = shown[name(itemset)]
            true = int(x[:, list(itemset)].all(axis=1).sum())
            counted = size == 1 or all(itemset - {i} in frequent for i in itemset)
            n_counted += counted
            assert kind == ("frequent" if itemset in frequent else "infrequent" if counted else "pruned"), label
            assert count == (str(true) if counted else "–") and frequent.get(itemset, true) == true
            if not counted:
                part, of = re.search(r"since (.*) is infrequent \((\d+) of", label).groups()
                assert set(part.split(" + ")) < set(name(itemset).split(" + ")), label
                assert shown[part][:2] == ("infrequent", of)
    table = rules.association_rules(matrix, support / 100, confidence / 100)
    rows = rules_of(page)
    expected = {f"{name(r.antecedents)} → {name(r.consequents)}": r for r in table.itertuples()}
    assert len(rows) == len(table) and {row[0] for row in rows} == set(expected)
    for rule, *values in rows:
        for measure, text in zip(MEASURES, values, strict=True):
            value = float(text.replace("∞", "inf"))
            assert value == pytest.approx(getattr(expected[rule], measure), abs=0.00051), (rule, measure)
    summary = page.run("document.querySelector('.thresholds [role=status]').textContent")
    n_rules = "1 rule reaches" if len(rows) == 1 else f"{len(rows)} rules reach"
    assert summary == (
        f"Apriori counts {n_counted} of 63 itemsets and finds {len(frequent)} frequent. {n_rules} both thresholds."
    )


# ---------------------------------------------------------------------------------------------- counts and rules


def test_the_baskets_of_the_script_are_those_drawn_here():
    start = re.search(r'START = "([^"]+)"', SCRIPT.read_text())[1]
    assert start == encode(draw()) and len(start) == 100


@pytest.mark.parametrize("support, confidence", [(15, 60), (1, 0), (17, 100), (26, 88), (34, 50), (69, 0), (100, 100)])
def test_counts_and_rules_are_those_of_recutils(page, support, confidence):
    show(page, draw(), support, confidence)
    np.testing.assert_array_equal(baskets_of(page), draw())
    agree(page, support, confidence)


@pytest.mark.parametrize("n, density", [(1, 0.5), (25, 0.6), (50, 0.75), (100, 0.3), (200, 0.9)])
def test_other_baskets_and_counts_on_the_boundary(page, n, density):
    """28 % of 25 baskets are 7 and 58 % of 50 are 29: in floating point one more, or one fewer."""
    x = np.random.default_rng(n).random((n, 6)) < density
    x[0] = False  # an empty basket is a basket
    for support, confidence in ((1, 0), (4, 100), (28, 29), (56, 57), (58, 58)):
        show(page, x, support, confidence)
        agree(page, support, confidence)


def test_counts_and_rules_follow_every_edit(page):
    x = draw()
    show(page, x, 20, 50)
    rng = np.random.default_rng(0)
    click = "document.querySelectorAll('.baskets tr')[{}].querySelectorAll('button')[{}].click()"
    for _ in range(12):
        basket, product = rng.integers(len(x)), rng.integers(6)
        page.run(click.format(basket + 1, product))
        x[basket, product] ^= True
        gone = rng.integers(len(x))
        page.run(click.format(gone + 1, 6))
        x = np.delete(x, gone, axis=0)
    page.run("document.querySelector('.buttons button').click()")
    x = np.vstack([x, np.zeros(6, bool)])
    for product, inside in ((2, True), (4, True), (4, False)):  # a head: into all baskets; again: out of all
        page.run(click.format(0, product))
        x[:, product] = inside
    np.testing.assert_array_equal(baskets_of(page), x)
    agree(page, 20, 50)
    page.wait(f"location.hash.endsWith({encode(x)!r})")
    page.run("document.querySelectorAll('.buttons button')[1].click()")
    np.testing.assert_array_equal(baskets_of(page), draw())
    agree(page, 15, 60)


def test_a_new_address_is_not_written_over(page):
    """Whenever it comes: an edit's own address is written a quarter of a second later."""
    late = "new Promise((done) => setTimeout(done, 300))"
    for wait in (0, 1, 2, 5):
        x = draw(wait + 1)
        page.run("document.querySelector('.baskets td button').click()")
        page.run(f"{{ const end = performance.now() + 247 + {wait}; while (performance.now() < end); }}")
        page.run(f"location.hash = 's=20&c=50&b={encode(x)}'")
        page.run(late)
        np.testing.assert_array_equal(baskets_of(page), x)
    page.run("location.hash = 'three-tasks'")
    page.run("document.querySelector('.baskets td button').click()")
    x[0, 0] ^= True
    page.wait(f"location.hash.endsWith({encode(x)!r})")


def test_the_last_basket_stays_and_two_hundred_are_the_most(page):
    show(page, draw()[:1], 15, 60)
    page.run("document.querySelector('[data-remove]').click()")
    assert len(baskets_of(page)) == 1
    show(page, np.vstack([draw(), draw()])[:199], 15, 60)
    page.run("document.querySelector('.buttons button').click()")
    assert len(baskets_of(page)) == 200 and page.run("document.querySelector('.buttons button').disabled")
    agree(page, 15, 60)


@pytest.mark.parametrize("address", ["#s=0&c=101&o=toString&b=", "#s=1.5&c=-1&o=-", f"#b={'A' * 201}", "#b=<b>", "#=%"])
def test_an_address_that_makes_no_sense_changes_nothing(page, address):
    page.run(f"location.hash = {address!r}")
    page.wait("location.hash.startsWith('#s=15&c=60&o=-confidence')")
    np.testing.assert_array_equal(baskets_of(page), draw())
    agree(page, 15, 60)


def test_the_tasks_of_the_page_have_the_answers_that_stand_there(page):
    show(page, draw(), 33, 60)
    assert [k for k, v in lattice_of(page).items() if v[0] == "frequent" and k.count("+") == 1] != ["bread + butter"]
    show(page, draw(), 34, 60)
    shown = lattice_of(page)
    assert [k for k, v in shown.items() if v[0] == "frequent" and "+" in k] == ["bread + butter"]
    assert sum(v[0] != "pruned" for v in shown.values()) == 16 and shown["bread + butter"][1] == "51"
    page.run("document.querySelectorAll('.baskets thead button')[2].click()")
    said = [row for row in rules_of(page) if row[0].endswith("→ milk")]
    assert len(said) > 3 and all(row[2:] == ["1.000", "1.000", "0.000", "∞"] for row in said)
    show(page, draw(), 26, 60)
    triples = [k for k, v in lattice_of(page).items() if v[0] == "frequent" and k.count("+") == 2]
    assert triples == ["bread + butter + jam"] and lattice_of(page)["butter + jam"][1] == "27"
    page.run("document.querySelector('.lattice [data-set=\"10\"]').focus()")
    assert page.run("document.querySelector('.chosen p').innerText").startswith("butter + jam: in 27 of 100 baskets")
    for kind in ("infrequent", "pruned"):
        page.run("document.querySelector('.baskets tr.holds [data-item=\"3\"]').click()")
        assert lattice_of(page)["bread + butter + jam"][0] == kind


# ---------------------------------------------------------------------------------------------- by keyboard


def focused(page, attribute="aria-label"):
    return page.run(f"document.activeElement.getAttribute('{attribute}') ?? document.activeElement.textContent")


def press(page, *keys):
    for key in keys:
        page.press(key)


def test_everything_by_keyboard_alone(page):
    x = draw()
    for _ in range(100):  # past the menu
        page.press("Tab")
        if page.run("document.querySelector('.baskets').contains(document.activeElement)"):
            break
    assert focused(page) == "bread in basket 1"
    press(page, "ArrowDown", "ArrowDown", "ArrowRight", "Space")
    x[2, 1] ^= True
    assert focused(page) == "butter in basket 3"
    press(page, "End", "ArrowRight", "PageDown", "Enter")  # the basket's button to remove it
    x = np.delete(x, 10, axis=0)
    assert focused(page) == "remove basket 11"
    press(page, "Home", "ArrowLeft", "PageUp", "PageUp", "ArrowUp")
    assert focused(page) == "bread in all baskets"
    press(page, "ArrowRight", "ArrowDown", "Tab")  # one stop: what follows lies behind the grid
    assert focused(page) == "Add a basket"
    press(page, "Enter", "ArrowRight", "Space")
    x = np.vstack([x, np.eye(6, dtype=bool)[1]])
    np.testing.assert_array_equal(baskets_of(page), x)
    press(page, "Tab", "Tab", "Tab", "ArrowRight", "ArrowRight", "ArrowLeft", "Tab", "End")
    assert focused(page, "aria-valuetext") == "100 %"
    press(page, "Home", "ArrowRight")
    agree(page, 16, 1)
    press(page, "Tab", "ArrowRight")
    assert focused(page).startswith("butter: in ") and page.run("document.querySelectorAll('.holds').length") > 50
    press(page, "ArrowDown")  # to the nearest pair
    assert focused(page).count("+") == 1
    press(page, "End", "ArrowUp", "ArrowRight", "ArrowLeft")
    itemset, said = focused(page).split(": ")
    assert itemset.count("+") == 4 and said.startswith("not counted, since")
    detail = page.run("document.querySelector('.chosen p').textContent")
    assert focused(page) in detail
    press(page, "Escape")
    assert not page.run("document.querySelectorAll('.holds, [aria-selected=true]').length")
    press(page, "Tab", "Tab", "Tab", "Tab", "Tab", "Enter")
    for order, keys in (("descending", []), ("ascending", ["Enter"])):
        press(page, *keys)
        lifts = [float(row[3]) for row in rules_of(page)]
        assert lifts == sorted(lifts, reverse=order == "descending") and len(set(lifts)) > 5
        assert page.run("document.activeElement.parentElement.getAttribute('aria-sort')") == order
    page.wait("location.hash.includes('o=lift')")
    visit(page, page.run("location.href"))  # the address holds it all
    np.testing.assert_array_equal(baskets_of(page), x)
    assert [float(row[3]) for row in rules_of(page)] == lifts
    agree(page, 16, 1)


def test_rules_sort_by_every_head(page):
    show(page, draw(), 5, 10)
    for column, measure in enumerate(["rule", *MEASURES]):
        page.run(f"document.querySelector('[data-by={measure}]').click()")
        values = [row[column] for row in rules_of(page)]
        numbers = values if measure == "rule" else [float(v.replace("∞", "inf")) for v in values]
        assert numbers == sorted(numbers, reverse=measure != "rule") and len(set(numbers)) > 5
        sorts = page.run("[...document.querySelectorAll('[aria-sort]')].map((h) => h.getAttribute('aria-sort'))")
        assert [i for i, s in enumerate(sorts) if s != "none"] == [column]


# ---------------------------------------------------------------------------------------------- how it looks


def test_a_phone_needs_no_sideways_scrolling(page):
    page.size(360, 740, phone=True)
    for support, confidence in ((15, 60), (1, 0), (100, 100)):
        show(page, draw(), support, confidence)
        page.wait("Number(document.querySelector('.lattice svg').getAttribute('width')) < 360")
        assert page.run("document.documentElement.scrollWidth") <= 360
        wide = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert page.run(wide) == 0
    small = "[...document.querySelectorAll('#mine :is(button, input, .lattice rect)')]"
    small += ".map((e) => e.getBoundingClientRect()).filter((r) => r.width < 24 || r.height < 24).length"
    assert page.run(small) == 0
    outside = "[...document.querySelectorAll('.lattice rect, .lattice text')]"
    outside += ".map((e) => e.getBoundingClientRect()).filter((r) => r.left < 0 || r.right > 360).length"
    assert page.run(outside) == 0


CONTRASTS = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { // the first opaque ground below an element; in a box of the lattice its rect
    const rect = e.tagName === "text" && e.parentNode.querySelector(":scope > rect");
    if (rect) return getComputedStyle(rect).fill;
    for (; e; e = e.parentElement) {
      const ground = parse(getComputedStyle(e).backgroundColor);
      if (ground.length === 3 || ground[3] === 1) return getComputedStyle(e).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("#mine *")].filter((e) => e.tagName !== "title"
    && (e.matches("[aria-pressed=true]") || [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())));
  return texts.map((e) => {
    const style = getComputedStyle(e), ink = e.tagName === "text" ? style.fill : style.color;
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 90)];
  });
})()
"""


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast_is_enough_in_both_modes(page, mode):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.run(f"document.documentElement.dataset.theme = {mode!r}")
    page.run("document.querySelector('.lattice [data-set=\"3\"]').focus()")
    ratios = page.run(CONTRASTS)
    assert len(ratios) > 400 and min(ratios)[0] >= 4.5, min(ratios)


def test_the_kinds_of_boxes_differ_without_colour(page):
    style = "getComputedStyle(document.querySelector('.lattice .{} {}')).{}"
    kinds = ["frequent", "infrequent", "pruned"]
    dashes = [page.run(style.format(kind, "rect", "strokeDasharray")) for kind in kinds]
    struck = [page.run(style.format(kind, ".struck", "display")) for kind in kinds]
    fills = [page.run(style.format(kind, "rect", "fill")) for kind in kinds]
    assert dashes[:2] == ["none", "none"] != dashes[2:] and struck == ["none", "none", "inline"]
    assert sum(map(int, re.findall(r"\d+", fills[0]))) < 300 < 700 < sum(map(int, re.findall(r"\d+", fills[1])))


@pytest.mark.parametrize("wish, seconds", [("reduce", "0s"), ("no-preference", "0.3s")])
def test_who_wants_no_motion_sees_none(page, wish, seconds):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": wish}])
    moving = "getComputedStyle(document.querySelector('.lattice rect')).transitionDuration.split(', ')[0]"
    assert page.run(moving) == seconds


def test_the_text_around_it_stays(page):
    assert page.run("document.querySelector('article h1').firstChild.textContent") == "Mine it yourself"
    assert page.run("document.querySelectorAll('details').length") == 3
    assert page.run("document.querySelectorAll('#mine section').length") == 5
    assert not page.run("document.querySelector('#mine').textContent.includes('rendered book')")


def test_other_pages_do_not_load_the_script(browser):
    for other in ("glossary.html", "notebooks/04_association_rules.html"):
        assert not re.search(r"mine_it_yourself\.(js|css)", (HTML / other).read_text())
