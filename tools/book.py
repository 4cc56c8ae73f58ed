"""Render the book, and keep the table and the picture of README.md in step with the notebooks.

python tools/book.py html [NOTEBOOKS]   render to _build/html from a folder of executed notebooks
python tools/book.py readme             write the leaderboard of data/results into README.md, and its picture
python tools/book.py leaderboard        print the tables of all models on the three tasks
"""

import base64
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nbformat
import runner
import yaml

from recutils import evaluate, settings

ROOT = Path(__file__).resolve().parent.parent
EXECUTED = "Executed on"  # the title of the page that says what was executed
STAGE, HTML = ROOT / "_build" / "book", ROOT / "_build" / "html"
PACKAGES = ["numpy", "scipy", "pandas", "pyarrow", "matplotlib", "torch", "torch-geometric", "transformers", "peft"]
PACKAGES += ["mlxtend", "networkx", "numba", "implicit", "lightgbm", "captum", "lime", "shap"]
PACKAGES += ["onnxruntime", "faiss-cpu", "fastapi", "uvicorn", "jupyter-book"]


def pages() -> list[str]:
    """The pages of _toc.yml, without their endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


def executed(notebooks: Path) -> list[dict]:
    """What tools/runner.py says of each notebook it executed into this folder."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted(notebooks.glob("*.run.json"))]


def executed_page(notebooks: Path) -> str:
    """The page that says what was executed, how long it took, and with what."""
    text = f"# {EXECUTED}\n\n"
    runs = executed(notebooks)
    if runs:
        text += "The notebooks of this book, as they were executed for it, each from a clean kernel:\n\n"
        text += "| notebook | seconds | peak memory (GB) | |\n|---|---|---|---|\n"
        for r in runs:
            state = f"failed in cell {r['failure']['cell']}" if r["failure"] else "whole"
            text += f"| {r['notebook']} | {r['seconds']} | {r['peak_gb']} | {state} |\n"
    else:
        text += "This copy was rendered from the outputs stored with the notebooks; `make book` executes them anew.\n"
    text += f"\nProfile `{settings.profile()}`, {os.cpu_count()} CPU cores, {platform.system()}, "
    text += f"Python {platform.python_version()}.\n\n| package | version |\n|---|---|\n"
    for name in PACKAGES:
        try:
            text += f"| {name} | {version(name)} |\n"
        except PackageNotFoundError:
            text += f"| {name} | not installed |\n"
    return text


def stage(notebooks: Path, folder: Path) -> None:
    """Put the pages, and what Jupyter Book needs beside them, into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        source = notebooks / f"{Path(page).name}.ipynb" if page.startswith("notebooks/") else ROOT / f"{page}.md"
        target = folder / f"{page}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if page == "executed":
            target.write_text(executed_page(notebooks), encoding="utf-8")
        elif source.suffix == ".ipynb":
            # Badges are pictures from elsewhere; without a network a plain link has to do.
            badge = re.compile(r"\[!\[([^\]]*)\]\(\S*?\)\]\(")
            target.write_text(badge.sub(r"[\1](", source.read_text(encoding="utf-8")), encoding="utf-8")
        else:
            shutil.copy(source, target)
    for name in ("_toc.yml", "_config.yml", "references.bib"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("_static", "_ext"):
        shutil.copytree(ROOT / name, folder / name)


def render(folder: Path, target: Path) -> None:
    """From a staged folder to a folder of pages; warnings are errors."""
    command = ["jupyter-book", "build", "--all", "-W", "-n", "--keep-going", "-q", str(folder)]
    subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True)
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(folder / "_build" / "html", target)


def html(notebooks: Path) -> None:
    """Stage the pages and render them; say which notebooks failed when they were executed."""
    start = time.perf_counter()
    stage(notebooks, STAGE)
    render(STAGE, HTML)
    print(f"rendered in {time.perf_counter() - start:.0f} s")
    print(f"The book: {HTML / 'index.html'}")
    failed = [runner.line(run) for run in executed(notebooks) if run["failure"]]
    if failed:
        sys.exit("Not whole; each chapter below says on its page what to try:\n" + "\n".join(failed))


def table(task: str = "complete_the_basket", metric: str = "ndcg@10") -> str:
    """A task's leaderboard in Markdown, best model first; by default the main task's."""
    rows = evaluate.read_results(ROOT / "data" / "results")
    board = evaluate.leaderboard(rows, task, metric).iloc[::-1]
    lines = [f"| model | {metric.upper()} | 95 % interval | chapter |", "|---|---|---|---|"]
    for row in board.itertuples():
        lines.append(f"| `{row.model}` | {row.value:.3f} | {row.low:.3f} to {row.high:.3f} | {row.chapter[:2]} |")
    return "\n".join(lines)


def picture() -> bytes:
    """The figure of chapter 04 that README.md shows, as png."""
    notebook = nbformat.read(ROOT / "notebooks" / "04_association_rules.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "").startswith("Networks of products"):
            return base64.b64decode(next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})))
    raise ValueError("Chapter 04 has no figure of islands any more; choose another for README.md.")


def readme() -> None:
    """Put the table between its marks in README.md, and the picture beside the others."""
    path = ROOT / "README.md"
    marks = re.compile(r"(<!-- leaderboard -->\n).*?(\n<!-- end -->)", re.DOTALL)
    text = marks.sub(lambda m: m[1] + table() + m[2], path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    (ROOT / "_static" / "islands.png").write_bytes(picture())


if __name__ == "__main__":
    if sys.argv[1:2] == ["html"]:
        html(Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "notebooks")
    elif sys.argv[1:] == ["readme"]:
        readme()
    elif sys.argv[1:] == ["leaderboard"]:
        for task, metric in (("complete_the_basket", "ndcg@10"), ("next_basket", "ndcg@10"), ("cold_items", "hr@50")):
            print(f"{task}\n\n{table(task, metric)}\n")
    else:
        sys.exit(__doc__)
