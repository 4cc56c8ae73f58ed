"""Profile, seeds, precision, folders and the disk cache that every chapter shares.

Environment variables (all optional):

- `RECUTILS_PROFILE`: `auto` (default), `cpu`, `gpu` or `long`: how big the budgets of a chapter are. `long` is the
  CPU with more patience (`make long`).
- `RECUTILS_CACHE`: where cached functions keep their results; delete it at any moment.
- `RECUTILS_RESULTS`: where chapters write their headline numbers; unset, they are only shown.
- `RECUTILS_PRECISION`: `auto` (default: bf16 where the device has it) or `fp32`.
- `RECUTILS_SEED`: the seed of everything that is trained, 0 by default. Split, protocol and intervals have their own.
- `RECUTILS_THREADS`: on how many threads networks are trained, by default as many as there are processors.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import inspect
import os
import platform
import random
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, ParamSpec, TypeVar

import joblib
import numpy as np
from filelock import FileLock
from scipy import sparse

from recutils.source_code import module_code, notebook_code

P = ParamSpec("P")
R = TypeVar("R")


def _choice(name: str, allowed: tuple[str, ...]) -> str:
    """The value of an environment variable, `auto` where it is unset. Raises ValueError for anything not allowed."""
    wanted = os.environ.get(name, "auto")
    if wanted not in allowed:
        raise ValueError(f"{name} is {wanted!r}; set it to {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}.")
    return wanted


def _whole_number(name: str, default: int, low: int, high: int) -> int:
    """The value of an environment variable. Raises ValueError for anything but a whole number from `low` to `high`."""
    wanted = os.environ.get(name, str(default)).strip()
    if not (wanted.isascii() and wanted.isdigit() and low <= int(wanted) <= high):
        raise ValueError(f"{name} is {wanted!r}; set it to a whole number from {low} to {high}.")
    return int(wanted)


SEED = 0  # of the split, of what is hidden, of samples and intervals: the protocol, the same in every run
TRAINING_SEED = _whole_number("RECUTILS_SEED", 0, 0, 2**32 - 1)  # the range of numpy's seeds
REPOSITORY_RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"


def profile() -> str:
    """The budget in force, `"cpu"`, `"gpu"` or `"long"`; `auto` means `gpu` where PyTorch is installed and sees one.

    Raises ValueError for any other value of `RECUTILS_PROFILE`.
    """
    wanted = _choice("RECUTILS_PROFILE", ("auto", "cpu", "gpu", "long"))
    if wanted != "auto":
        return wanted
    try:
        import torch
    except ImportError:
        return "cpu"
    return "gpu" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------------------------------------- numerics


def precision() -> str:
    """`"bf16"` where the best device multiplies 16-bit brain floats itself, else `"fp32"`. Needs PyTorch.

    Emulated bf16 would be slower than fp32. `RECUTILS_PRECISION=fp32` asks for fp32 everywhere; raises ValueError
    where it holds anything but `auto` or `fp32`.
    """
    import torch

    if _choice("RECUTILS_PRECISION", ("auto", "fp32")) == "fp32":
        return "fp32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Older releases of PyTorch cannot say; fp32 is the safe answer there.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    own = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if own else "fp32"


@contextlib.contextmanager
def in_fp32() -> Iterator[None]:
    """A context in which `precision()` is `"fp32"`, in this process and in those it starts."""
    before = os.environ.get("RECUTILS_PRECISION")
    os.environ["RECUTILS_PRECISION"] = "fp32"
    try:
        yield
    finally:
        if before is None:
            del os.environ["RECUTILS_PRECISION"]
        else:
            os.environ["RECUTILS_PRECISION"] = before


def scale_steps(steps: int) -> int:
    """Training steps of an encoder that take about the same time here: half of `steps` where it computes in fp32."""
    return steps if precision() == "bf16" else steps // 2


def n_threads() -> int:
    """On how many threads networks and trees are trained: `RECUTILS_THREADS`, else one a processor.

    Raises ValueError where `RECUTILS_THREADS` holds anything but a whole number from 1 to 1024.
    """
    return _whole_number("RECUTILS_THREADS", os.cpu_count() or 1, 1, 1024)


def seed_everything(seed: int = TRAINING_SEED) -> None:
    """`set_deterministic()`, and seed Python, numpy and PyTorch: what follows repeats to the last bit."""
    import torch

    set_deterministic()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from it
    torch.manual_seed(seed)


def set_deterministic() -> None:
    """From here on PyTorch gives the same bits for the same inputs on this machine, whatever else runs on it.

    It fixes the number of threads and allows deterministic algorithms only. On a GPU PyTorch has none for some
    products with sparse matrices: there it uses another, and results may differ in their last digits.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # A tenth of the time, to find code that reads memory it never wrote; none does here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.get_num_threads() != n_threads():
        torch.set_num_threads(n_threads())


