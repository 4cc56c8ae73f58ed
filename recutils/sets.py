"""A transformer that reads the open basket as a set (chapter 05). Needs the extra `text` (PyTorch)."""

import numpy as np
import torch
from scipy import sparse
from torch import nn
from torch.nn import functional

from recutils.data.schema import Baskets
from recutils.models.base import Recommender
from recutils.settings import TRAINING_SEED, cached, seed_everything
from recutils.text.encoder import best_device, bf16
from recutils.text.training import train_steps


class SetEncoder(nn.Module):
    """Scores of all items for sets of items: two layers of self-attention, no positions.

    Item j enters as W f_j + e_j (its features, mapped, plus a vector of its own). A learned question stands beside
    the items and attends to them; what it has become, times each item's vector, plus a bias, is the score.
    `features` (n_items, n) or None, `sold` (n_items,) training baskets.
    """

    def __init__(self, features: np.ndarray | None, sold: np.ndarray, width: int = 128, layers: int = 2) -> None:
        super().__init__()
        n_items = len(sold)
        given = np.zeros((n_items, 1)) if features is None else features
        self.register_buffer("features", torch.as_tensor(given, dtype=torch.float32), persistent=False)
        self.map = nn.Linear(given.shape[1], width, bias=False)
        self.own, self.asked = nn.Embedding(n_items, width), nn.Embedding(n_items, width)
        for table in (self.own, self.asked):
            nn.init.normal_(table.weight, std=0.02)
        self.question = nn.Parameter(0.1 * torch.randn(width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.attend = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.as_tensor(np.log(sold + 1), dtype=torch.float32))

    def forward(self, places: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """(n_sets, longest) item numbers and which of them are there -> scores (n_sets, n_items)."""
        items = self.map(self.features) + self.own.weight  # (n_items, width)
        question = self.question.expand(len(places), 1, -1)
        present = functional.pad(there, (1, 0), value=True)
        read = self.attend(torch.cat([question, items[places]], dim=1), src_key_padding_mask=~present)
        answer = self.norm(read[:, 0])  # (n_sets, width)
        return answer @ (items + self.asked.weight).T / answer.shape[1] ** 0.5 + self.bias


def padded(matrix: sparse.csr_matrix, longest: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets as rows of item numbers, filled up with 0, and a mask of what is there; at most `longest` items each."""
    size = np.diff(matrix.indptr)
    width = int(min(size.max(initial=0), longest or size.max(initial=0)))
    there = np.arange(width) < size[:, None]  # (n_sets, width)
    places = np.zeros(there.shape, dtype=np.int64)
    places[there] = matrix.indices[(matrix.indptr[:-1, None] + np.arange(width))[there]]
    return torch.as_tensor(places), torch.as_tensor(there)


class SetTransformer(Recommender):
    """A `SetEncoder` taught by masked items: half of a basket, at most, is hidden and named from the rest.

    Each step reads 512 random baskets of two items or more; the loss is the softmax over all items that do not lie
    open, none sampled, shared among the hidden ones. The open basket is all it reads: no household, no hour, and
    on an empty one it has nothing to say (-inf). What training found is kept on disk.
    Source: the masked items of BERT4Rec (Sun et al., 2019), without an order.
    """

    def __init__(
        self,
        features: np.ndarray | None,
        steps: int = 250,
        width: int = 128,
        layers: int = 2,
        seed: int = TRAINING_SEED,
    ) -> None:
        self.features, self.steps, self.width, self.layers, self.seed = features, steps, width, layers, seed

    def _fit(self, train: Baskets) -> None:
        how = (self.steps, self.width, self.layers, self.seed)
        weights, self.losses = _set_weights(train.matrix, self.features, *how)
        self.encoder = SetEncoder(self.features, np.ones(train.matrix.shape[1]), self.width, self.layers)
        state = {name: torch.as_tensor(value) for name, value in weights.items()}
        self.encoder.load_state_dict(state)
        self.encoder.eval().to(best_device())

    @torch.inference_mode()
    def _score(self, queries: Baskets) -> np.ndarray:
        scores = np.empty(queries.matrix.shape, dtype=np.float32)
        for start in range(0, len(queries), 128):  # attention takes memory by the square of the longest basket
            places, there = (part.to(best_device()) for part in padded(queries.matrix[start : start + 128]))
            scores[start : start + 128] = self.encoder(places, there).float().cpu().numpy()
        scores[np.diff(queries.matrix.indptr) == 0] = -np.inf  # it was never taught an empty basket
        return scores


@cached(libraries=("torch",))
def _set_weights(
    matrix: sparse.csr_matrix, features: np.ndarray | None, steps: int, width: int, layers: int, seed: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    seed_everything(seed)
    device, rng = best_device(), np.random.default_rng(seed)
    encoder = SetEncoder(features, np.asarray(matrix.sum(axis=0)).ravel(), width, layers).to(device)
    matrix = matrix[np.flatnonzero(np.diff(matrix.indptr) >= 2)]

    def loss(step: int) -> torch.Tensor:
        batch = matrix[rng.integers(matrix.shape[0], size=512)]
        size = np.diff(batch.indptr)
        row = np.repeat(np.arange(len(size)), size)
        # The items of a basket in random order: those before `hide` are hidden, 1 to half of them.
        place = np.empty(len(row), int)
        place[np.lexsort((rng.random(len(row)), row))] = np.arange(len(row)) - np.repeat(batch.indptr[:-1], size)
        hide = 1 + np.floor(rng.random(len(size)) * np.maximum(size // 2, 1)).astype(int)
        hidden = place < hide[row]
        share = np.where(hidden, 1 / hide[row], 0).astype(np.float32)
        wanted = torch.zeros(len(size), matrix.shape[1], device=device)
        wanted[row, batch.indices] = torch.as_tensor(share, device=device)
        rest = sparse.csr_matrix((np.where(hidden, 0, 1), batch.indices, batch.indptr), batch.shape)
        rest.eliminate_zeros()
        places, there = (part.to(device) for part in padded(rest, longest=24))
        with bf16(device):
            scores = encoder(places, there)
        open_row, open_column = (torch.as_tensor(part, device=device).long() for part in rest.nonzero())
        scores = scores.float().index_put((open_row, open_column), torch.tensor(-1e4, device=device))
        return -(wanted * functional.log_softmax(scores, dim=1)).sum(dim=1).mean()

    encoder.train()
    losses = train_steps([{"params": list(encoder.parameters()), "lr": 2e-3}], loss, steps)
    return {name: value.cpu().numpy() for name, value in encoder.state_dict().items()}, losses
