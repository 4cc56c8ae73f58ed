"""Check the notebooks: all cells run, tagged outputs are as stored, result rows as kept, memory within its limit.

    python tools/check.py                  in the world that the environment makes (make test)
    python tools/check.py plain seed ...   in worlds of tools/worlds.toml, each from empty caches (make shake)
    python tools/check.py plain --keep     the same; those that pass are noted in data/checked.json
    python tools/check.py --export plain   print a world's variables for a shell (.ci/run)

nbval runs the cells and compares outputs. What each notebook cost and which rows moved most goes to
_build/worlds/WORLD/report.json and is printed.

Where RECUTILS_CHECK_MINUTES is set, as many notebooks are run as fit into that time: those that depend on anything that
changed since they were noted first, the quick ones before the slow, then the others, in an order that changes every
day. A changed one for which no time was left is named, and comes first the next time.
"""

import argparse
import ast
import datetime
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "data" / "results"
CHECKED = ROOT / "data" / "checked.json"  # of each notebook that passed: key, day, seconds
# Of a kernel and the processes it starts: 1.8 is meant, so that a container of 2 GB survives it. What holds more today
# may not grow. The limits leave a tenth for other machines: in fp32 training takes that much more than in bf16, and a
# fresh clone compiles the miner, which holds 0.15 GB in 04 and 04b. Chapter 07 runs a service beside the kernel.
# Chapter 10 starts Spark, whose Java process holds up to 1.5 GB.
MOST_GB = {"02": 2.0, "03": 1.95, "04": 1.95, "05": 2.1, "06": 2.2, "07": 2.6, "10": 3.0}
MEANT_GB = 1.8
CELL_SECONDS = 1200

# What numpy 2.4 calls its kernels beyond AVX2, and the processor's flag that each needs.
NUMPY_FEATURES = {"X86_V4": "avx512f", "AVX512_ICL": "avx512_vbmi2", "AVX512_SPR": "avx512_fp16"}

# How far a result row may move from one machine, precision and seed to another, relative to its value. Counting moves
# in its last digits; what an encoder says as it came, by the rounding of bf16; what training found, by more. What the
# words alone say moves most, since without bf16 the encoder is trained for half of the steps (untaught it would lose
# three quarters). Coverage hangs on the last places of all lists, and on a weight chosen on a flat curve.
TOLERANCES = {"counted": 0.005, "encoded": 0.05, "trained": 0.15, "short": 0.15, "words": 0.3}
TOLERANCES |= {"trained coverage": 0.3, "words coverage": 0.6}
# What chapter 03 says of new links and of cold items, after eighty steps, moves by a fifth with another seed.
ANOTHER_SEED = TOLERANCES | {"short": 0.3}
SHORT = {"03_product_graph": ("link_prediction", "cold_items"), "06_explanation": ("spoken_reasons",)}
# A bundle that wins by a near tie falls by rounding too: one of a thousand baskets is 0.3 % of a row.
ENCODED = {
    "02_bert_fine_tuning": "zero_shot",
    "02b_training_methods": "ridge|no training",
    "02c_words_at_work": "pretrained",
    "04b_rules_in_depth": "pretrained",
    "05b_bundles": "affinity",
    "08_your_own_shop": "encoder|text",
    "09_trust": "attack_|ease500_epsilon|capped",
    "11_languages": "^e5|^use|wordllama|dictionary",
    "11b_reviews_and_pictures": "frozen|counted_characters",
}
WORDS = {
    "02_bert_fine_tuning": "^text",
    "02c_words_at_work": "^fine-tuned",
    "03_product_graph": "text_cosine",
    "04b_rules_in_depth": "tuned_text",
    "11_languages": "minilm",
}
TRAINED = {
    "02c_words_at_work": "^BERT",
    "03_product_graph": "graph|gcn|gat|all_three",
    "05_recommendation": "hybrid|als",
    "05b_bundles": "ranker",
    "05c_tuning_and_ablation": "",
    "05d_transformer": "set_transformer|feature_factors|als|hybrid",
    "05e_households": "hybrid|feature_factors|als",
    "06_explanation": "",
    "06b_explanations_on_trial": "",
    "07_deployment": "",
    "07b_operation": "",
    "10_scale": "als",
    "11b_reviews_and_pictures": "",
}


