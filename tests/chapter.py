"""What a notebook defines, without running it: single functions and classes of its cells, for tests of them."""

import ast
import functools
import inspect
import linecache
import re
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import jupytext

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@functools.cache
def definitions(stem: str, *names: str) -> types.ModuleType:
    """A module with the `names` that a notebook (its .md, named without ending) defines, and all that these need.

    That is imports, functions, classes, and constants, which are names in capitals. Nothing else of the notebook is
    run, so that a function which leans on a variable of it fails here. Raises NameError for a name that is missing.
    """
    parts = [part for number, source in _cells(stem) for part in _definitions(number, source)]
    known = {name for bound, _, _ in parts for name in bound}
    if set(names) - known:
        raise NameError(f"Notebook {stem} defines no {', '.join(sorted(set(names) - known))}.")
    needed, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in known and name not in needed:
            needed.add(name)
            waiting += [n.id for bound, _, node in parts if name in bound for n in ast.walk(node) if hasattr(n, "id")]
    module = types.ModuleType(f"chapter_{stem}")
    for bound, file, node in parts:
        if bound & needed:
            exec(compile(ast.Module([node], []), file, "exec"), module.__dict__)
    return module


def plain_code(function: Callable) -> str:
    """A function's code without comments, docstring and layout."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.unparse(tree)


def _cells(stem: str) -> list[tuple[str, str]]:
    """A name and the source of each code cell, without IPython's own lines; tracebacks and `inspect` find it."""
    found = []
    for number, cell in enumerate(jupytext.read(NOTEBOOKS / f"{stem}.md").cells):
        if cell.cell_type == "code":
            lines = re.sub(r"^( *)[%!].*$", r"\1pass", cell.source, flags=re.M).splitlines(True)
            file = f"<{stem}, cell {number}>"
            linecache.cache[file] = (len(cell.source), None, lines, file)
            found.append((file, "".join(lines)))
    return found


def _definitions(file: str, source: str) -> list[tuple[set[str], str, ast.stmt]]:
    """The names that each statement of a cell defines, and the statement, where it is one that defines."""
    found: list[tuple[set[str], str, ast.stmt]] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(({node.name}, file, node))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.append(({(a.asname or a.name).partition(".")[0] for a in node.names}, file, node))
        elif isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id.isupper() for t in node.targets):
            found.append(({t.id for t in node.targets if isinstance(t, ast.Name)}, file, node))
    return found
