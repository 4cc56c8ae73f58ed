"""Mining against its peers, in one run on this machine: the same itemsets, time as ratios, extra memory.

`make bench` prints three tables and keeps them in data/benchmarks/mining.json, which chapter 04b shows. Each of them
runs in a process of its own, so that its memory can be seen; times are the best of three (mlxtend, rusket and the ten
millions: once), and every method hands over a Python object an itemset, except for the row `arrays`. PyFIM's `eclat` is
C, rusket is Rust. The second table repeats the store with resampled households up to a million baskets, the third goes
to ten millions, in parts that hold a million each.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from recutils import data

SCRIPT = r"""
import re, sys, time
import pandas as pd
from scipy import sparse
from recutils import rules
file, method, support, longest = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]) or None
x = sparse.load_npz(file)
n_baskets = x.shape[0]
if method == "ours, arrays" or method == "ours":
    rules.mine_itemsets(x[:1000], 0.1)  # the compiler's second or its cache, and its memory, before we look
    mine = lambda: rules.frequent_itemsets(x, support, longest)
    rows = lambda found: zip(found["itemset"], found["count"])
    if method == "ours, arrays":
        mine = lambda: rules.mine_itemsets(x, support, longest)
        rows = lambda found: rows_of(found.to_frame())
        rows_of = lambda table: zip(table["itemset"], table["count"])
elif method == "mlxtend fpgrowth":
    from mlxtend.frequent_patterns import fpgrowth
    table = pd.DataFrame.sparse.from_spmatrix(x.astype(bool))
    mine = lambda: fpgrowth(table, support, max_len=longest)
    rows = lambda found: zip(found["itemsets"], (found["support"] * x.shape[0]).round())
elif method == "rusket (Rust)":
    import numpy as np
    import rusket
    table = x.astype(np.uint8)
    mine = lambda: rusket.mine(table, support, max_len=longest, use_colnames=False, method="fpgrowth")
    pairs_of = lambda found: zip(found["itemsets"], found["support"])
    rows = lambda found: ((frozenset(map(int, s)), round(v * x.shape[0])) for s, v in pairs_of(found))
elif method == "ours, parts":
    size = 1_000_000
    rules.mine_itemsets(x[:1000], 0.1)
    whole, x = x, None
    parts = lambda: (whole[start : start + size] for start in range(0, whole.shape[0], size))
    mine = lambda: rules.frequent_in_partitions(parts, support, longest)
    rows = lambda found: zip(found["itemset"], found["count"])
else:
    import fim
    from recutils.rules.association import min_count_of
    baskets = [x.indices[a:b].tolist() for a, b in zip(x.indptr, x.indptr[1:])]
    count = min_count_of(support, x.shape[0])
    mine = lambda: fim.eclat(baskets, supp=-count, zmin=1, zmax=longest or -1, report="a")
    rows = lambda found: ((frozenset(items), count) for items, count in found)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
seconds = []
for _ in range(1 if method.startswith(("mlxtend", "rusket")) or n_baskets > 2_000_000 else 3):
    found = None
    start = time.perf_counter()
    found = mine()
    seconds.append(time.perf_counter() - start)
