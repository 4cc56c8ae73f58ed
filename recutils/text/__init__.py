"""What the words on an item say: an encoder, and how the shop teaches it (chapter 02).

Needs the extra `text` (PyTorch, transformers). Vectors have unit length, so that a dot product is a cosine."""

from recutils.text.encoder import (
    EMBEDDED,
    EMBEDDED_SHA256,
    Encoder,
    ModelError,
    TextWarning,
    best_device,
    bf16,
    check_weights,
    embed,
    encode,
    load_encoder,
    load_model,
    model_folder,
    pool,
)
from recutils.text.tagger import Tagger, bio, tag_attributes, tag_words, train_tagger
from recutils.text.training import (
    draw_baskets,
    fine_tune,
    leave_one_out_loss,
    rest_of_basket,
    shop_encoder,
    shop_vectors,
    train_steps,
    trainable,
)

__all__ = [
    "EMBEDDED",
    "EMBEDDED_SHA256",
    "Encoder",
    "ModelError",
    "Tagger",
    "TextWarning",
    "best_device",
    "bf16",
    "bio",
    "check_weights",
    "draw_baskets",
    "embed",
    "encode",
    "fine_tune",
    "leave_one_out_loss",
    "load_encoder",
    "load_model",
    "model_folder",
    "pool",
    "rest_of_basket",
    "shop_encoder",
    "shop_vectors",
    "tag_attributes",
    "tag_words",
    "train_steps",
    "train_tagger",
    "trainable",
]
