"""Pseudonyms of households (chapter 07)."""

import hashlib
import hmac
from typing import Any


def pseudonym(household: Any, secret: bytes) -> str:
    """A household's name in artefacts and feedback: HMAC-SHA256 with the shop's secret, 16 hex digits.

    Without the secret nobody can compute it from an id, or find the id by trying all; with it, everybody can.
    """
    return hmac.new(secret, str(household).encode(), hashlib.sha256).hexdigest()[:16]


def secret_check(secret: bytes) -> str:
    """What an artefact keeps to tell whether its pseudonyms were made with this secret."""
    return pseudonym("the shop's own check", secret)
