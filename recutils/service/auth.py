"""Settings, keys and limits of the service (chapter 07)."""

import hashlib
import hmac
import json
import os
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recutils.settings import cache_folder


@dataclass
class Settings:
    """Where the service finds things, and what it allows.

    - `folder`: artefacts, as `artifact.save` writes them; `feedback.jsonl` is kept beside them
    - `secret`: 16 bytes or more, makes pseudonyms of household ids
    - `keys`: the SHA-256 of each API key, by the name of its holder
    - `rate`, `burst`: requests a second and at once that one key may make of this process; some count more, see `COST`
    - `max_body`, `max_feedback`: bytes of one request, and of the feedback file
    """

    folder: Path
    secret: bytes
    keys: dict[str, str] = field(default_factory=dict)
    rate: float = 50
    burst: float = 100
    max_body: int = 64 * 1024
    max_feedback: int = 1_000_000_000
    look: float = 0.5  # seconds between looks at which version is current

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise ValueError("The secret (RECUTILS_SECRET) is too short; 16 bytes or more are wanted.")


def new_key(folder: Path, name: str) -> str:
    """Make an API key, keep its SHA-256 in `keys.json` of the folder, and return it: it cannot be read there again.

    A key is 32 random bytes, so that a plain hash is enough; a password would need a slow one.
    """
    key = secrets.token_urlsafe(32)
    file = folder / "keys.json"
    keys = json.loads(file.read_text()) if file.exists() else {}
    _write(file, json.dumps({**keys, name: hashlib.sha256(key.encode()).hexdigest()}, indent=1))
    return key


def settings_from(folder: Path, **limits: Any) -> Settings:
    """Settings from a folder: `RECUTILS_SECRET` or the file `secret` (made if missing), and `keys.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "secret"
    if "RECUTILS_SECRET" not in os.environ and not file.exists():
        _write(file, secrets.token_hex(32))
    secret = os.environ.get("RECUTILS_SECRET") or file.read_text().strip()
    keys = folder / "keys.json"
    return Settings(folder, secret.encode(), json.loads(keys.read_text()) if keys.exists() else {}, **limits)


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and for the owner's eyes only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}-{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
    os.replace(new, file)


class Gate:
    """Who may come in, and how often: keys compared in constant time, a bucket of tokens a key."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokens = dict.fromkeys(settings.keys, (settings.burst, time.monotonic()))

    def holder(self, key: str) -> str | None:
        """Whose key it is, or None. All keys are compared whatever the answer, each in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = [name for name, known in self.settings.keys.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None

    def wait(self, name: str, cost: float = 1) -> float:
        """Take tokens; the seconds until there are as many (0: come in)."""
        left, at = self.tokens[name]
        now, cost = time.monotonic(), min(cost, self.settings.burst)
        left = min(left + (now - at) * self.settings.rate, self.settings.burst)
        self.tokens[name] = (left - cost if left >= cost else left, now)
        return 0.0 if left >= cost else (cost - left) / self.settings.rate


def default_folder() -> Path:
    """`RECUTILS_SERVED`, else `served` in the book's cache."""
    return Path(os.environ.get("RECUTILS_SERVED") or cache_folder() / "served")
