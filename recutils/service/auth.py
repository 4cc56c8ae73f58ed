"""Settings, API keys and rate limits of the service (chapter 07)."""

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock
from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from recutils.settings import cache_folder


class ServiceSettings(BaseSettings):
    """Where the service finds things, and what it allows.

    Limits may come from the environment, as `RECUTILS_RATE`; where folder, secret and keys come from, `load_settings`
    says.

    - `folder`: artefacts, as `artifact.save` writes them; `feedback.jsonl` is kept beside them
    - `secret`: 16 bytes or more, makes pseudonyms of household ids
    - `keys`: the SHA-256 of each API key, by the id of its client
    - `rate`, `burst`: requests a second and at once that one key may make of this process; some routes cost more than
      one, see `middleware.REQUEST_COST`
    - `max_body`, `max_feedback`: bytes of one request, and of the feedback file
    - `poll_interval`: seconds between checks of which version is current
    """

    model_config = SettingsConfigDict(env_prefix="RECUTILS_", hide_input_in_errors=True)

    folder: Path
    secret: bytes = Field(repr=False)
    keys: dict[str, str] = Field(default={}, repr=False)
    rate: float = Field(default=50, gt=0)
    burst: float = Field(default=100, gt=0)
    max_body: int = 64 * 1024
    max_feedback: int = 1_000_000_000
    poll_interval: float = 0.5

    @field_validator("secret")
    @classmethod
    def long_enough(cls, secret: bytes) -> bytes:
        """16 bytes at least."""
        if len(secret) < 16:
            raise ValueError("The secret (RECUTILS_SECRET) is too short; 16 bytes or more are wanted.")
        return secret


def create_key(folder: Path, client: str) -> str:
    """Make an API key, keep its SHA-256 in `keys.json` of the folder, and return it: it cannot be read there again.

    A key is 32 random bytes, so that a plain hash is enough; a password would need a slow one. Several processes may
    make keys at the same time.
    """
    with _locked(folder):
        return _add_key(folder, client)


def create_first_key(folder: Path) -> str | None:
    """Make the key of the client `first` as `create_key` does; None where the folder has a key already."""
    with _locked(folder):
        return None if _read_keys(folder) else _add_key(folder, "first")


def _add_key(folder: Path, client: str) -> str:
    key = secrets.token_urlsafe(32)
    keys = _read_keys(folder) | {client: hashlib.sha256(key.encode()).hexdigest()}
    _write(folder / "keys.json", json.dumps(keys, indent=1))
    return key


def load_settings(folder: Path | None = None, **limits: Any) -> ServiceSettings:
    """Settings from a folder: `RECUTILS_SECRET` or the file `secret` (made if missing), and `keys.json`.

    `folder`: else `RECUTILS_SERVED`, else `served` in the book's cache.
    """
    folder = folder or default_folder()
    secret = os.environ.get("RECUTILS_SECRET", "").encode() or _read_secret(folder)
    return ServiceSettings(folder=folder, secret=secret, **{"keys": _read_keys(folder), **limits})


def default_folder() -> Path:
    """`RECUTILS_SERVED`, else `served` in the book's cache."""
    return Path(os.environ.get("RECUTILS_SERVED") or cache_folder() / "served")


def _read_keys(folder: Path) -> dict[str, str]:
    file = folder / "keys.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _read_secret(folder: Path) -> bytes:
    """The secret of a folder; the first process that asks makes it."""
    file = folder / "secret"
    if not file.exists():
        with _locked(folder):
            if not file.exists():
                _write(file, secrets.token_hex(32))
    return file.read_bytes().strip()


def _locked(folder: Path) -> AcquireReturnProxy:
    """One process at a time may change what lies in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", mode=0o600).acquire(poll_interval=0.005)


def _write(file: Path, text: str) -> None:
    """Whole or not at all, and for the owner's eyes only."""
    new = file.with_name(f".{file.name}-{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
    os.replace(new, file)


class Authenticator:
    """Whose key it is; `keys`: the SHA-256 of each API key, by the id of its client."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys

    def client_id(self, key: str) -> str | None:
        """The client of a key, or None. All keys are compared whatever the answer, each in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        found = [client for client, known in self.keys.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None


class RateLimiter:
    """A token bucket for each client: `rate` tokens a second, `burst` at most. `clock` gives seconds."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def wait(self, client: str, cost: float = 1) -> float:
        """Take `cost` tokens; the seconds until there are as many (0: they were taken)."""
        now, cost = self.clock(), min(cost, self.burst)
        tokens, counted = self.buckets.get(client, (self.burst, now))
        tokens = min(tokens + (now - counted) * self.rate, self.burst)
        wait = max(cost - tokens, 0) / self.rate
        self.buckets[client] = (tokens if wait else tokens - cost, now)
        return wait
