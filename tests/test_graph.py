"""The graph chapter: edges against counts by hand, layers against paper and the library, links, classes of nodes."""

import functools
import warnings

import jupytext
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from scipy import sparse
from torch_geometric.nn import GATConv, GCNConv

from recutils import graph, models
from recutils.data.schema import Baskets
from recutils.graph.build import GraphError, adjacency, normalize_adjacency

PATH = np.array([[0, 1], [1, 2]])  # three nodes in a row: 0 - 1 - 2


# ------------------------------------------------------------------------------------ edges


def test_normalised_adjacency_on_paper():
    """With loops the rows sum to 2, 3, 2: the entries are 1/2, 1/sqrt(6), 1/3."""
    a, b, c = 1 / 2, 6**-0.5, 1 / 3
    expected = [[a, b, 0], [b, c, b], [0, b, a]]
    assert np.allclose(normalize_adjacency(adjacency(PATH, 3)).toarray(), expected)


@pytest.mark.parametrize("edges", [PATH, PATH[::-1], np.hstack([PATH, PATH, PATH[::-1], [[2], [2]]])])
def test_repeats_directions_and_loops_make_no_difference(edges):
    found = adjacency(torch.as_tensor(edges.copy()), 4)  # node 3 has no edge
    assert np.array_equal(found.toarray(), [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    assert normalize_adjacency(found)[3, 3] == 1


@pytest.mark.parametrize("edges", [np.zeros((2, 0), int), [], torch.zeros(2, 0).long()])
def test_a_graph_without_edges_is_a_graph(edges):
    found = adjacency(edges, 3)
    assert found.nnz == 0 and np.array_equal(normalize_adjacency(found).toarray(), np.eye(3))


@pytest.mark.parametrize(
    ("edges", "n", "said"),
    [
        ([[0, 3], [1, 1]], 3, "nodes 0 to 3; 3 nodes are numbered 0 to 2"),
        ([[-1], [1]], 3, "nodes -1 to 1"),
        ([[0, 1, 2]], 3, r"shape \(2, n_edges\)"),
        ([[0.5], [1.0]], 3, "whole numbers"),
        ([[0], [0]], 0, "no nodes"),
    ],
)
def test_bad_edges_get_one_clear_message(edges, n, said):
    with pytest.raises(GraphError, match=said):
        adjacency(edges, n)


def test_copurchase_edges_are_counted_by_hand():
    """Ten baskets; pasta (0) and sauce (1) share four of them, milk (2) is in all, soap (3) stands alone."""
    baskets = np.zeros((10, 4))
    baskets[:4, [0, 1]] = 1
    baskets[:, 2] = 1
    baskets[9, 3] = 1
    matrix = sparse.csr_matrix(baskets)
    edges = graph.build_item_graph(matrix, min_count=4, min_lift=2)["copurchase"]
    assert set(zip(*edges.nonzero(), strict=True)) == {(0, 1), (1, 0)}  # lift 2.5; with milk it is 1
    assert edges[0, 1] == pytest.approx(np.log((4 + 1) / (4 * 4 / 10 + 1)))
    assert graph.build_item_graph(matrix, min_count=5, min_lift=1)["copurchase"].nnz == 0
    assert graph.build_item_graph(matrix, min_count=4, min_lift=1)["copurchase"].nnz == 6


def test_text_and_attribute_edges():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=np.float32)
    table = pd.DataFrame({"type": ["a", "b", "a", None], "size": ["s", "s", "s", None]})
    kinds = graph.build_item_graph(sparse.csr_matrix((2, 4)), vectors=vectors, neighbours=1, attributes=table)
    assert set(zip(*kinds["text"].nonzero(), strict=True)) == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert set(zip(*kinds["attribute"].nonzero(), strict=True)) == {(0, 2), (2, 0)}
    few = graph.build_item_graph(sparse.csr_matrix((2, 4)), vectors=vectors, neighbours=10)["text"]
    assert few.nnz == 10  # all pairs but the one at a right angle
    with pytest.raises(GraphError, match="3 rows of vectors for 4 items"):
        graph.build_item_graph(sparse.csr_matrix((2, 4)), vectors=vectors[:3])


# ------------------------------------------------------------------------------------ layers


@pytest.fixture(scope="module")
def by_hand():
    """The layers as the chapter writes them: the cells of the notebook that define them, executed."""
    scope = {"torch": torch, "functional": torch.nn.functional}
    for cell in jupytext.read(ROOT / "notebooks" / "03_product_graph.md").cells:
        if cell.source.startswith(("def gcn_layer", "def gat_layer")):
            exec(cell.source, scope)
    return scope


@pytest.fixture
def dense():
    return torch.as_tensor(adjacency(PATH, 3).toarray())


def test_gcn_by_hand_on_paper(by_hand, dense):
    """h = (1, 2, 3): the middle node gets (1 + 3) / sqrt(6) + 2 / 3."""
    found = by_hand["gcn_layer"](torch.tensor([[1.0], [2.0], [3.0]]), dense, torch.ones(1, 1))
    assert found[1].item() == pytest.approx(4 / 6**0.5 + 2 / 3)
    assert found[0].item() == pytest.approx(1 / 2 + 2 / 6**0.5)


def test_gat_by_hand_on_paper(by_hand, dense):
    """Attention by the source node's value alone: softmax over (1, 2, 3) for the middle node."""
    h, one = torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(1)
    found, alpha = by_hand["gat_layer"](h, dense, torch.ones(1, 1), 0 * one, one)
    e = np.exp([1.0, 2.0, 3.0])
    assert np.allclose(alpha[1], e / e.sum(), atol=1e-6)
    assert found[1].item() == pytest.approx((e @ [1, 2, 3]) / e.sum(), abs=1e-5)
    assert alpha[0, 2] == 0 and torch.allclose(alpha.sum(dim=1), torch.ones(3))


def test_layers_by_hand_equal_the_library_on_a_random_graph(by_hand):
    rng = np.random.default_rng(0)
    matrix = adjacency(rng.integers(30, size=(2, 60)), 32)  # two nodes at least have no edge
    index, h = torch.as_tensor(np.stack(matrix.nonzero())).long(), torch.randn(32, 5)
    a = torch.as_tensor(matrix.toarray())
    gcn = GCNConv(5, 4, bias=False)
    assert torch.allclose(by_hand["gcn_layer"](h, a, gcn.lin.weight.T), gcn(h, index), atol=1e-5)
    ours = graph.as_tensor(matrix) @ (h @ gcn.lin.weight.T)
    assert torch.allclose(ours, gcn(h, index), atol=1e-5)
    gat = GATConv(5, 4, bias=False)
    mine, _ = by_hand["gat_layer"](h, a, gat.lin.weight.T, gat.att_dst.flatten(), gat.att_src.flatten())
    assert torch.allclose(mine, gat(h, index), atol=1e-5)


@pytest.mark.parametrize("conv", ["gcn", "gat", "sage", "none"])
def test_item_encoder_aggregates_its_neighbours_and_repeats_itself(conv):
    features = np.eye(4, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (graph.ItemEncoder(features, [adjacency(PATH, 4)], conv, seed=3) for _ in range(2))
        before = one.vectors()
    assert np.array_equal(before, two.vectors()) and before.shape == (4, 128)
    one.set_graph([adjacency(np.array([[0], [3]]), 4)])
    changed = ~np.isclose(one.vectors(), before).all(axis=1)
    assert changed.any() == (conv != "none")


def test_item_encoder_says_what_is_wrong():
    with pytest.raises(GraphError, match="conv is 'gin'"):
        graph.ItemEncoder(np.eye(3), [adjacency(PATH, 3)], "gin")
    with pytest.raises(GraphError, match="all items are the same"):
        graph.ItemEncoder(None, [adjacency(PATH, 3)], item_embedding=False)


# ------------------------------------------------------------------------------------ the recommender


def test_graph_recommender_keeps_to_its_world(two_worlds):
    n = two_worlds.shape[0]
    train = Baskets(two_worlds, np.zeros(n, int), np.zeros(n, "datetime64[ns]"))
    features = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    model = graph.GraphRecommender(features, steps=60).fit(train)
    assert isinstance(model, models.Recommender)
    assert (model.similar_items(0, 9) < 10).all() and (model.similar_items(15, 9) >= 10).all()
    assert np.allclose(model.embed(features), model.vectors, atol=1e-5)
    again = graph.GraphRecommender(features, steps=60).fit(train)
    assert np.array_equal(again.score(train[:5]), model.score(train[:5]))


# ------------------------------------------------------------------------------------ classes of nodes


@pytest.fixture(scope="module")
def blocks():
    """A made-up graph in the image of the Amazon ones: four classes, and vague words."""
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=800)
    a, b = rng.integers(800, size=(2, 30000))
    kept = rng.random(30000) < np.where(y[a] == y[b], 0.6, 0.12)
    words = rng.random((4, 60)) * 0.1 + 0.1
    x = (rng.random((800, 60)) < words[y]).astype(np.float32)
    train, check = np.zeros(800, bool), np.zeros(800, bool)
    for k in range(4):
        members = rng.permutation(np.flatnonzero(y == k))
        train[members[:20]], check[members[20:50]] = True, True
    return x, np.stack([a[kept], b[kept]]), y, train, check


@pytest.fixture(scope="module")
def trained(blocks):
    """A classifier of the blocks' nodes and its logits, by model and seed; each is trained once."""
    return functools.cache(lambda model, seed: graph.train_node_classifier(*blocks, model=model, seed=seed))


@pytest.mark.parametrize("model", ["gcn", "gat"])
@pytest.mark.slow
def test_node_classifier_beats_words_alone(blocks, trained, model):
    x, edges, y, train, check = blocks
    found, logits = trained(model, 0)
    rest = ~(train | check)
    right = (logits.argmax(dim=1).numpy() == y)[rest].mean()
    _, alone = graph.train_node_classifier(x, np.zeros((2, 0), int), y, train, check, model=model)
    words = (alone.argmax(dim=1).numpy() == y)[rest].mean()
    assert right > 0.8 and right > words + 0.2
    assert torch.allclose(found(x, edges), logits, atol=1e-4)
    _, again = graph.train_node_classifier(*blocks, model=model, seed=0)
    assert torch.equal(again, logits)


@pytest.mark.slow
def test_attention_reaches_the_level_of_gcn(blocks, trained):
    _, _, y, train, check = blocks
    right = {}
    for model in ("gcn", "gat"):
        found = [trained(model, seed)[1] for seed in range(2)]
        right[model] = np.mean([(f.argmax(dim=1).numpy() == y)[~(train | check)].mean() for f in found])
    assert right["gat"] > right["gcn"] - 0.03


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "gin"}, "model is 'gin'"),
        ({"y": np.zeros(5, int)}, "number of nodes"),
        ({"train_mask": np.zeros(800, bool)}, "must each name nodes"),
        ({"edge_index": np.array([[0], [800]])}, "numbered 0 to 799"),
    ],
)
def test_node_classifier_says_what_is_wrong(blocks, change, said):
    names = ("x", "edge_index", "y", "train_mask", "val_mask")
    with pytest.raises(GraphError, match=said):
        graph.train_node_classifier(**{**dict(zip(names, blocks, strict=True)), **change})


# ------------------------------------------------------------------------------------ what the chapter promises
