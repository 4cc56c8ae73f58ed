"""The book in another language, from catalogues of messages (gettext) under locale/LANGUAGE.

python tools/translate.py extract LANGUAGE [PAGES]   bring the catalogues in step with the English; begin PAGES
python tools/translate.py html LANGUAGE              render to _build/html_LANGUAGE; what is not translated is English
"""

import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import book
import yaml
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

BUILD, LOCALE = book.ROOT / "_build", book.ROOT / "locale"
# The catalogue of what stands in no page: the book's title, the menu, and this notice above every page.
MENU = "menu"
NOTICE = "This edition has only begun: what is not yet translated stands in English."


def catalogues(language: str) -> dict[str, Path]:
    """The catalogues of a language, by the name of their page (and the one of the menu)."""
    folder = LOCALE / language / "LC_MESSAGES"
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.po"))}


def read(path: Path) -> Catalog:
    """A catalogue as babel reads it."""
    with path.open("rb") as file:
        return read_po(file)


def _title(chapter: dict) -> str:
    """What the menu calls a page: its title in _toc.yml, or else its first heading."""
    if "title" in chapter or chapter["file"] == "executed":
        return chapter.get("title", book.EXECUTED)
    lines = (book.ROOT / f"{chapter['file']}.md").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# "))


def menu() -> list[str]:
    """The messages of the catalogue MENU: the book's title, the notice, captions and pages of the menu."""
    toc = yaml.safe_load((book.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    messages = [yaml.safe_load((book.ROOT / "_config.yml").read_text(encoding="utf-8"))["title"], NOTICE]
    for part in toc["parts"]:
        messages += [part["caption"], *map(_title, part["chapters"])]
    return messages


def _localise(folder: Path, language: str) -> None:
    """Give a staged book its language: catalogues, menu, and what lies in locale/LANGUAGE (config.yml, _static)."""
    own = LOCALE / language
    shutil.copytree(own / "LC_MESSAGES", folder / "locale" / language / "LC_MESSAGES")
    if (own / "_static").exists():
        shutil.copytree(own / "_static", folder / "_static", dirs_exist_ok=True)
    catalogue = read(catalogues(language)[MENU])

    def told(message: str) -> str:
        found = catalogue.get(message)
        return str(found.string) if found and found.string and not found.fuzzy else message

    toc = yaml.safe_load((folder / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        part["caption"] = told(part["caption"])
        for chapter in part["chapters"]:
            if told(_title(chapter)) != _title(chapter):
                chapter["title"] = told(_title(chapter))
    config = yaml.safe_load((folder / "_config.yml").read_text(encoding="utf-8"))
    config["title"] = told(config["title"])
    sphinx = config["sphinx"]
    sphinx["config"] |= {"language": language, "locale_dirs": ["locale"], "gettext_compact": False}
    sphinx["config"]["html_theme_options"]["announcement"] = told(NOTICE)
    if (own / "config.yml").exists():
        for key, added in yaml.safe_load((own / "config.yml").read_text(encoding="utf-8")).items():
            sphinx[key] |= added
    for name, content in (("_toc.yml", toc), ("_config.yml", config)):
        (folder / name).write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


def html(language: str) -> None:
    """Render the book from the stored outputs in another language; warnings are errors."""
    start = time.perf_counter()
    if MENU not in catalogues(language):
        known = ", ".join(sorted(p.name for p in LOCALE.iterdir() if p.is_dir()))
        sys.exit(f"There are no catalogues of {language!r} under locale/, but of: {known}.")
    stage, target = BUILD / f"book_{language}", BUILD / f"html_{language}"
    book.stage(book.ROOT / "notebooks", stage)
    _localise(stage, language)
    book.render(stage, target)
    print(f"rendered in {time.perf_counter() - start:.0f} s")
    print(f"The book in {language}: {target / 'index.html'}")


def templates(pages: list[str], folder: Path) -> Path:
    """Extract the messages of some pages, and of the menu, into the folder of templates that is returned."""
    book.stage(book.ROOT / "notebooks", folder)
    others = [page for page in pages if page != "intro"]
    toc = {"format": "jb-book", "root": "intro", "chapters": [{"file": page} for page in others]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    config = yaml.safe_load((folder / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["config"] |= {"gettext_compact": False, "gettext_location": False, "gettext_uuid": False}
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = ["jupyter-book", "build", "--all", "-qq", "--builder", "custom", "--custom-builder", "gettext"]
    command = [str(Path(sys.executable).parent / command[0]), *command[1:], str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    made = folder / "_build" / "gettext"
    for template in made.rglob("*.pot"):
        if template.relative_to(made).with_suffix("").as_posix() not in pages:
            template.unlink()
    catalogue = Catalog()
    for message in menu():
        catalogue.add(message)
    with (made / f"{MENU}.pot").open("wb") as file:
        write_po(file, catalogue)
    return made


def _head(path: Path) -> None:
    """Give a new catalogue a head that says what it belongs to, instead of blanks to fill in."""
    catalogue = read(path)
    catalogue.header_comment = "# See locale/README.md."
    catalogue.project, catalogue.version = menu()[0], version("recutils")
    catalogue.last_translator = f"The authors of {catalogue.project}"
    catalogue.msgid_bugs_address, catalogue.language_team = "", str(catalogue.locale)
    catalogue.fuzzy = False
    with path.open("wb") as file:
        write_po(file, catalogue, width=0)


def extract(language: str, begun: list[str]) -> None:
    """Bring the catalogues of a language in step with the English text, and begin those of the pages named."""
    unknown = set(begun) - set(book.pages())
    if unknown:
        sys.exit(f"Not in _toc.yml: {', '.join(sorted(unknown))}. A page is named like notebooks/04_association_rules.")
    before = catalogues(language)
    pages = sorted({*before, *begun} - {MENU})
    made = templates(pages, BUILD / "messages")
    command = ["update", "-p", str(made), "-d", str(LOCALE), "-l", language, "-w", "0", "-j", "1"]
    subprocess.run([sys.executable, "-m", "sphinx_intl", *command], check=True)
    for page, path in catalogues(language).items():
        if page not in before:
            _head(path)
        left = [m for m in read(path) if m.id and (m.fuzzy or not m.string)]
        print(f"{page}: {len(left)} of {len(read(path))} messages left to translate")


if __name__ == "__main__":
    if sys.argv[1:2] == ["extract"] and len(sys.argv) > 2:
        extract(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["html"] and len(sys.argv) == 3:
        html(sys.argv[2])
    else:
        sys.exit(__doc__)