def worlds() -> dict[str, dict[str, str]]:
    """The variables of each world; names of kernels mean nothing where the processor is no x86."""
    found = tomllib.loads((ROOT / "tools" / "worlds.toml").read_text(encoding="utf-8"))
    if platform.machine() not in ("x86_64", "AMD64"):
        found["plain"] = {"RECUTILS_PRECISION": "fp32"}
    cpu = Path("/proc/cpuinfo")
    flags = set(cpu.read_text().split()) if cpu.exists() else set()
    own = [name for name, flag in NUMPY_FEATURES.items() if flag in flags]
    if own:  # numpy complains of a feature that the processor does not have
        found["plain"]["NPY_DISABLE_CPU_FEATURES"] = " ".join(own)
    return found


# ---------------------------------------------------------------------------------------------- result rows


def rows(folder: Path) -> dict[tuple, dict]:
    """All rows of a folder by what they measure."""
    return {
        (r["chapter"], r["model"], r["task"], r["split"], r["metric"], r["source"], r["profile"]): r
        for file in sorted(folder.glob("*.json"))
        for r in json.loads(file.read_text(encoding="utf-8"))
    }


def kind(key: tuple) -> str:
    """Which of TOLERANCES a row falls under."""
    chapter, model, task, _, metric = key[:5]
    if re.search(ENCODED.get(chapter, "^$"), model):
        return "encoded"
    for name, models in (("words", WORDS), ("trained", TRAINED)):
        if chapter in models and re.search(models[chapter], model):
            if metric.startswith("coverage"):
                return f"{name} coverage"
            return "short" if name == "trained" and task in SHORT.get(chapter, ()) else name
    return "counted"


def compare(
    kept: dict[tuple, dict],
    fresh: dict[tuple, dict],
    chapters: Iterable[str],
    tolerances: dict[str, float] = TOLERANCES,
) -> tuple[list[dict], list[str]]:
    """How far each row moved, those that moved most first; and what is wrong: rows too far off, missing, too many."""
    profiles = {r["profile"] for r in fresh.values()} or {"cpu"}
    kept = {k: r for k, r in kept.items() if k[5] == "notebook" and k[6] in profiles and k[0] in set(chapters)}
    if profiles == {"gpu"} and not kept:
        return [], []  # the first run on a GPU: its rows are there to be kept
    wrong = [f"{key}: {'missing' if key in kept else 'not kept'}" for key in sorted(kept.keys() ^ fresh.keys())]
    moved = []
    for key in kept.keys() & fresh.keys():
        before, now, of = kept[key]["value"], fresh[key]["value"], kind(key)
        by = abs(now - before) / max(abs(before), 1e-4 / tolerances[of], 1e-9)
        moved.append({"row": " ".join(key[:5]), "kind": of, "kept": before, "now": now, "by": by})
        if kept[key]["n"] != fresh[key]["n"]:
            wrong.append(f"{key}: n is {fresh[key]['n']}, kept with {kept[key]['n']}")
        if not by <= tolerances[of]:
            wrong.append(f"{key} ({of}): {now} instead of {before}, off by {by:.1%}; {tolerances[of]:.1%} are allowed")
    return sorted(moved, key=lambda r: -r["by"] / tolerances[r["kind"]]), wrong


# ---------------------------------------------------------------------------------------------- what has changed


def check_key(notebook: Path) -> str:
    """A hash of what its check depends on: code cells, checked outputs, package, data it names, own rows, pins."""
    from recutils import source_code

    cells = [c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    outputs = [cell["outputs"] for cell, tag in zip(cells, tags, strict=True) if "nbval-check-output" in tag]
    code = "\n".join(sources)
    modules = {"recutils"}
    for node in ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.M))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "recutils":
            modules |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.startswith("recutils")}
    if "subprocess" in code:  # it may start the command line, the service, and what its text names
        modules |= {"recutils.cli", "recutils.service.__main__", *re.findall(r"recutils(?:\.\w+)+", code)}
    used = sorted({line for module in modules for line in source_code.module_code(module)})
    data = [p for p in sorted((ROOT / "data").rglob("*")) if p.is_file() and p.suffix != ".md" and p != CHECKED]
    named = [p for p in data if p.parent == KEPT and p.name.split(".")[0] == notebook.stem]
    others = [p for p in data if p.parent not in (KEPT, ROOT / "data")]
    # Of a folder that the code names: the files that it names, or its own, or else all.
    for folder in {p.parent for p in others if re.search(rf"[\"'/]{p.parent.name}[\"'/]", code)}:
        inside = [p for p in others if p.parent == folder]
        named += [p for p in inside if p.name in code or p.stem == notebook.stem] or inside
    named += [p for p in others if p.name in code and p not in named]
    read = [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in sorted(named)]
    extra = re.search(r"recutils\[(\w+)\] @", code)
    depends = [list(zip(sources, tags, strict=True)), outputs, used, read, pins(extra[1] if extra else "")]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:12]


