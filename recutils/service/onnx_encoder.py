"""An encoder as ONNX, in eight bits or whole (chapter 07). Exporting needs torch; `OnnxEncoder` runs without it."""

import copy
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from recutils.text.encoder import Encoder


def export_onnx(encoder: "Encoder", folder: Path, quantise: bool = True) -> Path:
    """Write `encoder.onnx` (tokens to unit vectors) and `tokenizer.json` into a folder, which is returned.

    With `quantise` the weights of all matrix products become eight-bit integers, one scale a column, and inputs are
    rounded to eight bits as they come (dynamic quantisation).
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    whole = folder / ("whole.onnx" if quantise else "encoder.onnx")
    _write_whole(encoder, whole)
    if quantise:
        _quantise(whole, folder / "encoder.onnx")
        whole.unlink()
    return folder


def _write_whole(encoder: "Encoder", file: Path) -> None:
    """The network with its pooling and normalisation: ids and mask (n_texts, n_tokens) to vectors (n_texts, width)."""
    import torch

    from recutils.text import pool

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(encoder.model).cpu().float().eval()
            self.model.set_attn_implementation("eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return torch.nn.functional.normalize(pool(hidden, mask), dim=1)

    ids = torch.tensor([[101, 102, 0], [101, 7592, 102]])
    axes = {0: "texts", 1: "tokens"}
    with warnings.catch_warnings():  # about sizes taken as constants: the tests export and compare other sizes
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Whole(),
            (ids, (ids > 0).long()),
            str(file),
            input_names=["ids", "mask"],
            output_names=["vectors"],
            dynamic_axes={"ids": axes, "mask": axes, "vectors": {0: "texts"}},
            dynamo=False,
        )


def _quantise(whole: Path, file: Path) -> None:
    """The same network with weights of eight bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to simplify the graph first, which ONNX Runtime does when it loads it
    try:
        quantize_dynamic(whole, file, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        logging.disable(before)


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
            for position, row in enumerate(rows):
                ids[position, : lengths[row]] = tokens[row]
            (found,) = self.session.run(None, {"ids": ids, "mask": (ids > 0).astype(np.int64)})
            vectors[rows] = np.where(lengths[rows, None] > 2, found, 0)  # [CLS] [SEP] and nothing between: no words
        return vectors
