"""The graph of products: edges of three kinds, graph networks on it, links that are still to come (chapter 03).

Needs the extra `graph` (PyTorch Geometric without its extension packages). A kind of edge is a symmetric
scipy.sparse matrix (n_items, n_items) without a diagonal; what a network sees of it is a tensor (`as_tensor`).
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GAT, GCN, GATConv, GCNConv, SAGEConv

from recutils.data import Baskets
from recutils.evaluate import rank_relevant
from recutils.recommend import InnerProduct, keep_largest
from recutils.rules import pair_counts, shrunk_log_lift
from recutils.settings import TRAINING_SEED, repeatable, stage
from recutils.text import best_device, train_steps

LIBRARIES = ("torch", "torch-geometric")  # on which cached networks depend


class GraphError(ValueError):
    """A graph that cannot be used as it is; the message says what arrived and what was expected."""


# ---------------------------------------------------------------------------------------------- edges


def build_item_graph(
    matrix: sparse.csr_matrix,
    min_count: int = 5,
    min_lift: float = 5.0,
    vectors: np.ndarray | None = None,
    neighbours: int = 10,
    attributes: pd.DataFrame | None = None,
) -> dict[str, sparse.csr_matrix]:
    """The kinds of edges between items, each a symmetric csr (n_items, n_items) without a diagonal.

    - `copurchase`: pairs in `min_count` baskets of `matrix` (n_baskets, n_items) or more, and `min_lift` times
      as often as chance or more; the weight is `shrunk_log_lift`, above 0
    - `text`, given `vectors` (n_items, width): each item's `neighbours` nearest; the weight is the cosine
    - `attribute`, given a table with a row an item: pairs that agree in all of its columns; the weight is 1

    Raises GraphError where `vectors` or `attributes` are not one an item.
    """
    for name, given in (("vectors", vectors), ("attributes", attributes)):
        if given is not None and len(given) != matrix.shape[1]:
            raise GraphError(f"{len(given)} rows of {name} for {matrix.shape[1]} items; give one an item.")
    sold = np.asarray(matrix.sum(axis=0)).ravel().astype(float)
    counts = pair_counts(matrix)
    counts.data[counts.data < min_count] = 0
    counts.eliminate_zeros()
    counts = counts.tocoo()
    row, column, both = counts.row, counts.col, counts.data
    chance = sold[row] * sold[column] / matrix.shape[0]
    keep = (row != column) & (both >= min_lift * chance)
    weight = shrunk_log_lift(both[keep], chance[keep])
    edges = {"copurchase": sparse.csr_matrix((weight, (row[keep], column[keep])), counts.shape)}
    if vectors is not None:
        edges["text"] = nearest(vectors, neighbours)
    if attributes is not None:
        group = attributes.groupby(list(attributes), dropna=False).ngroup().to_numpy()
        member = sparse.csr_matrix((np.ones(len(group), np.float32), (np.arange(len(group)), group)))
        edges["attribute"] = _without_diagonal(member @ member.T)
    return edges


def nearest(vectors: np.ndarray, k: int) -> sparse.csr_matrix:
    """Each row's `k` nearest others by cosine, made symmetric: csr (n, n) of cosines above 0."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    parts = []
    for start in range(0, len(unit), 512):
        cosine = unit[start : start + 512] @ unit.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -np.inf
        best = np.argpartition(-cosine, k, axis=1)[:, :k]
        values = np.take_along_axis(cosine, best, axis=1).ravel()
        rows = np.repeat(np.arange(len(best)), best.shape[1])
        parts.append(sparse.csr_matrix((values, (rows, best.ravel())), cosine.shape))
    near = sparse.vstack(parts).tocsr()
    near.data[near.data <= 0] = 0
    return _without_diagonal(near.maximum(near.T))


def strongest(edges: sparse.csr_matrix, k: int = 5) -> sparse.csr_matrix:
    """The edges that are among the `k` heaviest of one of their two ends: symmetric csr."""
    kept = edges.copy()
    keep_largest(kept, k)
    return sparse.csr_matrix(kept.maximum(kept.T))


