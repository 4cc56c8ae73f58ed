"""Settings and API keys of the service (chapter 07)."""

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from recutils.service.files import locked, write_file
from recutils.settings import cache_folder

SCOPES = ("ask", "feedback", "operate")


class ApiKey(BaseModel):
    """What is kept of a key: its SHA-256, until when it holds (seconds since 1970; None: for ever), what it may do."""

    sha256: str
    expires: float | None = None
    scopes: tuple[str, ...] = SCOPES


class ServiceSettings(BaseSettings):
    """Where the service finds things, and what it allows.

    All but folder and keys may come from the environment, as `RECUTILS_RATE`, or from a file of that name in the folder
    that `RECUTILS_SECRETS_DIR` names; where folder, secret and keys come from else, `load_settings` says.

    - `folder`: artefacts, as `artifact.save` writes them
    - `feedback`: URL of the database that keeps feedback, see `FeedbackStore`; else a file in `folder`
    - `redis`: URL of the Redis that counts each key's requests for all processes, see `SharedLimiter`; without one
      each of `workers` processes counts its own share
    - `secret`: 16 bytes or more, makes pseudonyms of household ids
    - `keys`: each API key as it is kept, or its SHA-256 alone, by the id of its client
    - `rate`, `burst`: requests a second and at once that one key may make; some routes cost more than one, see
      `middleware.REQUEST_COST`
    - `max_body`, `max_feedback`: bytes of one request, and of the feedback file
    - `poll_interval`: seconds between checks of which version is current, and of the keys
    - `max_delay`: seconds that a request may have waited since it was read from its connection, before it is begun;
      one that waited longer is refused
    - `deadline`: seconds for one request in all, the sending of its body included
    - `patience`: seconds within which a client must have sent its request, once it is connected or has begun
    - `drain`: seconds between SIGTERM and the end of new connections; /ready says no meanwhile
    """

    model_config = SettingsConfigDict(env_prefix="RECUTILS_", hide_input_in_errors=True)

    folder: Path
    secret: bytes = Field(repr=False)
    keys: dict[str, str | ApiKey] = Field(default={}, repr=False)
    feedback: str = Field(default="", repr=False)
    redis: str = Field(default="", repr=False)
    workers: int = Field(default=1, ge=1)
    rate: float = Field(default=50, gt=0)
    burst: float = Field(default=100, gt=0)
    max_body: int = 64 * 1024
    max_feedback: int = 1_000_000_000
    poll_interval: float = 0.5
    max_delay: float = Field(default=0.08, gt=0)
    deadline: float = Field(default=5, gt=0)
    patience: float = Field(default=10, gt=0)
    drain: float = Field(default=0, ge=0)

    @field_validator("secret")
    @classmethod
    def long_enough(cls, secret: bytes) -> bytes:
        """16 bytes at least."""
        if len(secret) < 16:
            raise ValueError("The secret (RECUTILS_SECRET) is too short; 16 bytes or more are wanted.")
        return secret


def create_key(folder: Path, client: str, days: float | None = None, scopes: Sequence[str] = SCOPES) -> str:
    """Make an API key, keep its SHA-256 in `keys.json` of the folder, and return it: it cannot be read there again.

    A key is 32 random bytes, so that a plain hash is enough; a password would need a slow one. Several processes may
    make keys at the same time, and a running service takes them up. Raises ValueError for an unknown scope.
    """
    if not set(scopes) <= set(SCOPES):
        raise ValueError(f"A key may {', '.join(SCOPES)}; not {', '.join(sorted(set(scopes) - set(SCOPES)))}.")
    expires = None if days is None else time.time() + 86_400 * days
    with locked(folder):
        return _add_key(folder, client, expires=expires, scopes=tuple(scopes))


def revoke_key(folder: Path, client: str) -> bool:
    """Forget a client's key; False where there is none. A running service refuses it from its next look on."""
    with locked(folder):
        keys = read_keys(folder)
        found = keys.pop(client, None) is not None
        if found:
            write_file(folder / "keys.json", json.dumps(keys, indent=1), 0o600)
    return found


def create_first_key(folder: Path) -> str | None:
    """Make the key of the client `first` as `create_key` does; None where the folder has a key already."""
    with locked(folder):
        return None if read_keys(folder) else _add_key(folder, "first")


def _add_key(folder: Path, client: str, **kept: Any) -> str:
    key = secrets.token_urlsafe(32)
    entry = ApiKey(sha256=hashlib.sha256(key.encode()).hexdigest(), **kept)
    keys = read_keys(folder) | {client: entry.model_dump()}
    write_file(folder / "keys.json", json.dumps(keys, indent=1), 0o600)
    return key


def load_settings(folder: Path | None = None, **limits: Any) -> ServiceSettings:
    """Settings from a folder, and from the environment or the files of `RECUTILS_SECRETS_DIR`.

    The secret is `RECUTILS_SECRET` of either, else the folder's file `secret` (made if missing). `folder`: else
    `RECUTILS_SERVED`, else `served` in the book's cache.
    """
    folder, files = folder or default_folder(), os.environ.get("RECUTILS_SECRETS_DIR") or None
    given = os.environ.get("RECUTILS_SECRET") or (files and (Path(files) / "RECUTILS_SECRET").exists())
    found: dict[str, Any] = {"_secrets_dir": files, "keys": read_keys(folder)}
    found |= {} if given else {"secret": _read_secret(folder)}
    return ServiceSettings(folder=folder, **found | limits)


def default_folder() -> Path:
    """`RECUTILS_SERVED`, else `served` in the book's cache."""
    return Path(os.environ.get("RECUTILS_SERVED") or cache_folder() / "served")


def read_keys(folder: Path) -> dict[str, Any]:
    """`keys.json` of a folder: what is kept of each client's key. Raises ValueError where it holds something else."""
    file = folder / "keys.json"
    keys = json.loads(file.read_text()) if file.exists() else {}
    if not isinstance(keys, dict):
        raise ValueError(f"{file.name} holds no object of keys.")
    return keys


def _read_secret(folder: Path) -> bytes:
    """The secret of a folder; the first process that asks makes it."""
    file = folder / "secret"
    if not file.exists():
        with locked(folder):
            if not file.exists():
                write_file(file, secrets.token_hex(32), 0o600)
    return file.read_bytes().strip()


class Authenticator:
    """Whose key it is, and what it may do; `keys`: see `ServiceSettings`."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.take(keys)

    def take(self, keys: Mapping[str, Any]) -> None:
        """These keys count from now on, and no others."""
        self.keys = {c: ApiKey(sha256=k) if isinstance(k, str) else ApiKey.model_validate(k) for c, k in keys.items()}

    def client_id(self, key: str) -> str | None:
        """The client of a key that holds, or None. All are compared whatever the answer, each in constant time."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        now = time.time()
        found = [
            client
            for client, known in self.keys.items()
            if hmac.compare_digest(known.sha256, digest) and (known.expires is None or now < known.expires)
        ]
        return found[0] if found else None

    def may(self, client: str, scope: str) -> bool:
        """Whether a client's key allows a scope."""
        return scope in self.keys[client].scopes
