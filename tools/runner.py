"""Execute the notebooks, each from a clean kernel, and say what each one cost.

    python tools/runner.py run OUT     execute copies into OUT; what is there and still holds stays (make book)
    python tools/runner.py commit      execute into notebooks/ from the .md files (make notebooks)
    python tools/runner.py format      let ruff format the code in the .md files (make format)

Beside each executed copy lies NAME.run.json: the key of what was executed, time, memory, and the failure, if any. Time
is wall-clock; memory is the peak of the kernel and of the processes it starts, together.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import psutil
from measure import Watch, kernels
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from recutils import evaluate, settings, source_code

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TIMES = NOTEBOOKS / "times.json"  # seconds of each cell in the last committed run: for "what is left"


def cells(notebook) -> list[tuple]:
    """What a pair must agree on: type, source and tags of each cell."""
    return [(c.cell_type, c.source.rstrip(), sorted(c.metadata.get("tags", []))) for c in notebook.cells]


# ---------------------------------------------------------------------------------------------- outputs


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


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ---------------------------------------------------------------------------------------------- one notebook


class Progress:
    """One line that says which cell runs, how long it has been and what is left, by the times of earlier runs."""

    def __init__(self, name: str, expected: list[float], later: float) -> None:
        self.name, self.expected, self.later = name, expected, later
        self.cell, self.start, self.said = 0, time.perf_counter(), 0.0
        self.begun = self.start  # of the cell that runs (from 0)

    def begin(self, cell: int) -> None:
        """This cell starts now."""
        self.cell, self.begun = cell, time.perf_counter()

    def say(self, n_cells: int) -> None:
        """A terminal sees the line anew every second, a log one in thirty."""
        now, live = time.perf_counter(), sys.stdout.isatty()
        elapsed = now - self.start
        if not live and elapsed - self.said < 30:
            return
        self.said = elapsed
        done, whole = sum(self.expected[: self.cell]), sum(self.expected)
        pace = max((self.begun - self.start) / done, 0.5) if done > 5 else 1.0  # beside the run that was stored
        ahead = max((whole - done) * pace - (now - self.begun), 0) + self.later * pace
        left = f", about {clock(ahead)} left in all" if whole else ""
        line = f"{self.name}: cell {self.cell + 1} of {n_cells}, {clock(elapsed)}{left}"
        print(f"\r\033[K{line}" if live else f"  {line}", end="" if live else "\n", flush=True)

    def end(self) -> None:
        """Take the line away again."""
        if sys.stdout.isatty():
            print("\r\033[K", end="")


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds.

    >>> clock(3725)
    '62 min 05 s'
    """
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


