"""Mining against its peers, in one run on this machine: the same itemsets, time as ratios, extra memory.

`make bench` prints the table. Each measurement runs in a process of its own, so that its memory can be seen;
times are the best of three. PyFIM's `eclat` is C.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from scipy import sparse

from recutils import data

SCRIPT = r"""
import re, sys, time
import pandas as pd
from scipy import sparse
file, method, support, longest = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]) or None
x = sparse.load_npz(file)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
before = peak()
if method == "recutils":
    from recutils.rules import frequent_itemsets
    mine = lambda: frequent_itemsets(x, support, longest)
    rows = lambda found: zip(found["itemset"], found["count"])
elif method == "mlxtend fpgrowth":
    from mlxtend.frequent_patterns import fpgrowth
    table = pd.DataFrame.sparse.from_spmatrix(x.astype(bool))
    mine = lambda: fpgrowth(table, support, max_len=longest)
    rows = lambda found: zip(found["itemsets"], (found["support"] * x.shape[0]).round())
else:
    import fim
    from recutils.rules import _min_count
    baskets = [x.indices[a:b].tolist() for a, b in zip(x.indptr, x.indptr[1:])]
    mine = lambda: fim.eclat(baskets, supp=-_min_count(support, x.shape[0]), zmin=1, zmax=longest or -1, report="a")
    rows = lambda found: ((frozenset(items), count) for items, count in found)
seconds = []
for _ in range(1 if method.startswith("mlxtend") else 3):
    start = time.perf_counter()
    found = mine()
    seconds.append(time.perf_counter() - start)
memory = peak() - before
print(len(found), min(seconds), memory, sum(hash((itemset, int(count))) for itemset, count in rows(found)))
"""
CASES = [(0.001, 2), (0.0003, 2), (0.001, 5), (0.0003, 5), (0.0001, 5)]
METHODS = ["recutils", "mlxtend fpgrowth", "PyFIM eclat (C)"]


def measure(file: Path, method: str, support: float, longest: int) -> tuple[int, float, float, str]:
    """How many itemsets, how many seconds, how many MB on top, and a checksum of the itemsets with their counts."""
    command = [sys.executable, "-c", SCRIPT, str(file), method, str(support), str(longest)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(out[0]), float(out[1]), float(out[2]), out[3]


def main() -> None:
    """Measure every case and print the table; fail where the itemsets or their counts differ."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.npz"
        sparse.save_npz(file, data.time_split(data.load_store()).train.matrix)
        for support, longest in CASES:
            for method in METHODS:
                if method.startswith("mlxtend") and support < 0.0003:
                    continue
                rows.append((support, longest, method, *measure(file, method, support, longest)))
    table = pd.DataFrame(rows, columns=["support", "longest", "method", "itemsets", "seconds", "MB", "checksum"])
    ours = table[table["method"] == "recutils"].set_index(["support", "longest"])["seconds"]
    table["times ours"] = (
        table["seconds"] / ours.loc[pd.MultiIndex.from_frame(table[["support", "longest"]])].to_numpy()
    )
    print(table.drop(columns="checksum").to_string(index=False, float_format="{:.4g}".format))
    assert (table.groupby(["support", "longest"])["checksum"].nunique() == 1).all(), "the miners disagree"


if __name__ == "__main__":
    main()
