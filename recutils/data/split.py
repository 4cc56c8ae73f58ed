"""The split by time, and the items that are hidden for the cold start."""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import sparse

from recutils.data.schema import Baskets, Split, Store, first_monday, make_baskets
from recutils.settings import SEED


def time_split(store: Store, validation_weeks: int = 4, test_weeks: int = 5, min_baskets: int = 20) -> Split:
    """Cut the store by time: the last weeks are the test, those before validation, all before those training.

    Warm items, the columns of every matrix, are those in at least `min_baskets` training baskets.
    For Complete Journey: weeks 1-44, 45-48 and 49-53. Raises ValueError where a period would be empty.
    """
    lines = store.transactions
    last = int(lines["week"].max())
    test, validation = last - test_weeks + 1, last - test_weeks - validation_weeks + 1
    if min(validation_weeks, test_weeks) < 1 or validation < 2:
        raise ValueError(
            f"{store.name} has {last} weeks; validation_weeks={validation_weeks} and test_weeks={test_weeks} "
            f"leave no training week. Ask for fewer."
        )
    pairs = lines.loc[lines["week"] < validation, ["basket_id", "item_id"]].drop_duplicates()
    counts = pairs["item_id"].value_counts()
    warm = store.items["item_id"].isin(counts.index[counts >= min_baskets])
    if not warm.any():
        raise ValueError(f"No item of {store.name} is in {min_baskets} training baskets; lower min_baskets.")
    items = store.items[warm].reset_index(drop=True)
    households = pd.Index(np.sort(lines["household_id"].dropna().unique()), name="household_id")
    monday = first_monday(lines["timestamp"])
    return Split(
        items,
        households,
        train=make_baskets(lines[lines["week"] < validation], items, households),
        validation=make_baskets(lines[lines["week"].between(validation, test - 1)], items, households),
        test=make_baskets(lines[lines["week"] >= test], items, households),
        validation_start=monday + pd.Timedelta(weeks=validation - 1),
        test_start=monday + pd.Timedelta(weeks=test - 1),
        cold=np.zeros(len(items), dtype=bool),
    )


def hide_cold_items(split: Split, share: float = 0.1, seed: int = SEED) -> Split:
    """The cold-start experiment: a seeded `share` of the items, stratified by popularity, leaves training.

    In each popularity decile of the items sold in training the same share is drawn. The columns stay, emptied
    in `train` and `validation`; `cold` marks them.
    """
    popularity = pd.Series(np.asarray(split.train.matrix.sum(axis=0)).ravel())  # (n_items,)
    popularity = popularity[popularity > 0]
    decile = pd.qcut(popularity.rank(method="first"), 10, labels=False)
    rng = np.random.default_rng(seed)
    cold = np.zeros(len(split.items), dtype=bool)
    for _, members in decile.groupby(decile):
        cold[rng.choice(members.index, size=round(share * len(members)), replace=False)] = True
    warm = sparse.diags((~cold).astype(np.float32))

    def hide(baskets: Baskets) -> Baskets:
        matrix = sparse.csr_matrix(baskets.matrix @ warm)
        matrix.eliminate_zeros()
        return replace(baskets, matrix=matrix)

    return replace(split, train=hide(split.train), validation=hide(split.validation), cold=cold)


def cold_validation_split(split: Split, seed: int = SEED + 1) -> Split:
    """Other cold items to choose on, for a split made by `hide_cold_items`, whose own are the test.

    Another seeded tenth of the items leaves training and is marked `cold`; its sales stay in `validation`, so that
    `cold_items(model, cold_validation_split(split), on="validation")` can rank it. The cold test items stay hidden
    everywhere.
    """
    return replace(hide_cold_items(split, seed=seed), validation=split.validation)
