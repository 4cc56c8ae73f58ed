"""The small made-up shop in data/sample: what it is and how it was drawn. `python tests/sample.py` writes it again."""

from pathlib import Path

import numpy as np
import pandas as pd

FOLDER = Path(__file__).resolve().parent.parent / "data" / "sample"
KINDS = ["bread", "butter", "milk", "jam", "pasta", "sauce", "cheese", "tea", "biscuit", "soap"]
COMPANIONS = {4: 5, 7: 8, 0: 1}  # pasta brings sauce, tea brings biscuit, bread brings butter


def draw(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`transactions` and `items`: 20 weeks, 40 households, 30 items in 10 kinds, 3 planted companions."""
    rng = np.random.default_rng(seed)
    items = pd.DataFrame({"item_id": [f"i{n:02d}" for n in range(30)]})
    items["department"] = ["household" if n % 10 == 9 else "food" for n in range(30)]
    items["name"] = [f"{KINDS[n % 10]} {['small', 'large', 'organic'][n // 10]}" for n in range(30)]
    weight = 1 / (1 + np.arange(30))
    taste = rng.dirichlet(0.3 + 30 * weight / weight.sum(), size=40)
    rows = []
    for basket in range(600):
        household = int(rng.integers(40))
        day = pd.Timestamp("2024-01-01") + pd.Timedelta(minutes=int(rng.integers(20 * 7 * 24 * 60)))
        chosen = set(rng.choice(30, size=rng.integers(1, 7), replace=False, p=taste[household]).tolist())
        for cause, effect in COMPANIONS.items():
            if cause in chosen and rng.random() < 0.8:
                chosen.add(effect)
        for item in sorted(chosen):
            quantity, price = int(rng.integers(1, 4)), round(float(1 + item % 7 + rng.random()), 2)
            rows.append((f"b{basket:03d}", f"h{household:02d}", f"i{item:02d}", day, quantity, price))
    columns = ["basket_id", "household_id", "item_id", "timestamp", "quantity", "price"]
    return pd.DataFrame(rows, columns=columns), items


def write(folder: Path) -> None:
    """Both tables as csv files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(("transactions", "items"), draw(), strict=True):
        table.to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__":
    write(FOLDER)
