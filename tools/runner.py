"""Execute the notebooks, each from a clean kernel, and say what each one cost.

    python tools/runner.py run OUT     execute copies into the folder OUT, with OUT/runs.json
    python tools/runner.py commit      execute into notebooks/ from the .md files (make notebooks)
    python tools/runner.py format      let ruff format the code in the .md files (make format)

Time is wall-clock, memory the kernel's peak resident size.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from recutils import settings

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def cells(notebook) -> list[tuple]:
    """What a pair must agree on: type, source and tags of each cell."""
    return [(c.cell_type, c.source.rstrip(), sorted(c.metadata.get("tags", []))) for c in notebook.cells]


def dress(notebook) -> None:
    """Move figures' alternative text to where the book reads it, fold solutions, drop what changes by itself."""
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        if "hide-cell" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
        for output in cell.get("outputs", []):
            _settle(output.get("data", {}), cell["id"])
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    notebook.metadata.pop("language_info", None)
    notebook.metadata.pop("widgets", None)


def _settle(shown: dict, name: str) -> None:
    """Styled tables carry a random name and an address; give them the cell's name, so that re-runs agree."""
    if "text/html" in shown:
        shown["text/html"] = re.sub(r"T_[0-9a-f]{5}(?=[_\" ])", f"T_{name}", shown["text/html"])
    if "text/plain" in shown:
        shown["text/plain"] = re.sub(r"<(\S+) at 0x[0-9a-f]+>", r"<\1>", shown["text/plain"])


def execute(source: Path, target: Path) -> dict:
    """Execute one notebook in this process's only kernel, write it, return its time and peak memory."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem[:2]}-{number:03d}"
    start = time.perf_counter()
    patience = 7200 if settings.profile() == "long" else 600  # seconds a cell
    client = NotebookClient(notebook, timeout=patience, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # spare us its remarks on its own sockets
    client.execute()
    for cell in notebook.cells:  # a figure that cannot be drawn is an error output, not an exception
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            raise RuntimeError(f"{source.name}: a cell shows an error:\n{cell.source}")
    seconds = time.perf_counter() - start
    dress(notebook)
    nbformat.validate(notebook)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kB on Linux
    return {"notebook": source.stem, "seconds": round(seconds, 1), "peak_gb": round(peak, 2)}


def stale(name: str) -> bool:
    """Whether the .ipynb was edited after its .md and says something else."""
    ipynb, md = NOTEBOOKS / f"{name}.ipynb", NOTEBOOKS / f"{name}.md"
    if not ipynb.exists() or ipynb.stat().st_mtime <= md.stat().st_mtime:
        return False
    return cells(nbformat.read(ipynb, as_version=4)) != cells(jupytext.read(md))


def tidy(source: Path) -> None:
    """Format the code cells of one .md file; ruff reads notebooks, so it goes through one."""
    notebook = jupytext.read(source)
    with tempfile.NamedTemporaryFile(suffix=".ipynb", dir=NOTEBOOKS) as file:
        nbformat.write(notebook, file.name)
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", file.name], check=True)
        formatted = nbformat.read(file.name, as_version=4)
    for before, after in zip(notebook.cells, formatted.cells, strict=True):
        before.source = after.source
    text = jupytext.writes(notebook, fmt="md:myst")
    version = re.compile(r"^ *jupytext_version: .*\n", re.MULTILINE)  # would change with every release
    source.write_text(version.sub("", text, count=1), encoding="utf-8")


def main() -> None:
    """Run what the command line asks for; exit with 1 and the failing cell's error where a notebook fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "commit", "format"])
    parser.add_argument("out", nargs="?", type=Path, default=NOTEBOOKS)
    parser.add_argument("--only", default="", help="the start of the names of the notebooks wanted, such as 04")
    options = parser.parse_args()
    names = sorted(p.stem for p in NOTEBOOKS.glob(f"{options.only}*.md"))
    runs = []
    for name in names:
        if options.command == "format":
            tidy(NOTEBOOKS / f"{name}.md")
            continue
        if options.command == "commit" and stale(name):
            sys.exit(
                f"notebooks/{name}.ipynb was edited without its pair; run: jupytext --to md:myst notebooks/{name}.ipynb"
            )
        # A process each, so that the peak memory is this notebook's own.
        with get_context("spawn").Pool(1) as pool:
            run = pool.apply(execute, (NOTEBOOKS / f"{name}.md", options.out / f"{name}.ipynb"))
        print(f"{name:<28}{run['seconds']:>8.1f} s {run['peak_gb']:>6.2f} GB", flush=True)
        runs.append(run)
    if options.command == "run":
        (options.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
