"""The catalogues of other languages under locale: whole, in step with the English, with nothing lost on the way."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from babel.messages.pofile import read_po
from conftest import ROOT
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from test_rendered import open_page

sys.path.insert(0, str(ROOT / "tools"))
import translate

LANGUAGES = sorted(p.name for p in (ROOT / "locale").iterdir() if p.is_dir())
CATALOGUES = [(language, page) for language in LANGUAGES for page in translate.catalogues(language)]
PAGES = [(language, page) for language, page in CATALOGUES if page != translate.MENU]
MARKDOWN = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin)


def messages(language, page):
    """Messages of a catalogue, English and translated."""
    return [(m.id, m.string) for m in translate.read(translate.catalogues(language)[page]) if m.id]


def command(language):
    """What to do when a catalogue is not that of the English text."""
    return f"the English text has changed: run `make messages LANGUAGE={language}`, then translate what it lists"


def tokens(text):
    """All inline parts of a text."""
    return [child for token in MARKDOWN.parse(text) for child in token.children or [token]]


def kept(text):
    """What a translation leaves as it is: code, formulas, targets of links and roles; how much is emphasised."""
    found, before = Counter(), ""
    for token in tokens(text):
        role = re.search(r"\{[\w:-]+\}$", before)
        before = token.content if token.type == "text" else ""
        if role and token.type == "code_inline":
            found[role[0], token.content.split("<")[-1].strip("> ").lower()] += 1
        elif token.type in ("code_inline", "math_inline", "math_block"):
            found[token.type, token.content.strip()] += 1
        elif token.type in ("link_open", "image"):
            found["link", token.attrs.get("href") or token.attrs.get("src")] += 1
        elif token.type in ("strong_open", "em_open"):
            found[token.type] += 1
    return found


def words(text):
    """The text itself, without code, formulas and targets of links."""
    return "".join(token.content if token.type == "text" else " " for token in tokens(text)) or text


def numbers(text):
    """Every number of a text that is not in code, a formula or a target."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", words(text)))