def numerics() -> str:
    """What the last digits of a trained network depend on besides its seed: device, precision, threads, kernels."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} {precision()}"
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"cpu {precision()} {n_threads()} {kernels} {os.environ.get('ONEDNN_MAX_CPU_ISA', '')}".strip()


# ---------------------------------------------------------------------------------------------- folders


def cache_folder() -> Path:
    """Where cached results live: `RECUTILS_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recutils"
    return Path(os.environ.get("RECUTILS_CACHE", default))


def results_folder() -> Path:
    """Where result rows are read from: `RECUTILS_RESULTS`, else `data/results` of the repository."""
    return Path(os.environ.get("RECUTILS_RESULTS", REPOSITORY_RESULTS))


# ---------------------------------------------------------------------------------------------- cache


def cached(version: int = 1, libraries: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that keeps a function's result on disk, by its arguments and by `cache_key`.

    `version` is to be raised where a result changes for a reason that the code does not show; `libraries` are those
    that the result depends on, besides numpy, scipy and pandas. A cache holds models and tables, never measurements.

    It works in a module and in a notebook. Two processes that ask for the same result build it once: the second waits
    for the first. What is damaged or deleted is built again.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def cached_function(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            arguments = joblib.hash({name: canonical(value) for name, value in bound.arguments.items()})
            folder = cache_folder() / f"{function.__name__}-{cache_key(function, version, libraries)}"
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                return _load_or_build(folder / f"{arguments}.pkl", lambda: function(*args, **kwargs))

        return cached_function

    return decorate


def _load_or_build(file: Path, build: Callable[[], R]) -> R:
    if file.exists():
        with contextlib.suppress(Exception):  # a damaged pickle can raise anything
            return joblib.load(file)
    result = build()
    unfinished = file.with_suffix(".unfinished")
    joblib.dump(result, unfinished)
    os.replace(unfinished, file)
    return result


def canonical(value: Any) -> Any:
    """A value as it is hashed, so that equal ones have equal hashes and those that do something else have others.

    A csr matrix is taken without what it remembers of earlier questions; functions, classes, and objects whose class is
    typed into a notebook, by their code and data.
    """
    if isinstance(value, sparse.csr_matrix):
        return sparse.csr_matrix((value.data, value.indices, value.indptr), value.shape)
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, dict):
        return {name: canonical(v) for name, v in value.items()}
    wrapper = isinstance(value, MethodType | functools.partial) or hasattr(value, "__wrapped__")
    if wrapper or isinstance(value, FunctionType | type) or type(value).__module__ == "__main__":
        return list(notebook_code(value, "argument", set()))
    return value


def cache_key(function: Callable, version: int, libraries: tuple[str, ...]) -> str:
    """A short hash of all that the result of a cached function depends on besides its arguments.

    That is its name, `version`, the versions of Python, numpy, scipy, pandas and `libraries`, `numerics` where PyTorch
    is among them, and the code. For a function of a module this is the module and those of its package that it
    imports; for one that is typed into a notebook, what `notebook_code` finds, and `TRAINING_SEED`.
    """
    parts = [function.__module__, function.__name__, str(version), platform.python_version()]
    parts += [f"{name} {installed(name)}" for name in ("numpy", "scipy", "pandas", *libraries)]
    if "torch" in libraries:
        parts.append(numerics())
    if function.__module__ == "__main__":
        parts += [str(TRAINING_SEED), *notebook_code(function, function.__name__, set())]
    else:
        parts += module_code(function.__module__)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def installed(package: str) -> str:
    """The version of an installed package, `none` where it is missing."""
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "none"


def release_memory() -> None:
    """Hand memory that large arrays have freed back to the system, which the C library would keep (glibc only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