def execute(source: Path, expected: list[float], later: float = 0.0) -> tuple[Any, dict]:
    """One notebook executed in a kernel of its own, up to the first error: the notebook, and what its run was like."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem[:2]}-{number:03d}"
    patience = 1200 if settings.profile() == "cpu" else 7200  # seconds a cell
    client = NotebookClient(
        notebook, timeout=patience, kernel_name="python3", record_timing=False, coalesce_streams=True
    )
    client.resources = {"metadata": {"path": str(NOTEBOOKS)}}
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # spare us its remarks on its own sockets
    progress = Progress(source.stem, expected, later)
    starts: dict[int, float] = {}

    def begin(cell: Any, cell_index: int) -> None:
        starts[cell_index] = time.perf_counter()
        progress.begin(cell_index)

    client.on_cell_start = begin
    failure = None
    with Watch() as watch:
        try:
            work = ThreadPoolExecutor(1).submit(client.execute)  # not here, where nbclient would take Ctrl-C for itself
            while not wait([work], timeout=1).done:
                progress.say(len(notebook.cells))
            work.result()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failure = {"cell": max(starts, default=0) + 1, "error": _last_line(error), "kind": type(error).__name__}
    progress.end()
    for number, cell in enumerate(notebook.cells):  # a figure that cannot be drawn is an error output, no exception
        errors = [output for output in cell.get("outputs", []) if output.output_type == "error"]
        if errors and failure is None:
            failure = {"cell": number + 1, "error": f"{errors[0].ename}: {errors[0].evalue}", "kind": "output"}
    dress(notebook)
    nbformat.validate(notebook)
    seconds = [round(_duration(starts, n, watch), 1) for n in range(len(notebook.cells))]
    run = {"notebook": source.stem, "seconds": round(watch.seconds, 1), "peak_gb": round(watch.peak_gb, 2)}
    memory = [round(_most(starts, n, watch), 2) for n in range(len(notebook.cells))]
    run |= {"n_cells": len(notebook.cells), "cells": seconds, "cells_gb": memory, "failure": failure}
    return notebook, run


def _end(starts: dict[int, float], cell: int, watch: Watch) -> float:
    return min((t for n, t in starts.items() if n > cell), default=watch.start + watch.seconds)


def _duration(starts: dict[int, float], cell: int, watch: Watch) -> float:
    return _end(starts, cell, watch) - starts[cell] if cell in starts else 0.0


def _most(starts: dict[int, float], cell: int, watch: Watch) -> float:
    """The most memory seen while a cell ran (0 where it was over before anybody looked), in GB."""
    if cell not in starts:
        return 0.0
    return max((gb for t, gb in watch.course if starts[cell] <= t < _end(starts, cell, watch)), default=0.0)


def _last_line(error: Exception) -> str:
    """What went wrong, without the trace."""
    if isinstance(error, CellExecutionError):
        return f"{error.ename}: {error.evalue}".splitlines()[0][:300]
    return "the cell took too long" if isinstance(error, CellTimeoutError) else "the kernel died"


def advice(failure: dict) -> str:
    """What a person may try after a failure."""
    if failure["kind"] == "DeadKernelError" or "MemoryError" in failure["error"]:
        return "Most often memory ran out: close other programs, then `make book` again; only this chapter runs."
    if failure["kind"] == "CellTimeoutError":
        return "Something else keeps the machine busy, or it is very slow; `make book` again runs only this chapter."
    if "ModuleNotFoundError" in failure["error"] or "ImportError" in failure["error"]:
        return "A package is missing or of another version: `make clean`, then `make book`."
    return "Open it with `make lab` and run it cell by cell; `make book` again runs only what has changed or failed."


def mark(notebook: Any, run: dict) -> None:
    """Say on top of a page that it did not run to its end."""
    failure = run["failure"]
    text = f"```{{danger}} This chapter did not run to its end\nCell {failure['cell']} of {run['n_cells']} failed: "
    text += f"{failure['error']}\n\n{advice(failure)}\n```"
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(text, id=f"{run['notebook'][:2]}-failed"))


# ---------------------------------------------------------------------------------------------- all of them


def run_key(name: str) -> str:
    """A hash of what an executed notebook depends on: its source, the package, the settings, what is installed.

    A notebook that reads the result rows of earlier ones depends on these, too; one that makes the leaderboard of all
    also on those of later ones, as they came with the repository: their fresh rows would make it stale again each time.
    """
    source = (NOTEBOOKS / f"{name}.md").read_text(encoding="utf-8")
    parts = [source, Path(__file__).read_text(encoding="utf-8"), settings.profile(), settings.numerics()]
    parts += [str(settings.TRAINING_SEED), sys.version]
    modules = sorted((ROOT / "recutils").glob("**/*.py"))
    parts += [source_code.code_digest(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in modules]
    parts += sorted(f"{d.metadata['Name']} {d.version}" for d in distributions())
    if "read_results" in source:
        kept = [p for p in sorted(settings.results_folder().glob("*.json")) if p.name < name]
        if "leaderboard(" in source:
            later = (p for p in settings.REPOSITORY_RESULTS.glob("*.json") if p.name > name)
            kept += sorted(p for p in later if not p.name.startswith(f"{name}."))
        parts += [p.read_text(encoding="utf-8") for p in kept]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def stored_times() -> dict[str, list[float]]:
    """Seconds of each cell, by notebook, from the last committed run."""
    return json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}


def last_run(out: Path, name: str) -> dict | None:
    """What is known of an executed copy, None where there is none or a part of it is gone."""
    record = out / f"{name}.run.json"
    if not record.exists() or not (out / f"{name}.ipynb").exists():
        return None
    run = json.loads(record.read_text(encoding="utf-8"))
    return run if run["rows"] == own_rows(name).exists() else None


def run_all(names: list[str], out: Path) -> list[dict]:
    """Execute copies into `out`, those that still hold left out; one that fails is marked, and the others go on."""
    runs, times = [], stored_times()
    for place, name in enumerate(names):
        key, run = run_key(name), last_run(out, name)
        if run and run["key"] == key and not run["failure"]:
            print(f"{name:<30} executed before (key {key})", flush=True)
        else:
            (out / f"{name}.run.json").unlink(missing_ok=True)
            if "RECUTILS_RESULTS" in os.environ:
                own_rows(name).unlink(missing_ok=True)
            later = sum(sum(times.get(n, [])) for n in names[place + 1 :])
            notebook, run = execute(NOTEBOOKS / f"{name}.md", times.get(name, []), later)
            if run["failure"]:
                mark(notebook, run)
            run |= {"key": key, "rows": own_rows(name).exists()}
            write(out / f"{name}.ipynb", nbformat.writes(notebook))
            write(out / f"{name}.run.json", json.dumps(run) + "\n")
            print(line(run), flush=True)
        runs.append(run)
    return runs


def own_rows(name: str) -> Path:
    """Where this run of a chapter keeps its result rows."""
    return settings.results_folder() / f"{evaluate.results_name(name)}.json"


def line(run: dict) -> str:
    """A run in one line."""
    text = f"{run['notebook']:<30} {clock(run['seconds']):>12} {run['peak_gb']:>6.2f} GB"
    if any(run.get("cells_gb", [])):
        text += f" (most in cell {int(np.argmax(run['cells_gb'])) + 1})"
    failure = run["failure"]
    if failure:
        text += f"  FAILED in cell {failure['cell']} of {run['n_cells']}: {failure['error']}"
    return text if "key" not in run else f"{text}  (key {run['key']})"


def commit(names: list[str]) -> None:
    """Execute the .md files into notebooks/; the first that fails or was edited without its pair ends it."""
    for name in names:
        if stale(name):
            sys.exit(
                f"notebooks/{name}.ipynb was edited without its pair; run: jupytext --to md:myst notebooks/{name}.ipynb"
            )
        times = stored_times()
        notebook, run = execute(NOTEBOOKS / f"{name}.md", times.get(name, []))
        print(line(run), flush=True)
        if run["failure"]:
            sys.exit(1)
        write(NOTEBOOKS / f"{name}.ipynb", nbformat.writes(notebook))
        write(TIMES, json.dumps({**times, name: run["cells"]}, sort_keys=True).replace("], ", "],\n") + "\n")


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
    """Run what the command line asks for; exit with 1 where a notebook failed, with 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "commit", "format"])
    parser.add_argument("out", nargs="?", type=Path, default=NOTEBOOKS)
    parser.add_argument("--only", default="", help="the start of the names of the notebooks wanted, such as 04")
    options = parser.parse_args()
    names = sorted(p.stem for p in NOTEBOOKS.glob(f"{options.only}*.md"))
    try:
        if options.command == "format":
            for name in names:
                tidy(NOTEBOOKS / f"{name}.md")
        elif options.command == "commit":
            commit(names)
        else:
            runs = run_all(names, options.out)
            sys.exit(int(any(run["failure"] for run in runs)))
    except KeyboardInterrupt:
        for process in kernels():
            with contextlib.suppress(psutil.Error):
                process.kill()
        print("\nInterrupted. What was finished stays; the same command goes on from there.")
        sys.exit(130)


if __name__ == "__main__":
    main()
