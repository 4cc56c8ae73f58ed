"""Classes of the nodes of any plain graph (chapter 03)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GAT, GCN

from recutils.graph.build import GraphError, adjacency, as_tensor
from recutils.settings import TRAINING_SEED, seed_everything


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
    seed_everything(seed)
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
