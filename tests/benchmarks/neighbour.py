"""A training step alone and beside one busy process, and the same for the other libraries that have threads.

    python tests/benchmarks/neighbour.py

Each line is a process of its own; "as shipped" lets PyTorch's and LightGBM's threads wait as they would by themselves.
"""

import os
import subprocess
import sys

CODE = {
    "encoder, a training step of 128 texts (PyTorch)": """
from recutils import data, text
split = data.time_split(data.load_store())
encoder, texts = text.load_encoder(), data.item_text(split.items).to_list()
last = [time.perf_counter()]
def callback(step):
    took.append(time.perf_counter() - last[0])
    last[0] = time.perf_counter()
    return False
text.fine_tune(encoder, texts, split.train.matrix, text.TrainingSettings(steps=10), callback=callback)
""",
    "100 boosted trees on 100,000 rows (LightGBM)": """
import lightgbm, numpy as np
rng = np.random.default_rng(0)
x, y = rng.random((100_000, 30)), rng.random(100_000)
for _ in range(3):
    start = time.perf_counter()
    lightgbm.LGBMRegressor(n_estimators=100, n_jobs=2, verbose=-1).fit(x, y)
    took.append(time.perf_counter() - start)
""",
    "inverse of 4,000 x 4,000 (OpenBLAS)": """
import numpy as np
matrix = np.random.default_rng(0).random((4000, 4000), dtype=np.float32) + 4000 * np.eye(4000, dtype=np.float32)
for _ in range(3):
    start = time.perf_counter()
    np.linalg.inv(matrix)
    took.append(time.perf_counter() - start)
""",
    "all itemsets at 0.0001 (numba, one thread)": """
from recutils import data, rules
matrix = data.time_split(data.load_store()).train.matrix
for _ in range(3):
    start = time.perf_counter()
    rules.frequent_itemsets(matrix, 0.0001, max_len=5)
    took.append(time.perf_counter() - start)
""",
}
FRAME = "import time, statistics\nimport recutils\ntook = []\n{}\nprint(statistics.median(took[1:]))"


def seconds(code: str, **variables: str) -> float:
    """The median time that a script took for its piece of work, without the first."""
    command = [sys.executable, "-W", "ignore", "-c", FRAME.format(code)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **variables})
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    shipped = {"GOMP_SPINCOUNT": "300000" if sys.platform == "linux" else ""}  # libgomp's own default is of that kind
    print(f"{'':<52}{'alone':>8}{'beside one':>12}{'ratio':>7}   as shipped:{'alone':>8}{'beside one':>12}{'ratio':>7}")
    for name, code in CODE.items():
        line = f"{name:<52}"
        for variables in ({}, shipped):
            alone = seconds(code, **variables)
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                beside = seconds(code, **variables)
            finally:
                busy.kill()
                busy.wait()
            line += f"{alone:>8.2f}{beside:>12.2f}{beside / alone:>7.1f}" + ("              " if not variables else "")
        print(line, flush=True)


if __name__ == "__main__":
    main()
