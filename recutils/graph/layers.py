"""Graph networks on the items (chapter 03). Needs the extra `graph` (PyTorch Geometric)."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from recutils.data.schema import Baskets
from recutils.graph.build import GraphError, as_tensor, build_item_graph, nearest_neighbours
from recutils.models.embeddings import DotProduct
from recutils.settings import TRAINING_SEED, cached, seed_everything
from recutils.text.encoder import best_device
from recutils.text.training import train_steps

LIBRARIES = ("torch", "torch-geometric")  # on which cached networks depend


class ItemEncoder(nn.Module):
    """Embeddings of items from their features and their neighbours: h <- h + relu(sum over edge kinds of conv(h)).

    `features` (n_items, width) may be None; `item_embedding` adds a learned ID embedding; `conv` is `gcn`, `gat`,
    `sage` or `none` (no neighbours: the same network without the graph, its baseline). The residual connection
    works against over-smoothing. Raises GraphError for another `conv` and where nothing tells items apart.
    """

    def __init__(
        self,
        features: np.ndarray | None,
        edges: Sequence[sparse.csr_matrix],
        conv: str = "gcn",
        item_embedding: bool = True,
        layers: int = 2,
        width: int = 128,
        seed: int = TRAINING_SEED,
    ) -> None:
        super().__init__()
        if conv not in ("gcn", "gat", "sage", "none"):
            raise GraphError(f"conv is {conv!r}; use 'gcn', 'gat', 'sage' or 'none'.")
        if features is None and not item_embedding:
            raise GraphError("Without features and without item_embedding all items are the same; give one of them.")
        seed_everything(seed)
        self.features: torch.Tensor | None = None
        self.input_proj = None if features is None else nn.Linear(features.shape[1], width)
        # Beside features ID embeddings start at 0, so that an item without sales has no random one.
        start = 0.1 * torch.randn(edges[0].shape[0], width) * (features is None)
        self.item_embedding = nn.Parameter(start) if item_embedding else None
        self.conv, n_kinds = conv, len(edges) if conv != "none" else 1
        make_layer: Callable[[], nn.Module] = {
            "gcn": lambda: GCNConv(width, width, normalize=False),
            "gat": lambda: GATConv(width, width // 4, heads=4),
            "sage": lambda: SAGEConv(width, width, aggr="sum"),  # a sum over weights that are 1 / n_neighbours
            "none": lambda: nn.Linear(width, width),
        }[conv]
        self.stack = nn.ModuleList(nn.ModuleList(make_layer() for _ in range(n_kinds)) for _ in range(layers))
        self.output_proj = nn.Linear(width, width)
        self.to(best_device())
        self.set_graph(edges, features)

    def set_graph(self, edges: Sequence[sparse.csr_matrix], features: np.ndarray | None = None) -> None:
        """Use other edges, and other features, from now on; the learned parameters stay."""
        self.edges = [as_tensor(e, self.conv).to(self.device) for e in edges]
        if features is not None:
            self.features = torch.as_tensor(features, dtype=torch.float32, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.output_proj.weight.device

    def forward(self) -> torch.Tensor:
        """The items' embeddings, (n_items, width)."""
        h: Any = 0.0
        layer: Any
        if self.input_proj is not None:
            h = self.input_proj(self.features)
        if self.item_embedding is not None:
            h = h + self.item_embedding
        for layer in self.stack:
            if self.conv == "none":
                h = h + functional.relu(layer[0](h))
            else:
                h = h + functional.relu(sum(conv(h, e) for conv, e in zip(layer, self.edges, strict=True)))
        return self.output_proj(h)

    @torch.no_grad()
    def vectors(self) -> np.ndarray:
        """The items' embeddings as an array, (n_items, width) float32."""
        return self().cpu().numpy()


class GraphRecommender(DotProduct):
    """An `ItemEncoder` trained on baskets: score_i = q . h_i + b_i, q = sum of the basket's h_j / sqrt(their number).

    The graph is built from the training baskets and the nearest `features`. Each step hides one item in each of
    768 random baskets of two or more; the loss is the softmax over all items that are not in the basket, none
    sampled. b_i starts as log(1 + the item's baskets). The trained parameters are kept on disk.
    """

    def __init__(
        self,
        features: np.ndarray | None,
        conv: str = "gcn",
        item_embedding: bool = True,
        steps: int = 80,
        seed: int = TRAINING_SEED,
    ) -> None:
        self.features, self.conv, self.item_embedding = features, conv, item_embedding
        self.steps, self.seed = steps, seed

    def _fit(self, train: Baskets) -> None:
        self.edges = list(build_item_graph(train.matrix, vectors=self.features).values())
        how = (self.conv, self.item_embedding, self.steps, self.seed)
        state, self.bias = _basket_weights(train.matrix, self.edges, self.features, *how)
        self.encoder = ItemEncoder(self.features, self.edges, self.conv, self.item_embedding)
        self.encoder.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()})
        self.vectors = self.encoder.vectors()  # (n_items, width)

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Embeddings (n_items, width) as if the items had these features: new text edges, no training."""
        encoder = copy.copy(self.encoder)  # it shares the parameters
        encoder.set_graph([self.edges[0], nearest_neighbours(features, 10)], features)
        return encoder.vectors()


@cached(libraries=LIBRARIES)
def _basket_weights(
    matrix: sparse.csr_matrix,
    edges: list[sparse.csr_matrix],
    features: np.ndarray | None,
    conv: str,
    item_embedding: bool,
    steps: int,
    seed: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    encoder = ItemEncoder(features, edges, conv, item_embedding, seed=seed)
    item_counts = np.asarray(matrix.sum(axis=0)).ravel()
    device = encoder.device
    bias = nn.Parameter(torch.as_tensor(np.log(item_counts + 1), dtype=torch.float32, device=device))
    matrix = matrix[np.flatnonzero(np.diff(matrix.indptr) >= 2)]
    rng = np.random.default_rng(seed)

    def loss(step: int) -> torch.Tensor:
        rest = matrix[rng.integers(matrix.shape[0], size=768)]
        place = rest.indptr[:-1] + np.floor(rng.random(rest.shape[0]) * np.diff(rest.indptr)).astype(int)
        target = torch.as_tensor(rest.indices[place], device=device).long()
        rest.data[place] = 0
        rest.eliminate_zeros()
        h, size = encoder(), np.diff(rest.indptr)
        weight = torch.as_tensor(np.repeat(size, size) ** -0.5, dtype=torch.float32, device=device)
        row = torch.as_tensor(np.repeat(np.arange(len(size)), size), device=device)
        column = torch.as_tensor(rest.indices, device=device).long()
        query = torch.zeros(len(size), h.shape[1], device=device).index_add(0, row, weight[:, None] * h[column])
        scores = query @ h.T + bias  # (768, n_items)
        scores = scores.index_put((row, column), torch.tensor(-torch.inf, device=device))  # in the basket
        return functional.cross_entropy(scores, target)

    group = {"params": [*encoder.parameters(), bias], "lr": 5e-3, "weight_decay": 0.0}
    train_steps([group], loss, steps, warmup_ratio=10 / steps, max_grad_norm=float("inf"))
    state = {name: value.cpu().numpy() for name, value in encoder.state_dict().items()}
    return state, bias.detach().cpu().numpy()
