"""The rendered book in headless Chromium, opened from its folder: no network, no error, formulas and search work."""

import functools
import json
import re
import subprocess

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, missing
from test_book import ADDRESS, STEMS, book, check

from recutils import plots

HTML = ROOT / "_build" / "html"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    *("--host-resolver-rules=MAP * 127.0.0.1:9", "--virtual-time-budget=20000", "--dump-dom"),
]
PAGES = ["intro.html", *(f"notebooks/{s}.html" for s in STEMS), "mine_it_yourself.html"]
PAGES += ["glossary.html", "references.html", "executed.html"]


def requests_of_the_page(log):
    """Addresses on the network that the page asked for; the browser's own requests have no origin."""
    ours, asked = set(), {}
    for line in log.read_text(encoding="utf-8", errors="ignore").splitlines():
        try:
            event = json.loads(line.rstrip(","))
            params, source = event["params"], event["source"]["id"]
        except (ValueError, KeyError, TypeError):
            continue
        if params.get("initiator", "not an origin") != "not an origin":
            ours.add(source)
        if str(params.get("url", "")).startswith(("http:", "https:", "ws:")):
            asked[source] = params["url"]
    return [url for source, url in asked.items() if source in ours]


def open_page(chromium, folder, address):
    """The document of a page after its scripts ran, and what went wrong: console errors, requests."""
    log = folder / "net.json"
    log.unlink(missing_ok=True)
    command = [chromium, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", address]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    # Two remarks of the theme are no errors: "Changed to light mode", "Adding toggle buttons".
    console = [line for line in console if '"[PST]: ' not in line and '"[togglebutton]: Adding' not in line]
    return run.stdout, console + requests_of_the_page(log)


@pytest.fixture(scope="module")
def see(chromium, tmp_path_factory):
    """Open a page of the book, or of another address, once."""
    if not (HTML / "index.html").exists():
        missing("The book was not rendered; make html does that.", "browser")
    folder = tmp_path_factory.mktemp("chromium")

    @functools.cache
    def see_page(page):
        return open_page(chromium, folder, page if page.startswith("file:") else f"file://{HTML}/{page}")

    return see_page


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_quiet_and_asks_nothing_of_the_network(see, page):
    document, console = see(page)
    assert not console, console
    assert "<h1" in document


@pytest.mark.parametrize(
    "wrong",
    [
        '<script src="https://example.org/x.js"></script>',
        '<img src="https://example.org/x.png">',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        "<style>@font-face {font-family: x; src: url(https://example.org/x)} b {font-family: x}</style><b>x</b>",
        "<script>fetch('https://example.org/x')</script>",
        "<script>throw new Error('x')</script>",
    ],
)
def test_a_request_and_an_error_would_be_noticed(see, wrong, tmp_path):
    (tmp_path / "page.html").write_text(f"<h1>A page</h1>{wrong}")
    assert see(f"file://{tmp_path}/page.html")[1]


def test_buttons_lead_to_the_repository_and_to_colab(see):
    document, _ = see(f"notebooks/{STEMS[0]}.html")
    links = set(re.findall(r'href="([^"]+)"', document))
    assert ADDRESS in links and f"{ADDRESS}/issues/new" in " ".join(links)
    path = ADDRESS.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{STEMS[0]}.ipynb" in links


@pytest.mark.parametrize("stem", STEMS)
def test_formulas_figures_and_folds(see, stem):
    """All that the executed notebook has is on its page: figures with a text, displayed formulas, folded solutions."""
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    figures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    displayed = sum(cell.source.count("$$") // 2 for cell in cells if cell.cell_type == "markdown")
    folded = sum("hide-cell" in cell.metadata.get("tags", []) for cell in cells)
    document, _ = see(f"notebooks/{stem}.html")
    formulas = len(re.findall(r'class="(?:[^"]* )?math ', document))
    assert formulas >= displayed and document.count("<mjx-container") >= formulas
    assert '<g data-mml-node="merror"' not in document
    images = re.findall(r"<img[^>]+>", document)
    shown = [i for i in images if "_images/" in i]
    assert len(shown) >= figures >= 2 and all(re.search(r'alt="[^"]{40,}"', i) for i in shown)
    assert document.count("tag_hide-cell") >= folded >= 2 and "colab.research.google.com" in document


@pytest.mark.parametrize(
    "script, expected", [("heads[1].click()", "bac"), ("heads[1].click(); heads[1].click()", "cab")]
)
def test_a_table_to_explore_sorts_by_a_click(see, tmp_path, script, expected):
    table = pd.DataFrame({"name": ["a", "b", "c"], "number": [9, 10, -1]})
    page = tmp_path / "table.html"
    click = f"<script>const heads = document.querySelectorAll('th'); {script}</script>"
    page.write_text(f"<!doctype html>{plots.sortable_table(table).data}{click}")
    document, console = see(page.as_uri())
    assert not console and "".join(re.findall(r"<td>([abc])</td>", document)) == expected


def test_a_table_to_explore_keeps_the_rows_with_the_words(see, tmp_path):
    table = pd.DataFrame({"name": ["Hot dogs", "hot sauce", "Dog food"], "number": [1, 2, 3]})
    page = tmp_path / "table.html"
    words = "const box = document.querySelector('input'); box.value = 'dog hot'; box.dispatchEvent(new Event('input'));"
    page.write_text(f"<!doctype html>{plots.sortable_table(table).data}<script>{words}</script>")
    document, console = see(page.as_uri())
    rows = re.findall(r"<tr([^>]*)>\s*<td>([^<]+)", document)
    assert not console and [name for hidden, name in rows if "hidden" not in hidden] == ["Hot dogs"]


def test_search_finds_a_chapter(see):
    document, console = see("search.html?q=apriori")
    assert not console and re.search(r'class="search"[^>]*>.*?04_association_rules', document, re.DOTALL)


def test_no_page_loads_anything_from_elsewhere():
    if not (HTML / "index.html").exists():
        missing("The book was not rendered; make html does that.", "browser")
    for page in HTML.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)[^>]+>", page.read_text(encoding="utf-8")):
            if "image/svg" in tag or 'rel="canonical"' in tag or "badge" in tag or "img.shields.io" in tag:
                continue
            assert not re.search(r'(?:src|href)="(?:https?:)?//', tag), (page.name, tag)


def test_the_stored_runs_hold_what_was_promised():
    for run in book.executed(ROOT / "_build" / "notebooks"):
        assert run["failure"] is None and run["peak_gb"] <= check.most_gb(run["notebook"]), run
