"""Twenty million receipt lines through `recutils report`: time and peak memory (`python tests/benchmarks/lines.py`).

`write_lines` makes a csv file of about 50 bytes a line; the file lies in a folder of its own and is removed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

PER_BASKET, N_ITEMS = 8, 5000


def write_lines(file: Path, n_lines: int, seed: int = 0) -> None:
    """`n_lines` lines of a year, eight a basket, 5,000 products with a long tail, some of which bring the next."""
    rng = np.random.default_rng(seed)
    weight = 1 / (10 + np.arange(N_ITEMS))
    for start in range(0, n_lines, 1_000_000):
        n = min(1_000_000, n_lines - start)
        basket = (start + np.arange(n)) // PER_BASKET
        item = rng.choice(N_ITEMS, size=n, p=weight / weight.sum())
        beside = (np.arange(n) % PER_BASKET == 1) & (rng.random(n) < 0.3)
        item[beside] = (np.roll(item, 1)[beside] + 1) % N_ITEMS
        second = basket * (365 * 86_400 * PER_BASKET // max(n_lines, PER_BASKET))
        moment = np.datetime64("2024-01-01T08:00:00") + second.astype("timedelta64[s]")
        columns = {
            "receipt": basket,
            "customer": (basket * 7919) % max(n_lines // 400, 10),
            "sku": item,
            "date": moment,
            "qty": 1 + item % 3,
            "price": 1 + (item % 700) / 100,
        }
        table = pa.table(columns)
        if start == 0:
            out = pyarrow.csv.CSVWriter(file, table.schema)
        out.write_table(table)
    out.close()


def main(n_lines: int) -> None:
    """Write, report, say how long and how much memory it took."""
    with tempfile.TemporaryDirectory() as scratch:
        write_lines(Path(scratch) / "sales.csv", n_lines)
        size = (Path(scratch) / "sales.csv").stat().st_size
        code = (
            "import sys; from recutils.cli import main; status = main(sys.argv[1:]); "
            "print(*[l for l in open('/proc/self/status') if 'VmHWM' in l]); sys.exit(status)"
        )
        start = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-c", code, "report", scratch], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - start
        print(run.stderr, run.stdout, sep="\n")
        peak = int(run.stdout.split("VmHWM:")[1].split()[0]) / 1024**2
        print(f"{n_lines:,} lines ({size / 1e9:.2f} GB): {seconds:.0f} s, peak {peak:.2f} GB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000)
