"""Pairs of items in 10^5 to 10^8 generated receipt lines, by each engine of chapter 10: time and peak memory.

`make bench`, or `python tests/benchmarks/scale.py [LINES ...]`. The generator and the engines are chapter 10's own,
taken from its cells. Each engine works in a process of its own on one core; its time is that of the processor (`cpu s`,
which holds on a busy machine; `seconds` passed meanwhile), its memory is the most that it and its
children held at once (sampled every 50 ms). It is ended above 6 GB or after half an hour, which is kept as its result.
Results go to data/benchmarks/scale.json as they come; what stands there already of the same code is not measured again.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from recutils import data

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from chapter import definitions, plain_code  # noqa: E402

KEPT = ROOT / "data" / "benchmarks" / "scale.json"
SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
SUPPORT, PER_PART = 0.001, 500_000  # baskets a file
LIMIT_GB, LIMIT_S = 6.0, 1800
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"), "1")


def chapter(*names: str) -> dict:
    """Functions of chapter 10 by name."""
    return vars(definitions("10_scale", *names))


def engines() -> dict:
    """Chapter 10's engines by name, Spark the last: its time includes that of starting it."""
    own = chapter("PAIR_ENGINES", "pairs_by_spark")
    return own["PAIR_ENGINES"] | {"Spark": own["pairs_by_spark"]}


def fingerprint(engine: str) -> str:
    """A hash of the code that an engine's measurement depends on: the generator's, the files', the engine's."""
    names = ("generate_baskets", "take_a_step", "write_part", "read_part", "KEEP", "PAIRS_SQL")
    own = chapter(*names, "spark_pair_counts", "count_pairs_of_task")
    parts = [plain_code(own[name]) for name in ("generate_baskets", "take_a_step", "write_part", "read_part")]
    parts += [str(own["KEEP"]), own["PAIRS_SQL"] if engine == "duckdb" else "", plain_code(engines()[engine])]
    if engine == "Spark":
        parts += [plain_code(own[name]) for name in ("spark_pair_counts", "count_pairs_of_task")]
    parts += [str(SUPPORT), str(PER_PART)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def generate(folder: Path, n_lines: int) -> tuple[int, int]:
    """About `n_lines` lines in files of at most PER_PART baskets; the numbers of baskets and of lines."""
    code = chapter("generate_baskets", "write_part")
    rows = data.time_split(data.load_store()).train.matrix
    n_baskets = round(n_lines / rows.nnz * rows.shape[0])
    rng = np.random.default_rng(0)
    lines = 0
    for number, start in enumerate(range(0, n_baskets, PER_PART)):
        part = code["generate_baskets"](rows, min(PER_PART, n_baskets - start), rng)
        code["write_part"](folder / f"part-{number:05}.parquet", part, start)
        lines += part.nnz
    (folder / "n_items").write_text(str(rows.shape[1]))
    return n_baskets, lines


def one(engine: str, folder: Path) -> None:
    """In the child: run an engine, print its seconds, its number of pairs and a checksum."""
    work = engines()[engine]
    files, n_items = sorted(folder.glob("*.parquet")), int((folder / "n_items").read_text())
    if "miner" in engine:  # the compiler's second, or its cache
        chapter("pairs_by_miner")["rules"].mine_itemsets([[0, 1], [0, 1]], 0.5, 2)
    start, used = time.perf_counter(), processor_seconds()
    found = work(files, n_items, SUPPORT)
    seconds, used = time.perf_counter() - start, processor_seconds() - used
    checksum = int((((found["a"] * 1_000_003 + found["b"]) * 1_000_003 + found["n"]) % (2**61 - 1)).sum() % (2**61))
    print(
        json.dumps(
            {"cpu s": round(used, 2), "seconds": round(seconds, 2), "pairs": len(found), "checksum": str(checksum)}
        )
    )


def processor_seconds() -> float:
    """Of this process and its children so far: what it takes, whatever else the machine does."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measure(engine: str, folder: Path) -> dict:
    """Run an engine in a process of its own and watch its memory and time."""
    command = [sys.executable, __file__, "--one", engine, "--folder", str(folder)]
    environment = os.environ | ONE_CORE
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, text=True, env=environment)
        peak, stopped, start = 0.0, None, time.monotonic()
        while child.poll() is None:
            peak = max(peak, held(child.pid))
            stopped = "memory" if peak > LIMIT_GB else "time" if time.monotonic() - start > LIMIT_S else None
            if stopped:
                end(child.pid)
                child.wait()
                break
            time.sleep(0.05)
        output.seek(0)
        lines = output.read().splitlines()
    if stopped or child.returncode:
        return {"stopped": stopped or "failed", "after": round(time.monotonic() - start), "peak GB": round(peak, 2)}
    return json.loads(lines[-1]) | {"peak GB": round(peak, 2)}


def held(pid: int) -> float:
    """Resident memory in GB of a process and its children."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(p.memory_info().rss for p in family) / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def end(pid: int) -> None:
    """End a process that this script has started, and its children."""
    for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
        process.kill()


def main() -> None:
    """Measure what is missing; fail where two engines disagree."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("sizes", type=int, nargs="*", default=SIZES)
    arguments.add_argument("--engines", nargs="*")
    arguments.add_argument("--one")
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    if given.one:
        return one(given.one, given.folder)
    rows = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    for size in given.sizes:
        todo = [e for e in given.engines or engines() if not known(rows, size, e)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as name:
            n_baskets, n_lines = generate(Path(name), size)
            on_disk = sum(f.stat().st_size for f in Path(name).glob("*.parquet"))
            for engine in todo:
                row = {"size": size, "baskets": n_baskets, "lines": n_lines, "MB on disk": round(on_disk / 1e6)}
                row |= {"engine": engine, "code": fingerprint(engine)} | measure(engine, Path(name))
                print(row, flush=True)
                rows = [r for r in rows if (r["size"], r["engine"]) != (size, engine)] + [row]
                rows.sort(key=lambda r: (r["size"], list(engines()).index(r["engine"])))
                KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for size in {r["size"] for r in rows}:
        sums = {(r["pairs"], r["checksum"]) for r in rows if r["size"] == size and "pairs" in r}
        assert len(sums) <= 1, f"the engines disagree at {size} lines: {sums}"


def known(rows: list[dict], size: int, engine: str) -> bool:
    """Whether this is measured already, with the same code."""
    own = [r for r in rows if (r["size"], r["engine"], r["code"]) == (size, engine, fingerprint(engine))]
    return any("cpu s" in r or "stopped" in r for r in own)


if __name__ == "__main__":
    main()
