"""An encoder made smaller and faster: fewer layers, ONNX Runtime, weights of eight bits. Chapter 07.

torch is imported only where an encoder is changed or exported; `OnnxEncoder` runs without it.
"""

import copy
import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recutils.settings import stage

if TYPE_CHECKING:
    from scipy import sparse

    from recutils.text import Encoder


def keep_layers(encoder: "Encoder", layers: Sequence[int]) -> "Encoder":
    """A copy that has only some of its layers (numbers from 0, in order); the original stays as it is."""
    import torch

    other = copy.copy(encoder)
    other.model = copy.deepcopy(encoder.model)
    other.model.encoder.layer = torch.nn.ModuleList(other.model.encoder.layer[n] for n in layers)
    other.model.config.num_hidden_layers = len(layers)
    return other


def export_onnx(encoder: "Encoder", folder: Path, quantise: bool = True) -> Path:
    """Write `encoder.onnx` (tokens to unit vectors) and `tokenizer.json` into a folder, which is returned.

    With `quantise` the weights of all matrix products become eight-bit integers, one scale a column, and inputs are
    rounded to eight bits as they come (dynamic quantisation).
    """
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from recutils.text import pool

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(encoder.model).cpu().float().eval()
            self.model.set_attn_implementation("eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return torch.nn.functional.normalize(pool(hidden, mask), dim=1)

    folder.mkdir(parents=True, exist_ok=True)
    encoder.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    whole = folder / ("whole.onnx" if quantise else "encoder.onnx")
    ids = torch.tensor([[101, 102, 0], [101, 7592, 102]])
    axes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():  # about sizes taken as constants: the tests export and compare other sizes
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Whole(),
            (ids, (ids > 0).long()),
            str(whole),
            input_names=["ids", "mask"],
            output_names=["vectors"],
            dynamic_axes={"ids": axes, "mask": axes, "vectors": {0: "texts"}},
            dynamo=False,
        )
    if quantise:
        logging.disable(logging.WARNING)  # advice to simplify the graph first, which ONNX Runtime does when it loads it
        try:
            quantize_dynamic(whole, folder / "encoder.onnx", weight_type=QuantType.QInt8, per_channel=True)
        finally:
            logging.disable(logging.NOTSET)
        whole.unlink()
    return folder


class OnnxEncoder:
    """An exported encoder: `encode` as `recutils.text.encode`, by ONNX Runtime, without torch."""

    def __init__(self, folder: Path, threads: int = 1, max_tokens: int = 256) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_tokens)
        self.tokenizer.no_padding()
        self.session = onnxruntime.InferenceSession(
            str(folder / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def encode(self, texts: Iterable[str], batch_size: int = 32) -> np.ndarray:
        """Unit vectors (n_texts, width) float32, sorted by length on the way; a text without words is all zeros."""
        texts = [str(text) for text in texts]
        tokens = [t.ids for t in self.tokenizer.encode_batch(texts)]
        lengths = np.array([len(t) for t in tokens], dtype=int)
        order = np.argsort(lengths, kind="stable")
        vectors = np.zeros((len(texts), self.session.get_outputs()[0].shape[1]), np.float32)
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            ids = np.zeros((len(rows), lengths[rows[-1]]), np.int64)  # 0 is padding
            for place, row in enumerate(rows):
                ids[place, : lengths[row]] = tokens[row]
            (found,) = self.session.run(None, {"ids": ids, "mask": (ids > 0).astype(np.int64)})
            vectors[rows] = np.where(lengths[rows, None] > 2, found, 0)  # [CLS] [SEP] and nothing between: no words
        return vectors


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


@stage(libraries=("torch", "transformers", "tokenizers"))
def _taught_again(
    texts: list[str], matrix: "sparse.csr_matrix", more: "sparse.csr_matrix", steps: int, layers: list[int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    from recutils import text

    encoder = keep_layers(text.shop_encoder(texts, matrix), layers)
    text.fine_tune(encoder, texts, more, steps)
    weights = {name: value.cpu().numpy() for name, value in encoder.model.state_dict().items()}
    return weights, text.encode(encoder, texts)
