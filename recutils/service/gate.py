"""A gate before a version is served: its NDCG on the newest baskets against that of the one that is (chapter 07)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from recutils.data.schema import Baskets
from recutils.evaluate import ndcg_at_k, rank_relevant
from recutils.models.base import ANONYMOUS, Recommender, mask_basket
from recutils.service.artifact import Artifact, current_version, load, prune, set_current
from recutils.service.pseudonyms import pseudonym

THRESHOLD = 0.05  # the share by which NDCG@10 may fall
FEWEST_COMPARED = 30


@dataclass
class Gate:
    """The newest baskets, one item hidden in each: what a new version and the current one are compared on.

    `household_ids` are the shop's own, or pseudonyms where no secret is given.
    """

    queries: Baskets
    hidden: sparse.csr_matrix
    item_ids: list[str]
    household_ids: list[Any]

    def ndcg(self, model: Recommender) -> float:
        """NDCG@10 of a model over the same items and households."""
        scores = mask_basket(model.score(self.queries).copy(), self.queries)
        return float(ndcg_at_k(rank_relevant(scores, self.hidden, 1)).mean())

    def ndcg_of_version(self, version: Artifact, secret: bytes | None = None) -> float:
        """NDCG@10 of a version with items and households of its own; a hidden item that it lacks counts as not found.

        What it offers beyond the gate's items is passed over.
        """
        place = {item: n for n, item in enumerate(version.item_ids)}
        theirs = np.array([place.get(item, -1) for item in self.item_ids])
        ours = np.flatnonzero(theirs >= 0)
        shape = (len(theirs), len(version.item_ids))
        change = sparse.csr_matrix((np.ones(len(ours), np.float32), (ours, theirs[ours])), shape)
        known = self.household_ids if secret is None else [pseudonym(h, secret) for h in self.household_ids]
        row_of = dict(enumerate(version.household_index.get(name, ANONYMOUS) for name in known))
        rows = np.array([row_of.get(h, ANONYMOUS) for h in self.queries.households.tolist()])
        open_baskets = sparse.csr_matrix(self.queries.matrix @ change)
        open_baskets.sort_indices()
        found = version.ranker.score(Baskets(open_baskets, rows, self.queries.timestamps))
        scores = np.full(self.queries.matrix.shape, -np.inf, np.float32)
        scores[:, ours] = found[:, theirs[ours]]
        return float(ndcg_at_k(rank_relevant(mask_basket(scores, self.queries), self.hidden, 1)).mean())

    def verdict(self, new: float, old: float, other: str, threshold: float = THRESHOLD) -> tuple[bool, str]:
        """Whether a version may be served that has this NDCG@10 where `other` has that; and a sentence."""
        said = f"NDCG@10 on {len(self.queries)} newest baskets: {new:.3f}, {other} {old:.3f}."
        if new < (1 - threshold) * old:
            return (
                False,
                f"Refused: {said} It may fall by {threshold:.0%} at most (--threshold); the current one stays.",
            )
        return True, said


def release(
    folder: Path, version: str, threshold: float = THRESHOLD, force: bool = False, keep: int = 5
) -> tuple[bool, str]:
    """Serve a version if it does not fall behind the current one on its `exam`; was it, and a sentence.

    All but the newest `keep` versions are deleted then.
    """
    new, passed, said = load(folder, version), True, "Not compared."
    if (folder / "CURRENT").exists() and current_version(folder) != version and not force:
        exam = new.exam
        if len(exam.get("households", ())) < FEWEST_COMPARED:
            return False, f"Refused: it holds no {FEWEST_COMPARED} baskets to compare it on (--force takes it)."
        queries = Baskets(exam["matrix"], exam["households"], exam["timestamps"])
        gate = Gate(queries, exam["hidden"], new.item_ids, new.pseudonyms)
        old = gate.ndcg_of_version(load(folder))
        passed, said = gate.verdict(gate.ndcg(new.ranker), old, "the current version", threshold)
    if passed:
        set_current(folder, version)
        prune(folder, keep)
    return passed, said
