"""Profile, seeds, precision, folders and the disk cache that every chapter shares.

Environment variables (all optional):

- `RECUTILS_PROFILE`: `auto` (default), `cpu`, `gpu` or `long`: how big the budgets of a chapter are. `long` is the
  CPU with more patience (`make long`).
- `RECUTILS_CACHE`: where expensive stages keep what they built; delete it at any moment.
- `RECUTILS_RESULTS`: where chapters write their headline numbers; unset, they are only shown.
- `RECUTILS_PRECISION`: `auto` (default: bf16 where the device has it) or `fp32`.
- `RECUTILS_SEED`: the seed of everything that is trained, 0 by default. Split, protocol and intervals have their own.
- `RECUTILS_THREADS`: on how many threads networks are trained, by default as many as there are processors.
"""

import ast
import contextlib
import ctypes
import functools
import gc
import hashlib
import os
import platform
import random
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
from filelock import FileLock
from joblib import Memory
from scipy import sparse

SEED = 0  # of the split, of what is hidden, of samples and intervals: the protocol, the same in every world
TRAINING_SEED = int(os.environ.get("RECUTILS_SEED", "0"))
REPOSITORY_RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
P = ParamSpec("P")
R = TypeVar("R")


def _choice(name: str, allowed: tuple[str, ...]) -> str:
    """What an environment variable says, `auto` where it is unset. Raises ValueError for anything not allowed."""
    wanted = os.environ.get(name, "auto")
    if wanted not in allowed:
        raise ValueError(f"{name} is {wanted!r}; set it to {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}.")
    return wanted


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


def affordable(steps: int) -> int:
    """As many training steps of an encoder as fit the same time here: half of them where it computes in fp32."""
    return steps if precision() == "bf16" else steps // 2


def threads() -> int:
    """On how many threads networks and trees are trained: `RECUTILS_THREADS`, else one a processor."""
    return int(os.environ.get("RECUTILS_THREADS", os.cpu_count() or 1))


def repeatable(seed: int = TRAINING_SEED) -> None:
    """`deterministic()`, and Python, numpy and PyTorch draw from `seed` on: what follows repeats to the last bit."""
    import torch

    deterministic()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from it
    torch.manual_seed(seed)


def deterministic() -> None:
    """From here on PyTorch gives the same bits for the same inputs on this machine, whatever else runs on it.

    It fixes the number of threads and allows deterministic algorithms only. On a GPU PyTorch has none for some
    products with sparse matrices: there it uses another, and results may differ in their last digits.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # A tenth of the time, to find code that reads memory it never wrote; none does here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads():
        torch.set_num_threads(threads())


def numerics() -> str:
    """What the last digits of a trained network depend on besides its seed: device, precision, threads, kernels."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} {precision()}"
    kernels = torch.backends.cpu.get_cpu_capability()
    return f"cpu {precision()} {threads()} {kernels} {os.environ.get('ONEDNN_MAX_CPU_ISA', '')}".strip()


# ---------------------------------------------------------------------------------------------- folders


def cache_folder() -> Path:
    """Where cached stages live: `RECUTILS_CACHE`, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "recutils"
    return Path(os.environ.get("RECUTILS_CACHE", default))


def results_folder() -> Path:
    """Where result rows are read from: `RECUTILS_RESULTS`, else `data/results` of the repository."""
    return Path(os.environ.get("RECUTILS_RESULTS", REPOSITORY_RESULTS))


# ---------------------------------------------------------------------------------------------- stages


def stage(version: int = 1, libraries: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that keeps a function's result on disk, by its arguments and by all else that it depends on.

    That is `stage_key`: the code of its module and of all modules of this package that it imports, `version` (to be
    raised where a result changes for a reason that the code does not show), the versions of numpy, scipy, pandas and
    of `libraries`, and, where PyTorch is among these, `numerics`. A stage holds models and tables, never measurements.

    Two processes that ask for the same stage build it once: the second waits for the first. A damaged or deleted
    cache is built again.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def cached(*args: P.args, **kwargs: P.kwargs) -> R:
            given: list[Any] = _canonical(list(args))
            named: Any = {name: _canonical(value) for name, value in kwargs.items()}
            folder = cache_folder() / f"{function.__name__}-{stage_key(function, version, libraries)}"
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                return Memory(folder, verbose=0).cache(function)(*given, **named)

        return cached

    return decorate


def stage_key(function: Callable, version: int, libraries: tuple[str, ...]) -> str:
    """A short hash of all that a stage's result depends on besides its arguments."""
    parts = [function.__module__, function.__name__, str(version), platform.python_version()]
    parts += [f"{name} {_installed(name)}" for name in ("numpy", "scipy", "pandas", *libraries)]
    if "torch" in libraries:
        parts.append(numerics())
    parts += [f"{module} {code_digest(module)}" for module in sorted(modules_behind(function.__module__))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _installed(package: str) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return "none"


def _source(module: str) -> Path | None:
    """The file of a module, None where there is none (a name that is a function, a module typed into a notebook)."""
    package, *rest = module.split(".")
    origin = getattr(sys.modules.get(package), "__file__", None)
    if origin is None:
        return None
    place = Path(origin).parent.joinpath(*rest)
    files = [place.with_suffix(".py"), place / "__init__.py"] if rest else [Path(origin)]
    return next((file for file in files if file.exists()), None)


def modules_behind(module: str) -> set[str]:
    """The module and those of its own package that it imports, directly or through others."""
    package, found, waiting = module.partition(".")[0], set(), [module]
    while waiting:
        name = waiting.pop()
        file = _source(name) if name not in found else None
        if file is None:
            continue
        found.add(name)
        for node in ast.walk(_parsed(file, file.stat().st_mtime_ns)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == package:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] == package]
    return found


def code_digest(module: str) -> str:
    """A hash of what a module does: comments, docstrings and layout do not count."""
    file = _source(module)
    return "" if file is None else hashlib.sha256(ast.dump(_parsed(file, file.stat().st_mtime_ns)).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _parsed(file: Path, changed: int) -> ast.Module:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree


def _canonical(value: Any) -> Any:
    """A csr matrix remembers what was asked of it, so that equal ones could differ on disk: made afresh, it forgets."""
    if isinstance(value, sparse.csr_matrix):
        return sparse.csr_matrix((value.data, value.indices, value.indptr), value.shape)
    return [_canonical(v) for v in value] if isinstance(value, list) else value


def release_memory() -> None:
    """Hand memory that large arrays have freed back to the system, which the C library would keep (glibc only)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
