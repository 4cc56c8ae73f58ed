"""Profile, seed, folders and the disk cache that every chapter shares.

Environment variables (all optional):

- `RECUTILS_PROFILE`: `auto` (default), `cpu`, `gpu` or `long`: how big the budgets of a chapter are. `long` is the
  CPU with more patience (`make long`).
- `RECUTILS_CACHE`: where expensive stages keep what they built; delete it at any moment.
- `RECUTILS_RESULTS`: where chapters write their headline numbers; unset, they are only shown.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import importlib
import inspect
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import joblib
import pandas as pd
from filelock import FileLock
from joblib import Memory
from scipy import sparse

SEED = 0
P = ParamSpec("P")
R = TypeVar("R")


def profile() -> str:
    """The budget in force, `"cpu"`, `"gpu"` or `"long"`; `auto` means `gpu` where PyTorch is installed and sees one.

    Raises ValueError for any other value of `RECUTILS_PROFILE`.
    """
    wanted = os.environ.get("RECUTILS_PROFILE", "auto")
    if wanted not in ("auto", "cpu", "gpu", "long"):
        raise ValueError(f"RECUTILS_PROFILE is {wanted!r}; set it to 'auto', 'cpu', 'gpu' or 'long'.")
    if wanted != "auto":
        return wanted
    try:
        import torch
    except ImportError:
        return "cpu"
    return "gpu" if torch.cuda.is_available() else "cpu"


def cache_folder() -> Path:
    """Where cached stages live: `RECUTILS_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recutils"
    return Path(os.environ.get("RECUTILS_CACHE", default))


def results_folder() -> Path:
    """Where result rows are read from: `RECUTILS_RESULTS`, else `data/results` of the repository."""
    default = Path(__file__).resolve().parent.parent / "data" / "results"
    return Path(os.environ.get("RECUTILS_RESULTS", default))


def stage(function: Callable[P, R], apart: bool = False) -> Callable[P, R]:
    """Keep a function's result on disk, by its arguments and by the source of the module it stands in.

    A stage holds models and tables, never measurements. Two processes that ask for the same stage build
    it once: the second waits for the first. A damaged or deleted cache is built again. With `apart`, what is not yet
    there is built in a process of its own, whose memory is free again afterwards.

    A csr matrix remembers what was asked of it, so that equal ones could differ on disk; it is passed on afresh.
    """
    source = inspect.getsourcefile(function)
    assert source is not None
    text = Path(source).read_bytes() + pd.__version__.encode() + platform.python_version().encode()
    version = hashlib.sha256(text).hexdigest()[:12]

    def afresh(value: Any) -> Any:
        if isinstance(value, sparse.csr_matrix):
            return sparse.csr_matrix((value.data, value.indices, value.indptr), value.shape)
        return [afresh(v) for v in value] if isinstance(value, list) else value

    @functools.wraps(function)
    def cached(*args: P.args, **kwargs: P.kwargs) -> R:
        given: list[Any] = afresh(list(args))
        named: Any = {name: afresh(value) for name, value in kwargs.items()}
        folder = cache_folder() / f"{function.__name__}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            memory = Memory(folder, verbose=0).cache(function)
            if apart and not memory.check_call_in_cache(*given, **named):
                with tempfile.TemporaryDirectory() as place:
                    task = Path(place) / "task"
                    joblib.dump((function.__module__, function.__name__, folder, given, named), task)
                    code = f"from recutils.settings import build; build({str(task)!r})"
                    subprocess.run([sys.executable, "-c", code], capture_output=True)  # if it fails, we try ourselves
            return memory(*given, **named)

    return cached


def build(task: str) -> None:
    """What a stage's own process does: read what is to be done from a file, do it, keep the result in its folder."""
    module, name, folder, given, named = joblib.load(task)
    function = getattr(importlib.import_module(module), name).__wrapped__
    Memory(folder, verbose=0).cache(function)(*given, **named)


def release_memory() -> None:
    """Hand memory that large arrays have freed back to the system, which the C library would keep (glibc only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
