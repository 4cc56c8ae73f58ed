"""Classification of the nodes of any plain graph (chapter 03)."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GAT, GCN

from recutils.graph.build import GraphError, adjacency, as_tensor
from recutils.settings import TRAINING_SEED, seed_everything


class NodeClassifier(nn.Module):
    """Two layers of PyTorch Geometric's `GCN` or `GAT` on unit rows: (n, width) -> (n, n_classes)."""

    def __init__(self, width: int, n_classes: int, model: str = "gcn", hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv, self.dropout = model, dropout
        shape = {"in_channels": width, "hidden_channels": hidden, "num_layers": 2, "out_channels": n_classes}
        self.net = (
            GCN(**shape, dropout=dropout, normalize=False)
            if model == "gcn"
            else GAT(**shape, dropout=dropout, heads=8, act="elu")
        )

    def forward(self, x: Any, edge_index: Any) -> torch.Tensor:
        """Logits (n, n_classes) from features (n, width) and edges as `adjacency` reads them."""
        x = functional.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1)
        return self.propagate(x, as_tensor(adjacency(edge_index, len(x)), self.conv))

    def propagate(self, x: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """The same from unit rows and from `as_tensor` of the edges."""
        return self.net(functional.dropout(x, self.dropout, self.training), graph)


def train_node_classifier(  # noqa: PLR0913  (a published signature)
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
    """Classify the nodes of a plain graph from a few labelled ones.

    `x` (n_nodes, width) features; `edge_index` (2, n_edges), read as by `adjacency`; `y` (n_nodes,) classes 0, 1, ...;
    `train_mask`, `val_mask` (n_nodes,) booleans; `model` is `gcn` or `gat`.

    Evaluated on `val_mask` every five steps; the best state is kept, and `patience` steps without a better one end
    the training. Returns the model, ready to predict, and its logits (n_nodes, n_classes). Raises GraphError.
    """
    if model not in ("gcn", "gat"):
        raise GraphError(f"model is {model!r}; use 'gcn' or 'gat'.")
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y).long()
    train, validation = (torch.as_tensor(mask, dtype=torch.bool) for mask in (train_mask, val_mask))
    _check(x, y, train, validation)
    seed_everything(seed)
    classifier = NodeClassifier(x.shape[1], int(y.max()) + 1, model)
    unit, graph = functional.normalize(x, dim=1), as_tensor(adjacency(edge_index, len(x)), model)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.01, weight_decay=5e-4)
    best_score, best_state, best_step = (-1.0, 0.0), copy.deepcopy(classifier.state_dict()), 0
    for step in range(steps):
        _train_step(classifier, optimizer, unit, graph, train, y)
        if step % 5 == 4 or step == steps - 1:
            score = _evaluate(classifier, unit, graph, validation, y)
            if score > best_score:
                best_score, best_state, best_step = score, copy.deepcopy(classifier.state_dict()), step
        if step - best_step >= patience:
            break
    classifier.load_state_dict(best_state)
    with torch.no_grad():
        return classifier.eval(), classifier.propagate(unit, graph)


def _check(x: torch.Tensor, y: torch.Tensor, train: torch.Tensor, validation: torch.Tensor) -> None:
    if x.ndim != 2 or not len(x) == len(y) == len(train) == len(validation):
        sizes = f"x {tuple(x.shape)}, y {tuple(y.shape)}, masks {tuple(train.shape)} and {tuple(validation.shape)}"
        raise GraphError(f"{sizes}; the first length of all four is the number of nodes.")
    if not train.any() or not validation.any() or (y[train | validation] < 0).any():
        raise GraphError("train_mask and val_mask must each name nodes, and those need classes 0, 1, ...")


def _train_step(
    classifier: NodeClassifier,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    graph: torch.Tensor,
    mask: torch.Tensor,
    y: torch.Tensor,
) -> None:
    classifier.train()
    optimizer.zero_grad()
    functional.cross_entropy(classifier.propagate(x, graph)[mask], y[mask]).backward()
    optimizer.step()


@torch.no_grad()
def _evaluate(
    classifier: NodeClassifier, x: torch.Tensor, graph: torch.Tensor, mask: torch.Tensor, y: torch.Tensor
) -> tuple[float, float]:
    """Accuracy and the negative of the loss on the nodes of the mask."""
    logits = classifier.eval().propagate(x, graph)[mask]
    accuracy = (logits.argmax(dim=1) == y[mask]).float().mean().item()
    return accuracy, -functional.cross_entropy(logits, y[mask]).item()
