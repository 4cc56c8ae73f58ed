"""Run chapters as Colab would: no repository around, the package from a wheel, installed by the set-up cell itself.

    python tools/colab.py 01 02 04      (make colab-check)

A fresh environment holds what Colab brings along (Jupyter's kernel, numpy, PyTorch and the like, at the versions of
constraints.txt). In each notebook the address in the set-up cell is replaced by the wheel; that cell then installs
the package with the extra of its chapter, and the rest runs in an empty working folder.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import address
import nbformat

ROOT = Path(__file__).resolve().parent.parent
ALREADY_THERE = [
    "ipykernel",
    "matplotlib",
    "nbclient",
    "nbformat",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
]
ALREADY_THERE += ["torch", "transformers", "networkx"]
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
print(sum(c.cell_type == "code" for c in notebook.cells), "cells")
"""


def pip(python: Path, *arguments: str) -> None:
    """pip in an environment, held to constraints.txt."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    subprocess.run([*command, *arguments], check=True)


def main(chapters: list[str]) -> None:
    """Build the wheel and the environment, run the chapters; exits with an error where one fails."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = folder / "source"  # a copy, so that building leaves nothing in the repository
        shutil.copytree(ROOT / "recutils", source / "recutils")
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, str(source)]
        subprocess.run(build, check=True)
        wheel = next(folder.glob("*.whl"))
        shutil.rmtree(source)
        print("wheel:", wheel.name, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        python = folder / "venv" / "bin" / "python"
        pip(python, *ALREADY_THERE)
        for chapter in chapters:
            run_chapter(next((ROOT / "notebooks").glob(f"{chapter}*.ipynb")), wheel, python, folder)


def run_chapter(notebook: Path, wheel: Path, python: Path, folder: Path) -> None:
    """One notebook, its set-up cell pointed at the wheel, in an empty working folder; the package leaves afterwards."""
    pages = nbformat.read(notebook, as_version=4)
    cell = next(c for c in pages.cells if "%pip install" in c.source)
    cell.source, n = re.subn(rf"git\+{re.escape(address.current())}", wheel.as_uri(), cell.source)
    if n != 1:
        sys.exit(f"{notebook.name}: the set-up cell does not install from {address.current()}.")
    copy, work = folder / notebook.name, folder / f"work-{notebook.stem}"
    nbformat.write(pages, copy)
    work.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RECUTILS_") and k != "PYTHONPATH"}
    environment |= {"RECUTILS_CACHE": str(folder / "cache"), "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    start = time.perf_counter()
    subprocess.run([python, "-c", EXECUTE, copy, work], check=True, env=environment, cwd=work)
    print(f"{notebook.stem}: passed in {time.perf_counter() - start:.0f} s", flush=True)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "recutils"], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