def tables(language):
    """The rows of the tables of TERMS.md, table by table, without their heads."""
    text = (ROOT / "locale" / language / "TERMS.md").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^\|[-|]+\|\n((?:\|.*\n)*)", text, flags=re.M):
        found.append([[cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines()])
    return found


def breaches(language, pairs):
    """Terms of TERMS.md that stand in a message, while none of their Chinese terms stands in its translation."""
    terms, exceptions, _ = tables(language)
    found = []
    for english, translated in pairs:
        if english == translated:
            continue
        text = words(english).lower()
        for term, renderings, _ in terms:
            spelled = "|".join(re.escape(t.strip().lower()) for t in term.split(" / "))
            if not re.search(rf"(?<![\w-])(?:{spelled})(?:s|es)?(?![\w-])", text):
                continue
            excepted = any(term == t and english.startswith(start) for t, start, _ in exceptions)
            if not excepted and not any(r in translated for r in renderings.split(" / ")):
                found.append((term, english[:60]))
    return found


@pytest.mark.parametrize("language, page", CATALOGUES)
def test_every_message_is_translated_and_none_in_doubt(language, page):
    catalogue = translate.read(translate.catalogues(language)[page])
    left = [m.id for m in catalogue if m.id and (m.fuzzy or not m.string)]
    assert len(catalogue) > 5 and not left and not catalogue.fuzzy and not catalogue.obsolete


@pytest.mark.parametrize("language, page", CATALOGUES)
def test_code_formulas_links_and_numbers_are_kept(language, page):
    otherwise = tables(language)[2]
    for english, translated in messages(language, page):
        assert kept(english) == kept(translated), english
        for before, after in otherwise:
            english, translated = english.replace(before, ""), translated.replace(after, "")
        assert numbers(english) == numbers(translated), english
        assert not re.search(r"[*`]", words(translated)), ("a mark shows; put punctuation outside", translated)


@pytest.mark.parametrize("language, page", CATALOGUES)
def test_terms_are_those_of_the_list(language, page):
    assert not breaches(language, messages(language, page))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_list_of_terms_has_no_double_and_every_exception_is_needed(language):
    terms, exceptions, otherwise = tables(language)
    pairs = [pair for page in translate.catalogues(language) for pair in messages(language, page)]
    assert len({t[0] for t in terms}) == len(terms)
    for term, start, why in exceptions:
        assert why and any(e.startswith(start) for e, _ in pairs) and term in {t[0] for t in terms}
    assert all(any(before in e for e, _ in pairs) for before, _ in otherwise)


@pytest.mark.parametrize(
    "english, translated, lost",
    [
        ("`a` and $b$", "$b$ 与 a", True),
        ("see [it](x.md)", "见[它](y.md)", True),
        ("**A.** b", "**甲。**乙", True),
        ("**A** b", "**甲**乙", False),
        ("a {term}`lift` of 1", "{term}`提升度 <lift>` 为 1", False),
        ("a {term}`lift` of 1", "{term}`提升度` 为 1", True),
        ("$a$ *b* `c`", "`c` 与 $a$、*乙*", False),
    ],
)
def test_a_loss_would_be_seen(english, translated, lost):
    assert (kept(english) != kept(translated)) == lost


def test_a_wrong_term_would_be_seen():
    english = "Lifts of a *pair*, `support`"
    assert breaches("zh_CN", [(english, "一对的提升")]) == [("lift", english)]
    assert not breaches("zh_CN", [("Lift, and a shoplifter", "提升度与小偷")])


# ------------------------------------------------------------------------------------ in step


def source(page):
    """The messages of a page by a quick look at its source: paragraphs, headings, cells of tables, formulas."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"```\{code-cell\}.*?\n```", "", text, flags=re.S)
    text = re.sub(r"^\+\+\+.*$", "", text, flags=re.M)
    text = re.sub(r"\[!\[([^\]]*)\]\(\S*?\)\]\(", r"[\1](", text)  # as book.stage does
    blocks = [t for t in MARKDOWN.parse(text) if t.type in ("inline", "math_block")]
    return {" ".join(t.content.split()) for t in blocks} - {""}


@pytest.mark.parametrize("language, page", PAGES)
def test_a_catalogue_is_in_step_with_its_page(language, page):
    told = {" ".join(m.split()) for m, _ in messages(language, page)}
    assert told == source(page), command(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_menu_is_in_step(language):
    assert {m for m, _ in messages(language, translate.MENU)} == set(translate.menu()), command(language)


@pytest.mark.slow
def test_extraction_gives_the_messages_of_the_catalogues(tmp_path):
    made = translate.templates(sorted({page for _, page in PAGES}), tmp_path / "messages")
    for language, page in CATALOGUES:
        with (made / f"{page}.pot").open("rb") as file:
            extracted = [m.id for m in read_po(file) if m.id]
        assert extracted == [m for m, _ in messages(language, page)], command(language)


def test_no_compiled_catalogue_is_kept():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".mo\n" not in tracked


# ------------------------------------------------------------------------------------ rendered


@pytest.fixture(scope="module")
def edition():
    """The book in Chinese, rendered; warnings are errors."""
    translate.html("zh_CN")
    return ROOT / "_build" / "html_zh_CN"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["intro", "notebooks/01_data_preparation", "notebooks/04_association_rules"])
def test_a_page_in_chinese_is_quiet_and_whole(edition, chromium, tmp_path, page):
    document, console = open_page(chromium, tmp_path, f"{(edition / page).as_uri()}.html")
    assert not console, console
    assert 'lang="zh-CN"' in document and "搜索" in document and "中文版刚刚起步" in document
    article = document[document.index("<article") : document.index("</article>")]
    paragraphs = [re.sub(r"<[^>]+>", "", p) for p in re.findall(r"<p>(.*?)</p>", article, flags=re.S)]
    paragraphs = [p for p in paragraphs if len(p) > 5]  # not the numbers of chapters
    share = sum(bool(re.search(r"[\u4e00-\u9fff]", p)) for p in paragraphs) / len(paragraphs)
    assert share > 0.8 if ("zh_CN", page) in CATALOGUES else share == 0
    assert "<mjx-container" in article or page == "intro"
    assert not any("**" in p for p in paragraphs)


@pytest.mark.slow
def test_the_search_finds_chinese_words(edition, chromium, tmp_path):
    address = f"{(edition / 'search.html').as_uri()}?q=%E6%8F%90%E5%8D%87%E5%BA%A6"  # 提升度
    document, console = open_page(chromium, tmp_path, address)
    assert not console and re.search(r'class="search"[^>]*>.*?01_data_preparation', document, re.DOTALL)
