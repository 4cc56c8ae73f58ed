"""Links that are still to come (chapter 03)."""

import copy
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch.nn import functional

from recutils.evaluate.metrics import rank_relevant
from recutils.graph.build import GraphError, _without_diagonal, build_item_graph, strongest
from recutils.graph.layers import LIBRARIES, ItemEncoder, _descend
from recutils.rules.measures import pair_counts, shrunk_log_lift
from recutils.settings import TRAINING_SEED, cached


def train_link_predictor(
    encoder: ItemEncoder,
    matrix: sparse.csr_matrix,
    labels: sparse.csr_matrix | None = None,
    steps: int = 60,
    rows: int = 256,
    seed: int = TRAINING_SEED,
    watch: Callable[[np.ndarray], float] | None = None,
    look: int = 30,
) -> list[float]:
    """Teach the encoder, in place, that s_ij = h_i . h_j says how much more than chance i and j go together.

    Each step takes `rows` items against all others, so that no negative is sampled. Without `labels` the target
    is graded: the squared distance of s_ij from `shrunk_log_lift` of the baskets `matrix`. With `labels`, a 0/1
    csr (n_items, n_items) of edges, it is the textbook's: binary cross-entropy, every pair that is no edge a
    negative, with the logarithms of both degrees added to s_ij, so that s_ij itself need not learn popularity.

    `watch(vectors)`, called every `look` steps, returns a validation score: the best state is kept, and two
    looks without a better one end the training. Returns the loss of each step.
    """
    counts = pair_counts(matrix)
    sold, n = counts.diagonal().astype(np.float32), matrix.shape[0]
    rng = np.random.default_rng(seed)
    if labels is not None:
        degree = np.asarray(labels.sum(axis=1)).ravel()
        offset = torch.as_tensor(np.log((degree + 1) / np.sqrt(max(labels.sum(), 1))), dtype=torch.float32)
        offset = offset.to(encoder.device)

    def loss() -> torch.Tensor:
        drawn = np.sort(rng.choice(len(sold), size=min(rows, len(sold)), replace=False))
        h = encoder()
        scores = h[drawn] @ h.T  # (rows, n_items)
        if labels is None:
            target = shrunk_log_lift(counts[drawn].toarray(), np.outer(sold[drawn], sold) / n)
            target[np.arange(len(drawn)), drawn] = 0  # an item with itself is no pair
            return functional.mse_loss(scores, torch.as_tensor(target, device=encoder.device))
        scores = scores + offset[drawn][:, None] + offset
        label = torch.as_tensor(labels[drawn].toarray(), device=encoder.device)
        return functional.binary_cross_entropy_with_logits(scores, label)

    found: list[float] = []
    best: dict[str, torch.Tensor] = {}

    def after(step: int) -> bool:
        if watch is None or (step + 1) % look:
            return False
        found.append(watch(encoder.vectors()))
        if found[-1] == max(found):
            best.update(copy.deepcopy(encoder.state_dict()))
        return len(found) - 1 - int(np.argmax(found)) >= 2

    history = _descend(list(encoder.parameters()), loss, steps, after)
    if best:
        encoder.load_state_dict(best)
    return history


def new_links(before: sparse.csr_matrix, after: sparse.csr_matrix) -> sparse.csr_matrix:
    """Edges of `after` that `before` does not have, both symmetric csr: 0/1 csr (n_items, n_items)."""
    before, after = (m.astype(bool).astype(np.float32) for m in (before, after))
    return _without_diagonal(after - after.multiply(before))


@cached(libraries=LIBRARIES)
def shop_links(
    matrix: sparse.csr_matrix,
    validation: sparse.csr_matrix,
    features: np.ndarray | None,
    conv: str = "gcn",
    identity: bool = True,
    graded: bool = True,
    steps: int = 60,
    seed: int = TRAINING_SEED,
) -> np.ndarray:
    """Vectors (n_items, width) whose dot products say which items go together, kept on disk.

    An `ItemEncoder` on the copurchase edges of `matrix` (training baskets), taught by `train_link_predictor`; the
    step is chosen by the AUC of the links that are new in the baskets `validation`. Attention costs far more an
    edge than the other layers: `gat` hears each item's `strongest` edges only.
    """
    known = build_item_graph(matrix)["copurchase"]
    links = new_links(known, build_item_graph(validation)["copurchase"])
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    encoder = ItemEncoder(features, [strongest(known) if conv == "gat" else known], conv, identity, seed=seed)

    def watch(vectors: np.ndarray) -> float:
        return float(rank_links(link_scores(vectors, sold), known, links)["auc"].mean())

    labels = None if graded else known.astype(bool).astype(np.float32)
    train_link_predictor(encoder, matrix, labels, steps, seed=seed, watch=watch if links.nnz else None)
    return encoder.vectors()


def link_scores(vectors: np.ndarray, sold: np.ndarray, weight: float = 4.0) -> Callable[[np.ndarray], np.ndarray]:
    """How strongly rows ask for each item: weight * h_i . h_j + log n_j, as `rank_links` wants it.

    h_i . h_j is a (shrunk) log lift, so that with weight 1 this is the log of the joint baskets to expect.
    """
    popularity = np.log(np.maximum(sold, 1)).astype(np.float32)
    return lambda rows: weight * (vectors[rows] @ vectors.T) + popularity


def rank_links(
    score: Callable[[np.ndarray], np.ndarray], known: sparse.csr_matrix, links: sparse.csr_matrix, k: int = 50
) -> pd.DataFrame:
    """For every item with a new link: how well are its new partners ranked among all that are no neighbour yet?

    `score(rows)` gives (n_rows, n_items); `known` edges and the item itself are no candidates; ties go against the
    link. One row an item, indexed by its number: `ap` (average precision: at each of its links, the share of links
    among all that are ranked so far, averaged), `auc` (the share of pairs of a link and a non-link in the right
    order), `hit` (1 where a link is among the first `k`), `links` (how many it has).
    """
    items = np.flatnonzero(np.diff(links.indptr))
    if not len(items):
        raise GraphError("There is no new link to rank.")
    parts = []
    for start in range(0, len(items), 128):
        rows = items[start : start + 128]
        scores = np.array(score(rows), dtype=np.float32)  # (128, n_items), a copy
        place, column = known[rows].nonzero()
        scores[place, column] = -np.inf
        scores[np.arange(len(rows)), rows] = -np.inf
        wanted = links[rows]
        ranks = np.sort(rank_relevant(scores, wanted, int(np.diff(wanted.indptr).max())), axis=1)
        number = np.arange(1, ranks.shape[1] + 1)
        n = np.diff(wanted.indptr)
        others = np.isfinite(scores).sum(axis=1) - n
        wrong = np.nansum(np.where(np.isinf(ranks), others[:, None] + number, ranks) - number, axis=1)
        hit = (ranks <= k).any(axis=1).astype(float)
        ap = np.nansum(number / ranks, axis=1) / n
        parts.append(pd.DataFrame({"ap": ap, "auc": 1 - wrong / n / others, "hit": hit, "links": n}, index=rows))
    return pd.concat(parts)
