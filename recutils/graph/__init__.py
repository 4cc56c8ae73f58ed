"""The graph of products and graph networks on it (chapter 03).

Needs the extra `graph` (PyTorch Geometric without its extension packages).
"""

from recutils.graph.build import GraphError, adjacency, as_tensor, build_item_graph, normalize_adjacency
from recutils.graph.layers import GraphRecommender, ItemEncoder
from recutils.graph.nodes import train_node_classifier

__all__ = [
    "GraphError",
    "GraphRecommender",
    "ItemEncoder",
    "adjacency",
    "as_tensor",
    "build_item_graph",
    "normalize_adjacency",
    "train_node_classifier",
]
