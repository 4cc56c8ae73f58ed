"""An encoder with fewer layers, trained on or not (chapter 07). torch is imported where a function needs it."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recutils.settings import cached

if TYPE_CHECKING:
    from scipy import sparse

    from recutils.text.encoder import Encoder


def keep_layers(encoder: "Encoder", layers: Sequence[int]) -> "Encoder":
    """A copy that has only some of its layers (numbers from 0, in order); the original stays as it is."""
    import torch

    other = copy.copy(encoder)
    other.model = copy.deepcopy(encoder.model)
    other.model.encoder.layer = torch.nn.ModuleList(other.model.encoder.layer[n] for n in layers)
    other.model.config.num_hidden_layers = len(layers)
    return other


def taught_again(
    texts: list[str],
    matrix: "sparse.csr_matrix",
    more: "sparse.csr_matrix",
    steps: int,
    layers: Sequence[int] = range(6),
) -> "tuple[Encoder, np.ndarray]":
    """`text.shop_encoder(texts, matrix)` with some of its layers, after more steps on the baskets `more`; kept on disk.

    Also the vectors of the texts, (n_items, width). It starts from the encoder that chapter 02 taught on `matrix`.
    """
    import torch

    from recutils import text

    weights, vectors = _taught_again(texts, matrix, more, steps, list(layers))
    encoder = keep_layers(text.load_encoder(), layers)
    encoder.model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    return encoder, vectors


@cached(libraries=("torch", "transformers", "tokenizers"))
def _taught_again(
    texts: list[str], matrix: "sparse.csr_matrix", more: "sparse.csr_matrix", steps: int, layers: list[int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    from recutils import text

    encoder = keep_layers(text.shop_encoder(texts, matrix), layers)
    text.fine_tune(encoder, texts, more, text.TrainingSettings(steps=steps))
    weights = {name: value.cpu().numpy() for name, value in encoder.model.state_dict().items()}
    return weights, text.encode(encoder, texts)
