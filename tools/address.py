"""Write the repository's address into every place that repeats it.

python tools/address.py https://github.com/you/your-book     (make address URL=...)

It stands in pyproject.toml, under [project.urls]; badges, set-up cells, _config.yml and CITATION.cff repeat it. While
it is the placeholder, the badges of each notebook carry a mark that says so.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "https://github.com/what-goes-with-what/book"
MARK = " *(a placeholder: these two lead somewhere once `make address` has been run)*"
SHAPE = r"https://github\.com/[\w.-]+/[\w.-]+"


def places(root: Path = ROOT) -> list[Path]:
    """The files that hold the address."""
    notebooks = sorted(p for p in (root / "notebooks").iterdir() if p.suffix in (".md", ".ipynb"))
    return [root / "pyproject.toml", root / "_config.yml", root / "CITATION.cff", *notebooks]


def current(root: Path = ROOT) -> str:
    """The address in force."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def rewrite(text: str, old: str, new: str) -> str:
    """A text with the new address for the old one, on GitHub and on Colab; badges marked where it is a placeholder."""
    before, after = (address.removeprefix("https://github.com/") for address in (old, new))
    text = re.sub(rf"(?<=github\.com/){re.escape(before)}(?![\w.-])", after, text)
    text = re.sub(rf"(?<=colab\.research\.google\.com/github/){re.escape(before)}(?=/)", after, text)
    text = text.replace(MARK, "")
    if new == PLACEHOLDER:
        text = re.sub(r"(\[!\[Open in Colab\].*?\[!\[Source\]\([^)]*\)\]\([^)]*\))", rf"\1{MARK}", text)
    return text


def move(new: str, root: Path = ROOT) -> list[Path]:
    """Rewrite every place; returns the files that changed. Raises ValueError for what is no address on GitHub."""
    new = new.removesuffix("/").removesuffix(".git")
    if not re.fullmatch(SHAPE, new):
        raise ValueError(f"{new!r} is no address of a repository; write it as https://github.com/you/your-book.")
    old, changed = current(root), []
    for path in places(root):
        before = path.read_text(encoding="utf-8")
        after = rewrite(before, old, new)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    try:
        for file in move(sys.argv[1] if sys.argv[1:] else ""):
            print(file.relative_to(ROOT))
    except ValueError as error:
        sys.exit(str(error))
