"""Texts of items: a pretrained encoder, and its fine-tuning on baskets (chapter 02).

Needs the extra `text` (PyTorch, transformers). Vectors have unit length, so that a dot product is a cosine."""

from recutils.text.encoder import (
    DEFAULT_MODEL,
    MULTILINGUAL_MODEL,
    Encoder,
    ModelError,
    TextWarning,
    best_device,
    bf16,
    embed,
    encode,
    load_encoder,
    load_model,
    model_folder,
    pool,
)
from recutils.text.training import (
    TrainingSettings,
    fine_tune,
    leave_one_out_loss,
    sample_baskets,
    shop_encoder,
    shop_vectors,
    train_steps,
    trainable,
)

__all__ = [
    "DEFAULT_MODEL",
    "MULTILINGUAL_MODEL",
    "Encoder",
    "ModelError",
    "TextWarning",
    "TrainingSettings",
    "best_device",
    "bf16",
    "embed",
    "encode",
    "fine_tune",
    "leave_one_out_loss",
    "load_encoder",
    "load_model",
    "model_folder",
    "pool",
    "sample_baskets",
    "shop_encoder",
    "shop_vectors",
    "train_steps",
    "trainable",
]