memory = peak() - before
check = 0 if longest is None else sum(hash((itemset, int(count))) for itemset, count in rows(found))
print(len(found), min(seconds), memory, peak(), check)
"""
OURS, MLXTEND, FIM, RUST = ["ours", "ours, arrays"], "mlxtend fpgrowth", "PyFIM eclat (C)", "rusket (Rust)"
KEPT = Path(__file__).parents[2] / "data" / "benchmarks" / "mining.json"
COLUMNS = ["itemsets", "seconds", "MB on top", "MB in all", "checksum"]


def measure(file: Path, method: str, support: float, longest: int) -> dict[str, float | str]:
    """How many itemsets, how many seconds, MB on top and in all, and a checksum of the itemsets with their counts."""
    command = [sys.executable, "-c", SCRIPT, str(file), method, repr(support), str(longest)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(COLUMNS, [int(out[0]), *map(float, out[1:4]), out[4]], strict=True))


def many_baskets(train: data.Baskets, n: int) -> sparse.csr_matrix:
    """About `n` baskets: households drawn with replacement, each with all of its baskets."""
    rng = np.random.default_rng(0)
    own = pd.Series(np.arange(len(train))).groupby(train.households).agg(list)
    drawn = own.iloc[rng.integers(len(own), size=int(n / len(train) * len(own)) + 1)]
    return train.matrix[np.concatenate([np.array(rows) for rows in drawn])[:n]]


def small_cases(folder: Path, train: data.Baskets) -> pd.DataFrame:
    """The store at three supports and two lengths, dense random baskets, and Groceries where it lies."""
    shared = Path(__file__).parents[3] / "shared" / "data" / "groceries_baskets.csv"
    n = train.matrix.shape[0]
    files = {name: folder / f"{name}.npz" for name in ("store", "dense", "groceries")}
    sparse.save_npz(files["store"], train.matrix)
    dense = np.random.default_rng(0).random((3000, 40)) < np.linspace(0.15, 0.75, 40)
    sparse.save_npz(files["dense"], sparse.csr_matrix(dense, dtype=np.float32))
    cases = [("store", 0.003, 5), ("store", 0.001, 5), ("store", 0.0003, 5), ("store", 0.0001, 5), ("store", 10 / n, 0)]
    cases.append(("dense", 0.05, 6))
    if shared.exists():
        cases.append(("groceries", 0.001, 0))
        items = pd.Series(shared.read_text(encoding="utf-8").splitlines()).str.get_dummies(",")
        sparse.save_npz(files["groceries"], sparse.csr_matrix(items.to_numpy(), dtype=np.float32))
    rows = []
    for name, support, longest in cases:
        methods = [*OURS, MLXTEND, FIM, RUST]
        if name == "store" and support < 0.0003:  # minutes for the others
            methods = [*OURS, FIM]
        if name == "store" and not longest:  # as sets, 13.8 million would take more than ten gigabytes, whose ever
            methods = [OURS[1], FIM]
        for method in methods:
            case = {"data": name, "support": support, "longest": longest or "any", "method": method}
            rows.append(case | measure(files[name], method, support, longest))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def large_cases(folder: Path, train: data.Baskets, sizes: list[int], methods: list[str]) -> pd.DataFrame:
    """Resampled households, at a support of one in a thousand, up to five items."""
    rows = []
    for size in sizes:
        file = folder / "large.npz"
        sparse.save_npz(file, many_baskets(train, size), compressed=False)
        for method in methods:
            rows.append({"baskets": size, "method": method} | measure(file, method, 0.001, 5))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    """Measure every case, print and keep the tables; fail where the itemsets or their counts differ."""
    train = data.time_split(data.load_store()).train
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = {
            "cases": (small_cases(folder, train), ["data", "support", "longest"]),
            "growing": (large_cases(folder, train, [250_000, 500_000, 1_000_000], [OURS[0], FIM, RUST]), ["baskets"]),
            "ten millions": (large_cases(folder, train, [10_000_000], [OURS[0], "ours, parts"]), ["baskets"]),
        }
    kept = {}
    for title, (table, key) in tables.items():
        table["times ours"] = table["seconds"] / table.groupby(key)["seconds"].transform("first")
        for case, group in table.groupby(key):
            assert group["checksum"].nunique() == 1 and group["itemsets"].nunique() == 1, f"miners disagree on {case}"
        table = table.drop(columns="checksum")
        print(table.to_string(index=False, float_format="{:.4g}".format), "\n")
        kept[title] = json.loads(table.round(3).to_json(orient="records"))
    assert tables["growing"][0].query("method == 'ours'")["MB in all"].max() < 4000
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
