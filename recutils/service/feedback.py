"""What became of offers: a line of JSON each, beside the versions; a household's can be erased (chapters 07, 07b)."""

import json
import os
from pathlib import Path
from typing import Any

from recutils.service.auth import locked


def append_feedback(folder: Path, entry: dict[str, Any], max_bytes: int) -> bool:
    """Append a line in one write; a line that a crash cut short is closed first. False where there is no room."""
    line = json.dumps(entry).encode() + b"\n"
    with locked(folder), open(folder / "feedback.jsonl", "ab+") as stream:
        size = stream.tell()
        if size + len(line) > max_bytes:
            return False
        if size:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
    return True


def household_of(line: bytes) -> Any:
    """Whose line it is; None for nobody's, and for one that a crash cut short."""
    try:
        return json.loads(line).get("household")
    except (ValueError, AttributeError):
        return None


def erase_feedback(folder: Path, household: str) -> int:
    """Take out all that was kept of a household (its pseudonym), while services run; returns how many lines."""
    file, new = folder / "feedback.jsonl", folder / f".feedback-{os.getpid()}"
    with locked(folder):
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        kept = [line for line in lines if household_of(line) != household]
        if len(kept) < len(lines):
            new.write_bytes(b"".join(kept))
            os.replace(new, file)
    return len(lines) - len(kept)
