"""Which products belong together, which replace each other, and which make a bundle, with their evidence."""

import numpy as np
import pandas as pd
from scipy import sparse, stats

from recutils.bundles import BundleConstraints, BundleError, make_bundle, pair_affinity
from recutils.data.schema import Baskets, Split
from recutils.models.base import top_k
from recutils.rules.measures import pair_counts, shrunk_log_lift
from recutils.shop.periods import together
from recutils.shop.words import kind_labels, same_thing

EVERYWHERE = 0.3  # an item in more of the baskets goes with everything
LEVEL = 0.05  # of the tests, all pairs together
RULE_COLUMNS = [
    "left", "right", "baskets", "of_left", "of_right", "households", "chance", "lift", "later", "later_chance",
    "held", "advice",
]  # fmt: skip


def meeting_rate(matrix: sparse.csr_matrix) -> float:
    """K in E_ij = n_i n_j K: in how many baskets two items would meet by chance.

    K = sum s (s - 1) / (sum s)^2 over the sizes s of the baskets: large baskets bring anything together, and 1 / N,
    the chance that the usual lift is held against, forgets that.
    """
    sizes = np.diff(matrix.indptr).astype(float)
    return float((sizes * (sizes - 1)).sum() / max(sizes.sum() ** 2, 1.0))


def find_rules(split: Split, n: int = 20) -> pd.DataFrame:
    """At most `n` pairs that are bought together more often than chance, each with its evidence.

    Found in `split.train`, held against validation and test together. A row a pair: `left` -> `right` (columns of
    the split), `baskets` that hold both, `of_left`, `of_right` (baskets of each), `households` (-1: unknown),
    `chance` (expected baskets, see `meeting_rate`), `lift` = baskets / chance; `later`, `later_chance`; `held`:
    `yes` (beats chance there too), `no` (does not, and falls behind what was found), else `too few` to tell; `advice`:
    what to do.

    A pair has to beat chance by a Poisson test at `LEVEL`, divided by the number of all pairs. No item is in more than
    two, no two variants of one thing are paired, no pair of kinds comes twice, three pairs a couple of departments.
    """
    train, later = split.train, together(split.validation, split.test)
    found = _ranked_pairs(train.matrix)
    names = split.items["name"].to_list()
    departments = split.items["department"].to_list() if "department" in split.items else None
    chosen = _spread(found, names, departments, n)
    rate, sold = meeting_rate(later.matrix), np.asarray(later.matrix.sum(axis=0)).ravel()
    rows = [_evidence(pair, train, later, rate * sold[pair.a] * sold[pair.b]) for pair in chosen]
    return pd.DataFrame([{**row, "advice": advice(row, names)} for row in rows], columns=RULE_COLUMNS)


def _ranked_pairs(matrix: sparse.csr_matrix) -> pd.DataFrame:
    """Pairs a, b that beat chance, those that chance explains least first."""
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    counts = sparse.triu(pair_counts(matrix), k=1).tocoo()
    usual = sold <= EVERYWHERE * matrix.shape[0]
    keep = (counts.data >= 5) & usual[counts.row] & usual[counts.col]
    a, b, both = counts.row[keep], counts.col[keep], counts.data[keep].astype(float)
    chance = sold[a] * sold[b] * meeting_rate(matrix)
    n_pairs = max(len(sold) * (len(sold) - 1) / 2, 1)
    sure = stats.poisson.sf(both - 1, chance) < LEVEL / n_pairs
    table = pd.DataFrame({"a": a, "b": b, "both": both, "chance": chance})[sure & (both > 1.2 * chance)]
    table["gain"] = table["both"] * np.log(table["both"] / table["chance"])
    table["of_a"], table["of_b"] = sold[table["a"]], sold[table["b"]]
    return table.sort_values(["gain", "a", "b"], ascending=[False, True, True], ignore_index=True)


def _spread(found: pd.DataFrame, names: list[str], departments: list[str] | None, n: int) -> list:
    """The first `n` pairs that differ from each other."""
    chosen: list = []
    uses: dict[int, int] = {}
    couples: dict[frozenset, int] = {}
    for pair in found.head(5000).itertuples():
        couple = frozenset([departments[pair.a], departments[pair.b]]) if departments else frozenset()
        if len(chosen) == n:
            break
        if uses.get(pair.a, 0) > 1 or uses.get(pair.b, 0) > 1 or same_thing(names[pair.a], names[pair.b]):
            continue
        if departments and couples.get(couple, 0) >= 3:
            continue
        if any(_alike(pair, other, names) for other in chosen):
            continue
        chosen.append(pair)
        couples[couple] = couples.get(couple, 0) + 1
        uses[pair.a], uses[pair.b] = uses.get(pair.a, 0) + 1, uses.get(pair.b, 0) + 1
    return chosen


def _alike(one, other, names: list[str]) -> bool:
    """Do two pairs pair the same two kinds of thing?"""
    a, b, c, d = (names[i] for i in (one.a, one.b, other.a, other.b))
    return (_same(a, c) and _same(b, d)) or (_same(a, d) and _same(b, c))


def _same(one: str, other: str) -> bool:
    return one == other or same_thing(one, other)


