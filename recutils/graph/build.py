"""Edges of three kinds between items (chapter 03). A kind of edge is a symmetric scipy.sparse matrix
(n_items, n_items) without a diagonal; what a network sees of it is a tensor (`as_tensor`)."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from recutils.rules.measures import pair_counts, shrunk_log_lift


class GraphError(ValueError):
    """A graph that cannot be used as it is; the message says what arrived and what was expected."""


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
    item_counts = np.asarray(matrix.sum(axis=0)).ravel().astype(float)
    counts = pair_counts(matrix)
    counts.data[counts.data < min_count] = 0
    counts.eliminate_zeros()
    counts = counts.tocoo()
    row, column, observed = counts.row, counts.col, counts.data
    expected = item_counts[row] * item_counts[column] / matrix.shape[0]
    keep = (row != column) & (observed >= min_lift * expected)
    weight = shrunk_log_lift(observed[keep], expected[keep])
    edges = {"copurchase": sparse.csr_matrix((weight, (row[keep], column[keep])), counts.shape)}
    if vectors is not None:
        edges["text"] = nearest_neighbours(vectors, neighbours)
    if attributes is not None:
        group = attributes.groupby(list(attributes), dropna=False).ngroup().to_numpy()
        member = sparse.csr_matrix((np.ones(len(group), np.float32), (np.arange(len(group)), group)))
        edges["attribute"] = _without_diagonal(member @ member.T)
    return edges


def nearest_neighbours(vectors: np.ndarray, k: int) -> sparse.csr_matrix:
    """Each row's `k` nearest others by cosine, made symmetric: csr (n, n) of cosines above 0."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    k, parts = min(k, len(unit) - 1), []
    for start in range(0, len(unit), 512):
        cosine = unit[start : start + 512] @ unit.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -np.inf
        best = np.argpartition(-cosine, k, axis=1)[:, :k]
        values = np.take_along_axis(cosine, best, axis=1).ravel()
        rows = np.repeat(np.arange(len(best)), best.shape[1])
        parts.append(sparse.csr_matrix((values, (rows, best.ravel())), cosine.shape))
    edges = sparse.vstack(parts).tocsr()
    edges.data[edges.data <= 0] = 0
    return _without_diagonal(edges.maximum(edges.T))


def _without_diagonal(matrix: sparse.spmatrix) -> sparse.csr_matrix:
    matrix = sparse.coo_matrix(matrix)
    keep = (matrix.row != matrix.col) & (matrix.data != 0)
    kept = (matrix.data[keep].astype(np.float32), (matrix.row[keep], matrix.col[keep]))
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


def as_tensor(matrix: sparse.csr_matrix, conv: str = "gcn") -> torch.Tensor:
    """What a layer of the type `conv` needs: the normalised adjacency (`gcn`) or the adjacency with rows that sum to 1
    (`sage`) as a sparse tensor (n, n), or the edge index (2, n_edges) (`gat`)."""
    if conv == "gat":
        return torch.as_tensor(np.stack(matrix.nonzero())).long()
    if conv == "sage":
        degree = np.maximum(np.diff(matrix.indptr), 1).astype(np.float32)
        matrix = sparse.csr_matrix((np.ones(matrix.nnz, np.float32), matrix.indices, matrix.indptr), matrix.shape)
        matrix = sparse.csr_matrix(sparse.diags(1 / degree) @ matrix)
    else:
        matrix = normalize_adjacency(matrix)
    pointers, columns = (torch.as_tensor(part).long() for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR|invariant)")  # "in beta", says PyTorch
        return torch.sparse_csr_tensor(pointers, columns, torch.as_tensor(matrix.data), matrix.shape)
