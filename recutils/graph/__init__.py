"""The graph of products and graph networks on it (chapter 03).

Needs the extra `graph` (PyTorch Geometric without its extension packages).
"""

from recutils.graph.build import (
    GraphError,
    adjacency,
    as_tensor,
    build_item_graph,
    nearest,
    normalize_adjacency,
    strongest,
)
from recutils.graph.layers import GraphRecommender, ItemEncoder
from recutils.graph.links import link_scores, new_links, rank_links, shop_links, train_link_predictor
from recutils.graph.nodes import NodeClassifier, train_node_classifier

__all__ = [
    "GraphError",
    "GraphRecommender",
    "ItemEncoder",
    "NodeClassifier",
    "adjacency",
    "as_tensor",
    "build_item_graph",
    "link_scores",
    "nearest",
    "new_links",
    "normalize_adjacency",
    "rank_links",
    "shop_links",
    "strongest",
    "train_link_predictor",
    "train_node_classifier",
]