def pins(extra: str) -> list[str]:
    """The lines of constraints.txt for an extra, pytest and nbval, and for all that these require in turn."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(line, frozenset[str]()) for line in (*own[""], *own.get(extra, []), "ipykernel", "nbval", "pytest")]
    while waiting:
        line, asked_for = waiting.pop()  # and the extras of the package that requires it
        needed = Requirement(line)
        name, extras = canonicalize_name(needed.name), frozenset(needed.extras)
        applies = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *asked_for))
        if not applies or (name, extras) in found:
            continue
        found.add((name, extras))
        lines = [line for e in extras for line in own[e]] if name == "recutils" else required(name)
        waiting += [(line, extras) for line in lines]
    names = {name for name, _ in found}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if canonicalize_name(line.partition("==")[0].strip()) in names]


def required(name: str) -> list[str]:
    """What a package requires, as its metadata say; nothing where it is not installed."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def checked() -> dict[str, dict]:
    """What passed, by name of the notebook."""
    return json.loads(CHECKED.read_text(encoding="utf-8")) if CHECKED.exists() else {}


def keep(report: dict, notebooks: list[Path]) -> None:
    """Note the notebooks that passed, with all their rows."""
    passed = {run["notebook"]: run for run in report["runs"] if run["passed"]}
    found, day = checked(), datetime.date.today().isoformat()
    for notebook in notebooks:
        stem = notebook.stem
        if stem in passed and not any(f"'{stem}'" in line for line in report["wrong"]):
            found[stem] = {"key": check_key(notebook), "day": day, "seconds": round(passed[stem]["seconds"])}
    CHECKED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def in_order(notebooks: list[Path]) -> list[tuple[Path, float]]:
    """Notebooks in the order to run them where time is short, each with the seconds that it is expected to take."""
    before = checked()
    same = [n for n in notebooks if before.get(n.stem, {}).get("key") == check_key(n)]
    random.Random(datetime.date.today().toordinal()).shuffle(same)
    changed = [notebook for notebook in notebooks if notebook not in same]
    seconds = {n: before[n.stem]["seconds"] if n.stem in before else 0.0 for n in notebooks}
    return [(n, seconds[n]) for n in [*sorted(changed, key=lambda n: seconds[n]), *same]]


# ---------------------------------------------------------------------------------------------- a world


def most_gb(stem: str) -> float:
    """How much memory a notebook may hold."""
    return MOST_GB.get(stem[:2], MEANT_GB)


def check_notebook(notebook: Path, environment: dict[str, str]) -> dict:
    """nbval over one notebook: did it pass, what it said, its time and memory."""
    from measure import Watch

    seconds = 6 * CELL_SECONDS if environment.get("RECUTILS_PROFILE") == "gpu" else CELL_SECONDS
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider"]
    command += [f"--nbval-cell-timeout={seconds}", "--no-header", str(notebook)]
    with Watch() as watch:
        run = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    most = most_gb(notebook.stem)
    passed = run.returncode == 0 and watch.peak_gb <= most
    said = run.stdout[-6000:] + run.stderr[-2000:]
    if watch.peak_gb > most:
        said += f"\n{notebook.stem} held {watch.peak_gb:.2f} GB; {most} are allowed.\n"
    found = {"notebook": notebook.stem, "passed": passed, "seconds": round(watch.seconds, 1)}
    return {**found, "peak_gb": round(watch.peak_gb, 2), "said": said}


