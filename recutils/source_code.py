"""What code does, as text to be hashed: modules by their files, functions of a notebook by what is in memory."""

import ast
import dis
import functools
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import joblib

# What a module does: digests of its file and of those it imports. They are made once a process, so that an edit during
# a run does not file the results of the code in memory under the key of the code on disk.


def module_code(module: str) -> list[str]:
    """A line for the module and for each of its own package that it imports: its name and the digest of its code."""
    return [f"{name} {code_digest(name)}" for name in sorted(imported_modules(module))]


@functools.cache
def imported_modules(module: str) -> frozenset[str]:
    """The module and those of its own package that it imports, directly or through others."""
    package, found, waiting = module.partition(".")[0], set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found or _source(name) is None:
            continue
        found.add(name)
        for node in ast.walk(_parsed(name)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == package:
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] == package]
    return frozenset(found)


@functools.cache
def code_digest(module: str) -> str:
    """A hash of what a module does, as it was when first asked for: comments, docstrings and layout do not count."""
    return "" if _source(module) is None else hashlib.sha256(ast.dump(_parsed(module)).encode()).hexdigest()


def _source(module: str) -> Path | None:
    """The file of a module, None where there is none (a name that is a function, a module typed into a notebook)."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package) if package and package not in sys.modules else None
    origin = getattr(sys.modules.get(package), "__file__", None) or (
        spec.origin if spec and spec.has_location else None
    )
    if origin is None:
        return None
    place = Path(origin).parent.joinpath(*rest)
    files = [place.with_suffix(".py"), place / "__init__.py"] if rest else [Path(origin)]
    return next((file for file in files if file.suffix == ".py" and file.exists()), None)


@functools.cache
def _parsed(module: str) -> ast.Module:
    tree = ast.parse(Path(str(_source(module))).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:  # type: ignore[arg-type]
            node.body = node.body[1:]  # type: ignore[attr-defined]
    return tree


# What a function typed into a notebook does. There is no file, and a cell can be run again, so it is read from memory
# at each call: compiled instructions hold no comments, and never load a docstring.


def notebook_code(value: Any, name: str, seen: set[int]) -> Iterator[str]:
    """All that a value named `name` does or holds: code, and whatever that refers to, for values from a notebook.

    Functions and classes of the notebook are followed. Modules of libraries count by the versions in `libraries`, those
    of this package and of the reader by their code, data by their hash. Raises TypeError for data that has none.
    """
    yield name
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, ModuleType | FunctionType | type):
        home = str(value.__name__ if isinstance(value, ModuleType) else value.__module__)
        if home != "__main__":
            yield f"{home} {getattr(value, '__qualname__', '')}"
            yield from [] if _of_library(home) else module_code(home)
        elif isinstance(value, FunctionType):
            yield from _function_code(value, seen)
        elif isinstance(value, type):
            yield from _class_code(value, seen)
    else:
        yield from _data_code(value, name, seen)


def _of_library(module: str) -> bool:
    """Whether a module is part of Python or installed, and not of this package."""
    package = module.partition(".")[0]
    file = _source(package)
    if package == __name__.partition(".")[0] or file is None:
        return file is None
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return bool(installed) or any(file.is_relative_to(sysconfig.get_path(p)) for p in ("stdlib", "platstdlib"))


def _function_code(function: FunctionType, seen: set[int]) -> Iterator[str]:
    yield _constant(function.__code__)
    used, attributes, modules = set(), set(), set()
    for instruction in _instructions(function.__code__):
        yield f"{instruction.opname} {_constant(instruction.argval)}"
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            used.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"):  # each may name a module of a package
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            modules.add(instruction.argval)
    for name in sorted(used & function.__globals__.keys()):
        value = function.__globals__[name]
        yield from notebook_code(value, name, seen)
        if isinstance(value, ModuleType):
            modules.add(value.__name__)
    for module in sorted(modules):
        yield from [] if _of_library(module) else _modules_code(module, sorted(attributes))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield from notebook_code(cell.cell_contents, name, seen)
    yield from notebook_code(function.__defaults__, "defaults", seen)
    yield from notebook_code(function.__kwdefaults__, "defaults by keyword", seen)


def _modules_code(module: str, attributes: list[str]) -> Iterator[str]:
    """The code of a module and of those inside it that attributes may name, as in `recutils.data.item_text`."""
    yield from module_code(module)
    for inside in (f"{module}.{attribute}" for attribute in attributes):
        if _source(inside) is not None:
            yield from _modules_code(inside, attributes)


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    for instruction in dis.get_instructions(code):
        yield instruction
        if isinstance(instruction.argval, CodeType):
            yield from _instructions(instruction.argval)


VARIABLE_ARGUMENTS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def _constant(value: Any) -> str:
    """A constant of compiled code as text that is the same in every process."""
    if isinstance(value, CodeType):
        code = value  # not all flags: some tell of a docstring
        arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        kinds = (code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & VARIABLE_ARGUMENTS)
        return f"{code.co_name} {arguments} {kinds}"
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _class_code(cls: type, seen: set[int]) -> Iterator[str]:
    for base in cls.__bases__:
        yield from notebook_code(base, base.__name__, seen)
    for name, member in sorted(vars(cls).items()):
        special = (name.startswith("__") and name.endswith("__")) or name == "_abc_impl"
        if isinstance(member, FunctionType) or not (special or inspect.ismemberdescriptor(member)):
            yield from notebook_code(member, name, seen)


WRAPPERS = (
    functools.partial,
    functools.cached_property,
    MethodType,
    BuiltinFunctionType,
    staticmethod,
    classmethod,
    property,
)


def _data_code(value: Any, name: str, seen: set[int]) -> Iterator[str]:
    """Containers by what they hold, wrappers by what they wrap, all else by its type and its hash."""
    parts: list[Any] = [type(value)]
    if isinstance(value, dict):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts += value
    elif isinstance(value, WRAPPERS) or (callable(value) and hasattr(value, "__wrapped__")):
        inside = ("func", "args", "keywords", "__func__", "__self__", "fget", "fset", "__wrapped__")
        parts += [getattr(value, attribute) for attribute in inside if hasattr(value, attribute)]
    else:
        try:
            yield str(joblib.hash(value))
        except Exception as error:  # what cannot be pickled can raise anything
            raise TypeError(
                f"{name!r}, which a cached function uses, is a {type(value).__name__} and has no hash; "
                "pass what the function needs of it as an argument."
            ) from error
    for part in parts:
        yield from notebook_code(part, name, seen)
