"""Result rows and the leaderboard."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd

from recutils.settings import REPOSITORY_RESULTS, profile, results_folder


def provenance() -> dict[str, str]:
    """What every result row says of the run that made it: `profile` and `source` (`notebook` or `long_run`)."""
    return {"profile": profile(), "source": "long_run" if profile() == "long" else "notebook"}


def fingerprint(configuration: dict) -> str:
    """A short hash of a configuration: equal settings, in whatever order, have equal hashes."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:12]


def results_name(chapter: str) -> str:
    """The file, without its ending, in which this profile keeps a chapter's rows."""
    return chapter if profile() == "cpu" else f"{chapter}.{profile()}"


def save_results(chapter: str, rows: list[dict], configuration: dict | None = None) -> pd.DataFrame:
    """Show a chapter's headline rows and, where `RECUTILS_RESULTS` names a folder, keep them as `<chapter>.json`.

    A long run's rows go to `<chapter>.long.json` beside it, each with the fingerprint of its `configuration`; those of
    the profile `gpu` to `<chapter>.gpu.json`.
    """
    name = results_name(chapter)
    if profile() == "long":
        rows = [{**row, "configuration": fingerprint(configuration or {})} for row in rows]
    if "RECUTILS_RESULTS" in os.environ:
        folder = results_folder()
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            [{k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()} for r in rows], indent=1
        )
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return pd.DataFrame(rows)


def read_results(folder: Path | None = None) -> pd.DataFrame:
    """All result rows that chapters have kept, from `folder` (default: `settings.results_folder()`).

    Files that the folder lacks are those that came with the repository: of long runs, and of chapters that have not
    been executed here yet. Those of the profile `gpu` are read in that profile only, after the chapter's others.
    """
    stored = [] if folder else REPOSITORY_RESULTS.glob("*.json")
    files = {p.name: p for p in (*stored, *(folder or results_folder()).glob("*.json"))}
    names = [name for name in sorted(files) if profile() == "gpu" or not name.endswith(".gpu.json")]
    return pd.DataFrame([row for name in names for row in json.loads(files[name].read_text(encoding="utf-8"))])


def leaderboard(
    results: pd.DataFrame, task: str = "complete_the_basket", metric: str = "ndcg@10", split: str = "test"
) -> pd.DataFrame:
    """One task's models from worst to best on one metric: `model, value, low, high, n, chapter`; no long runs.

    Where several chapters measured a model, the last one counts.
    """
    wanted = {"task": task, "metric": metric, "split": split, "source": "notebook"}
    rows = results[(results[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    columns = ["model", "value", "low", "high", "n", "chapter"]
    rows = rows.sort_values("chapter", kind="stable").drop_duplicates("model", keep="last")
    return rows.sort_values("value")[columns].reset_index(drop=True)