def _evidence(pair, train: Baskets, later: Baskets, later_chance: float) -> dict:
    """The rule from the rarer item to the other one, and its counts in both periods."""
    left, right = (pair.a, pair.b) if pair.of_a <= pair.of_b else (pair.b, pair.a)
    rows = _rows_of_both(train.matrix, left, right)
    known = train.households[rows]
    later_both = len(_rows_of_both(later.matrix, left, right))
    households = len(np.unique(known[known >= 0])) if (train.households >= 0).any() else -1
    beaten = stats.poisson.sf(later_both - 1, max(later_chance, 1e-9)) < LEVEL
    weaker = stats.poisson.cdf(later_both, later_chance * pair.both / pair.chance) < LEVEL
    return {
        "left": int(left),
        "right": int(right),
        "baskets": int(pair.both),
        "of_left": int(min(pair.of_a, pair.of_b)),
        "of_right": int(max(pair.of_a, pair.of_b)),
        "households": households,
        "chance": float(pair.chance),
        "lift": float(pair.both / pair.chance),
        "later": later_both,
        "later_chance": float(later_chance),
        "held": "yes" if beaten else "no" if weaker else "too few",
    }


def _rows_of_both(matrix: sparse.csr_matrix, a: int, b: int) -> np.ndarray:
    """The baskets that hold both items."""
    return np.flatnonzero(matrix[:, [a, b]].sum(axis=1).A1 == 2)


def advice(rule: dict, names: list[str]) -> str:
    """What to do about a pair, in a sentence with its numbers."""
    left, right = names[rule["left"]], names[rule["right"]]
    forth, back = rule["baskets"] / rule["of_left"], rule["baskets"] / rule["of_right"]
    if rule["held"] == "no":
        return f"Wait: in the later weeks {left} and {right} met no more often than by chance. Look again next month."
    if rule["later_chance"] == 0:
        return f"Wait: {left} or {right} was not sold in the later weeks. Where both come back, place them together."
    if forth >= 0.4 and back >= 0.4:
        return (
            f"Do not discount both: {forth:.0%} of those who buy {left} take {right} anyway, and {back:.0%} the other "
            f"way round. A lower price for one of them sells the other too."
        )
    if forth >= 1.5 * back:
        return f"Offer {right} to those who buy {left}: {forth:.0%} of them take it already."
    return f"Place {left} and {right} together: each is in {back:.0%} to {forth:.0%} of the other's baskets."


def best_sellers(split: Split, vectors: np.ndarray, n: int = 8) -> pd.DataFrame:
    """Companions and substitutes of the most sold items: `item`, `companions`, `substitutes` (lists of columns).

    A companion is bought with it more often than chance would have it, in five baskets at least; those come first
    that chance explains least. A substitute is alike in words (`vectors`, unit rows) or in company, and is met in the
    same basket less often than chance: a suggestion to look at, since nobody saw what was not on the shelf.
    """
    matrix = split.train.matrix
    sold, counts = np.asarray(matrix.sum(axis=0)).ravel(), pair_counts(matrix).tocsr()
    rate, names = meeting_rate(matrix), split.items["name"].to_list()
    affinity = pair_affinity(matrix)
    company = _unit(affinity)
    rows = []
    for item in np.argsort(-sold, kind="stable")[:n]:
        chance = sold[item] * sold * rate
        both = counts[item].toarray().ravel()
        sure = stats.poisson.sf(both - 1, chance) < LEVEL / len(sold)
        gain = np.where((both >= 5) & sure, both * shrunk_log_lift(both, chance), -np.inf)
        gain[(sold > EVERYWHERE * matrix.shape[0]) | (np.arange(len(sold)) == item)] = -np.inf
        alike = vectors @ vectors[item] + (company @ company[item].T).toarray().ravel()
        alike[(both >= 0.8 * chance) | (chance < 5) | (alike < 0.3)] = -np.inf
        alike[item] = -np.inf
        near, other = top_k(gain[None].astype(np.float32), 12)[0], top_k(alike[None].astype(np.float32), 3)[0]
        near = [i for i in near if i >= 0 and not same_thing(names[i], names[item])][:3]
        rows.append((int(item), [int(i) for i in near], [int(i) for i in other if i >= 0]))
    return pd.DataFrame(rows, columns=["item", "companions", "substitutes"])


def _unit(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-9)) @ matrix)


def bundles(split: Split, rules: pd.DataFrame, prices: np.ndarray, n: int = 5, size: int = 3) -> pd.DataFrame:
    """Sets of `size` items around the first items of rules: `items`, `price` (nan: unknown), `baskets`, `later`.

    No two items of one kind; `baskets` and `later` hold the whole set, in training and after it.
    """
    matrix, later = split.train.matrix, together(split.validation, split.test).matrix
    names = split.items["name"].to_list()
    affinity, labels = pair_affinity(matrix, 0.75), kind_labels(names)
    rows: list[tuple] = []
    taken: set[int] = set()
    for rule in rules.itertuples():
        if len(rows) == n or {rule.left, rule.right} & taken or labels[rule.left] == labels[rule.right]:
            continue
        seeds = (names[rule.left], names[rule.right])
        allowed = np.array([not any(same_thing(name, seed) for seed in seeds) for name in names])
        wanted = BundleConstraints(substitutes=labels, allowed=allowed)
        try:
            items = make_bundle([rule.left, rule.right], affinity, size, wanted, seed_weight=2.0)
        except BundleError:
            continue
        counts = [int((size == m[:, items].sum(axis=1).A1).sum()) for m in (matrix, later)]
        if counts[0] < 5 or set(items) & taken:
            continue
        taken |= set(items)
        rows.append((items, float(np.sum(prices[items])), *counts))
    return pd.DataFrame(rows, columns=["items", "price", "baskets", "later"])