def pace(runs: list[dict]) -> float:
    """How many times as long this machine takes as the one that noted the times."""
    known = [run for run in runs if run["notebook"] in checked()]
    noted = sum(checked()[run["notebook"]]["seconds"] for run in known)
    return sum(run["seconds"] for run in known) / noted if noted else 1.0


def check_world(name: str, notebooks: list[Path], own: dict[str, str], fresh_cache: bool) -> dict:
    """Every notebook in one world, and its result rows beside the kept ones."""
    place = ROOT / "_build" / "worlds" / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    environment = {**os.environ, **own, "RECUTILS_RESULTS": str(place / "results")}
    if fresh_cache:
        environment["RECUTILS_CACHE"] = str(place / "cache")
    print(f"{name}: {' '.join(f'{k}={v}' for k, v in own.items()) or 'as it is here'}", flush=True)
    minutes = float(os.environ.get("RECUTILS_CHECK_MINUTES") or math.inf)
    runs: list[dict] = []
    start, left = time.monotonic(), []
    for notebook, expected in [(n, 0.0) for n in notebooks] if minutes == math.inf else in_order(notebooks):
        if time.monotonic() - start + expected * pace(runs) > 60 * minutes:
            left.append(notebook)
            continue
        run = check_notebook(notebook, environment)
        state = "passed" if run["passed"] else "FAILED"
        print(f"  {run['notebook']:<30} {run['seconds']:>7.1f} s {run['peak_gb']:>6.2f} GB  {state}", flush=True)
        if not run["passed"]:
            print(run["said"], flush=True)
        runs.append(run)
    for notebook in left:
        known = checked().get(notebook.stem, {"key": ""})
        same = known["key"] == check_key(notebook)
        what = f"unchanged since it passed on {known['day']}" if same else "CHANGED AND NOT CHECKED: run it by hand"
        print(f"  {notebook.stem:<30} no time left; {what}", flush=True)
    stems = [run["notebook"] for run in runs]
    tolerances = ANOTHER_SEED if "RECUTILS_SEED" in environment else TOLERANCES
    moved, wrong = compare(rows(KEPT), rows(place / "results"), stems, tolerances)
    shutil.rmtree(place / "cache", ignore_errors=True)
    report = {"world": name, "runs": runs, "tolerances": tolerances, "moved": moved, "wrong": wrong}
    (place / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def table(report: dict) -> str:
    """What moved most in a world, three rows of each kind, and what is wrong there."""
    total = sum(run["seconds"] for run in report["runs"])
    peak = max((run["peak_gb"] for run in report["runs"]), default=0.0)
    text = f"\n{report['world']}: {len(report['runs'])} notebooks, {total / 60:.1f} min, at most {peak:.2f} GB\n"
    for of, most in report["tolerances"].items():
        some = [row for row in report["moved"] if row["kind"] == of]
        text += f"  {of}: {len(some)} rows, allowed {most:.1%}\n"
        for row in some[:3]:
            text += f"    {row['by']:6.2%}  {row['row']}: {row['kept']:.4f} -> {row['now']:.4f}\n"
    return text + "".join(f"  WRONG {line}\n" for line in report["wrong"])


def main() -> None:
    """Run what the command line asks for; exit with 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", choices=[*worlds(), []], help="none: the world of the environment")
    parser.add_argument("--export", choices=worlds(), help="print the variables of this world for a shell")
    parser.add_argument("--only", default="", help="the start of the names of the notebooks wanted, such as 04")
    parser.add_argument("--keep", action="store_true", help="note in data/checked.json what passed")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks")
    options = parser.parse_args()
    if options.export:
        variables = {**worlds()[options.export], "RECUTILS_WORLD": options.export}
        print("\n".join(f"export {name}='{value}'" for name, value in variables.items()))
        return
    notebooks = sorted(options.notebooks.glob(f"{options.only}*.ipynb"))
    here = os.environ.get("RECUTILS_WORLD", "home")
    reports = [check_world(name, notebooks, worlds()[name], True) for name in options.worlds]
    reports = reports or [check_world(here, notebooks, {}, False)]
    print("".join(map(table, reports)))
    if options.keep:
        keep(reports[0], notebooks)
    sys.exit(int(any(r["wrong"] or not all(run["passed"] for run in r["runs"]) for r in reports)))


if __name__ == "__main__":
    main()
