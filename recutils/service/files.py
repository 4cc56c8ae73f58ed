"""Files that several processes change: one at a time, and each file whole or not at all (chapter 07)."""

import os
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock


def locked(folder: Path) -> AcquireReturnProxy:
    """One process at a time may change what lies in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".lock", mode=0o600).acquire(poll_interval=0.005)


def write_file(file: Path, text: str, mode: int = 0o644) -> None:
    """Put a text in place of what a file holds: a reader, or a crash, meets the old one or the new one."""
    new = file.with_name(f".{file.name}-{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, file)