def _without_diagonal(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    matrix = sparse.coo_matrix(matrix)
    off = (matrix.row != matrix.col) & (matrix.data != 0)
    kept = (matrix.data[off].astype(np.float32), (matrix.row[off], matrix.col[off]))
    return sparse.csr_matrix(kept, matrix.shape)


def adjacency(edge_index: Any, n_nodes: int) -> sparse.csr_matrix:
    """Edges (2, n_edges) of node numbers as a symmetric 0/1 csr (n_nodes, n_nodes) without a diagonal.

    Every edge counts in both directions and once, however often it is given; an edge from a node to itself is
    left out (a layer adds its own); nodes without an edge stay, and so does a graph without any. Raises
    GraphError for another shape, for numbers outside 0..n_nodes - 1 and for no nodes.
    """
    edges = np.asarray(edge_index)
    if n_nodes < 1:
        raise GraphError("The graph has no nodes.")
    if edges.size == 0:
        return sparse.csr_matrix((n_nodes, n_nodes), dtype=np.float32)
    if edges.ndim != 2 or edges.shape[0] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise GraphError(f"edge_index is {edges.dtype} {edges.shape}; pass whole numbers of shape (2, n_edges).")
    if edges.min() < 0 or edges.max() >= n_nodes:
        raise GraphError(
            f"edge_index holds nodes {edges.min()} to {edges.max()}; {n_nodes} nodes are numbered 0 to {n_nodes - 1}."
        )
    both = (np.concatenate([edges[0], edges[1]]), np.concatenate([edges[1], edges[0]]))
    matrix = _without_diagonal(sparse.coo_matrix((np.ones(len(both[0])), both), (n_nodes, n_nodes)))
    matrix.data[:] = 1
    return matrix


def normalize_adjacency(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """D^-1/2 (A + I) D^-1/2, with D the row sums of A + I: (n, n) csr, float32. Source: Kipf and Welling (2017)."""
    loops = matrix + sparse.identity(matrix.shape[0], dtype=np.float32, format="csr")
    scale = sparse.diags(np.asarray(loops.sum(axis=1)).ravel() ** -0.5)
    return sparse.csr_matrix(scale @ loops @ scale, dtype=np.float32)


def as_tensor(matrix: sparse.csr_matrix, kind: str = "gcn") -> torch.Tensor:
    """What a layer of this kind multiplies by: the normalised adjacency (`gcn`), row means (`sage`), or, for `gat`,
    the edge index (2, n_edges)."""
    if kind == "gat":
        return torch.as_tensor(np.stack(matrix.nonzero())).long()
    if kind == "sage":
        mean = np.maximum(np.diff(matrix.indptr), 1).astype(np.float32)
        matrix = sparse.csr_matrix((np.ones(matrix.nnz, np.float32), matrix.indices, matrix.indptr), matrix.shape)
        matrix = sparse.csr_matrix(sparse.diags(1 / mean) @ matrix)
    else:
        matrix = normalize_adjacency(matrix)
    pointers, columns = (torch.as_tensor(part).long() for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")  # "in beta", says PyTorch
        return torch.sparse_csr_tensor(pointers, columns, torch.as_tensor(matrix.data), matrix.shape)


# ---------------------------------------------------------------------------------------------- networks


class ItemEncoder(nn.Module):
    """Vectors of items from their features and their neighbours: h <- h + relu(sum over kinds of conv_kind(h)).

    `features` (n_items, width) may be None; `identity` adds a learned vector an item; `conv` is `gcn`, `gat`,
    `sage` or `none` (no neighbours: the same network without the graph, its honest rival). Adding h itself keeps
    deep stacks from blurring all items into one.
    """

    def __init__(
        self,
        features: np.ndarray | None,
        edges: Sequence[sparse.csr_matrix],
        conv: str = "gcn",
        identity: bool = True,
        layers: int = 2,
        width: int = 128,
        seed: int = TRAINING_SEED,
    ) -> None:
        super().__init__()
        if conv not in ("gcn", "gat", "sage", "none"):
            raise GraphError(f"conv is {conv!r}; use 'gcn', 'gat', 'sage' or 'none'.")
        if features is None and not identity:
            raise GraphError("Without features and without identity all items are the same; give one of them.")
        repeatable(seed)
        self.features: torch.Tensor | None = None
        self.enter = None if features is None else nn.Linear(features.shape[1], width)
        # Where features tell items apart, their own vectors start at 0; an item never seen moves as a negative only.
        start = 0.1 * torch.randn(edges[0].shape[0], width) * (features is None)
        self.own = nn.Parameter(start) if identity else None
        self.conv, kinds = conv, len(edges) if conv != "none" else 1
        make: Callable[[], nn.Module] = {
            "gcn": lambda: GCNConv(width, width, normalize=False),
            "gat": lambda: GATConv(width, width // 4, heads=4),
            "sage": lambda: SAGEConv(width, width, aggr="sum"),  # a sum over weights that are 1 / n_neighbours
            "none": lambda: nn.Linear(width, width),
        }[conv]
        self.stack = nn.ModuleList(nn.ModuleList(make() for _ in range(kinds)) for _ in range(layers))
        self.leave = nn.Linear(width, width)
        self.to(best_device())
        self.use(edges, features)

    def use(self, edges: Sequence[sparse.csr_matrix], features: np.ndarray | None = None) -> None:
        """Look at other edges, and at other features, from now on: what training learned stays."""
        self.edges = [as_tensor(e, self.conv).to(self.device) for e in edges]
        if features is not None:
            self.features = torch.as_tensor(features, dtype=torch.float32, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the numbers lie."""
        return self.leave.weight.device

    def forward(self) -> torch.Tensor:
        """The items' vectors, (n_items, width)."""
        h: Any = 0.0
        layer: Any
        if self.enter is not None:
            h = self.enter(self.features)
        if self.own is not None:
            h = h + self.own
        for layer in self.stack:
            if self.conv == "none":
                h = h + functional.relu(layer[0](h))
            else:
                h = h + functional.relu(sum(conv(h, e) for conv, e in zip(layer, self.edges, strict=True)))
        return self.leave(h)

    @torch.no_grad()
    def vectors(self) -> np.ndarray:
        """The items' vectors as an array, (n_items, width) float32."""
        return self().cpu().numpy()


def _descend(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], torch.Tensor],
    steps: int,
    after: Callable[[int], bool] | None = None,
) -> list[float]:
    """Chapter 02's training loop with a higher rate, ten steps of climb, and neither decay nor clipping."""
    group = {"params": parameters, "lr": 5e-3, "weight_decay": 0.0}
    return train_steps([group], lambda step: loss(), steps, warmup=10 / steps, after=after, clip=float("inf"))


# ---------------------------------------------------------------------------------------------- links


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


@stage(libraries=LIBRARIES)
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


# ---------------------------------------------------------------------------------------------- baskets


class GraphRecommender(InnerProduct):
    """An `ItemEncoder` taught by baskets: score_i = q . h_i + b_i, q = sum of the basket's h_j / sqrt(their number).

    The graph is built from the training baskets and the nearest `features`. Each step hides one item in each of
    768 random baskets of two or more; the loss is the softmax over all items that are not in the basket, none
    sampled. b_i starts as the logarithm of the item's baskets. What training found is kept on disk.
    """

    def __init__(
        self,
        features: np.ndarray | None,
        conv: str = "gcn",
        identity: bool = True,
        steps: int = 80,
        seed: int = TRAINING_SEED,
    ) -> None:
        self.features, self.conv, self.identity, self.steps, self.seed = features, conv, identity, steps, seed

    def _fit(self, train: Baskets) -> None:
        self.edges = list(build_item_graph(train.matrix, vectors=self.features).values())
        how = (self.conv, self.identity, self.steps, self.seed)
        state, self.bias = _basket_weights(train.matrix, self.edges, self.features, *how)
        self.encoder = ItemEncoder(self.features, self.edges, self.conv, self.identity)
        self.encoder.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        self.vectors = self.encoder.vectors()  # (n_items, width)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Vectors (n_items, width) as if the items had these features: text edges drawn anew, nothing learned again."""
        other = copy.copy(self.encoder)  # the same learned numbers, other eyes
        other.use([self.edges[0], nearest(features, 10)], features)
        return other.vectors()


@stage(libraries=LIBRARIES)
def _basket_weights(
    matrix: sparse.csr_matrix,
    edges: list[sparse.csr_matrix],
    features: np.ndarray | None,
    conv: str,
    identity: bool,
    steps: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    encoder = ItemEncoder(features, edges, conv, identity, seed=seed)
    sold = np.asarray(matrix.sum(axis=0)).ravel()
    device = encoder.device
    bias = nn.Parameter(torch.as_tensor(np.log(sold + 1), dtype=torch.float32, device=device))
    matrix = matrix[np.flatnonzero(np.diff(matrix.indptr) >= 2)]
    rng = np.random.default_rng(seed)

    def loss() -> torch.Tensor:
        rest = matrix[rng.integers(matrix.shape[0], size=768)]
        place = rest.indptr[:-1] + np.floor(rng.random(rest.shape[0]) * np.diff(rest.indptr)).astype(int)
        hidden = torch.as_tensor(rest.indices[place], device=device).long()
        rest.data[place] = 0
        rest.eliminate_zeros()
        h, size = encoder(), np.diff(rest.indptr)
        weight = torch.as_tensor(np.repeat(size, size) ** -0.5, dtype=torch.float32, device=device)
        row = torch.as_tensor(np.repeat(np.arange(len(size)), size), device=device)
        column = torch.as_tensor(rest.indices, device=device).long()
        query = torch.zeros(len(size), h.shape[1], device=device).index_add(0, row, weight[:, None] * h[column])
        scores = query @ h.T + bias  # (768, n_items)
        scores = scores.index_put((row, column), torch.tensor(-torch.inf, device=device))  # in the basket
        return functional.cross_entropy(scores, hidden)

    _descend([*encoder.parameters(), bias], loss, steps)
    state = {name: value.cpu().numpy() for name, value in encoder.state_dict().items()}
    return state, bias.detach().cpu().numpy()


# ---------------------------------------------------------------------------------------------- classes of nodes


class NodeClassifier(nn.Module):
    """Two layers of PyTorch Geometric's `GCN` or `GAT` on rows of length one: (n, width) -> (n, n_classes)."""

    def __init__(self, width: int, n_classes: int, model: str = "gcn", hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.kind, self.dropout = model, dropout
        shape = {"in_channels": width, "hidden_channels": hidden, "num_layers": 2, "out_channels": n_classes}
        self.net = (
            GCN(**shape, dropout=dropout, normalize=False)
            if model == "gcn"
            else GAT(**shape, dropout=dropout, heads=8, act="elu")
        )

    def forward(self, x: Any, edge_index: Any) -> torch.Tensor:
        """Logits (n, n_classes) from features (n, width) and edges as `adjacency` reads them."""
        x = functional.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1)
        return self.run(x, as_tensor(adjacency(edge_index, len(x)), self.kind))

    def run(self, x: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """The same from rows of length one and from `as_tensor` of the edges."""
        return self.net(functional.dropout(x, self.dropout, self.training), graph)


def train_node_classifier(
    x: Any,
    edge_index: Any,
    y: Any,
    train_mask: Any,
    val_mask: Any,
    model: str = "gcn",
    seed: int = TRAINING_SEED,
    steps: int = 300,
    patience: int = 50,
) -> tuple[NodeClassifier, torch.Tensor]:
    """Learn the classes of a graph's nodes from a few of them, on any plain graph.

    - `x` (n_nodes, width) features; `edge_index` (2, n_edges), read as by `adjacency`
    - `y` (n_nodes,) classes 0, 1, ...; `train_mask`, `val_mask` (n_nodes,) booleans
    - `model`: `gcn` or `gat`

    Adam with weight decay; every five steps a look at the validation nodes: the state with the best accuracy (then
    loss) is kept, and `patience` steps without a better one end the training. Returns the model, ready to predict,
    and its logits (n_nodes, n_classes). Raises GraphError for sizes that disagree, empty masks and an unknown model.
    """
    if model not in ("gcn", "gat"):
        raise GraphError(f"model is {model!r}; use 'gcn' or 'gat'.")
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long()
    train, check = (torch.as_tensor(mask, dtype=torch.bool) for mask in (train_mask, val_mask))
    if x.ndim != 2 or not len(x) == len(y) == len(train) == len(check):
        sizes = f"x {tuple(x.shape)}, y {tuple(y.shape)}, masks {tuple(train.shape)} and {tuple(check.shape)}"
        raise GraphError(f"{sizes}; the first length of all four is the number of nodes.")
    if not train.any() or not check.any() or (y[train | check] < 0).any():
        raise GraphError("train_mask and val_mask must each name nodes, and those need classes 0, 1, ...")
    repeatable(seed)
    found = NodeClassifier(x.shape[1], int(y.max()) + 1, model)
    graph = as_tensor(adjacency(edge_index, len(x)), model)
    unit = functional.normalize(x, dim=1)
    best, state, at = (-1.0, 0.0), copy.deepcopy(found.state_dict()), 0
    optimizer = torch.optim.Adam(found.parameters(), lr=0.01, weight_decay=5e-4)
    for step in range(steps):
        found.train()
        optimizer.zero_grad()
        functional.cross_entropy(found.run(unit, graph)[train], y[train]).backward()
        optimizer.step()
        found.eval()
        if step % 5 == 4 or step == steps - 1:
            with torch.no_grad():
                logits = found.run(unit, graph)[check]
            right = (logits.argmax(dim=1) == y[check]).float().mean().item()
            score = (right, -functional.cross_entropy(logits, y[check]).item())
            if score > best:
                best, state, at = score, copy.deepcopy(found.state_dict()), step
        if step - at >= patience:
            break
    found.load_state_dict(state)
    with torch.no_grad():
        return found, found.run(unit, graph)
