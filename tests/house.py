"""What the package's own sources say: rooms and their imports, sizes, private names, and who uses a public name."""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
Node = tuple[str, str]  # a module within recutils, such as "text.encoder", and a name on its first level


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path
    root: Path

    @cached_property
    def name(self) -> str:
        parts = self.path.relative_to(self.root).with_suffix("").parts
        return ".".join(p for p in parts if p != "__init__")

    @property
    def room(self) -> str:
        """The first part of its name: "text" of "text.encoder"; the package itself is ""."""
        return self.name.split(".")[0]

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"))

    @property
    def n_lines(self) -> int:
        return len(self.path.read_text(encoding="utf-8").splitlines())

    @property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]

    @cached_property
    def imports(self) -> set[str]:
        """The rooms of recutils that it imports, also inside functions, its own left out."""
        found = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.name}: imports within the package are written in full"
                if node.module == "recutils":
                    found |= {alias.name for alias in node.names}
                elif (node.module or "").startswith("recutils."):
                    found.add(str(node.module).split(".")[1])
            elif isinstance(node, ast.Import):
                found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("recutils.")}
        return found - {self.room}

    @property
    def definitions(self) -> dict[str, ast.AST]:
        """Functions, classes and constants of its first level, with the code that makes them."""
        found: dict[str, ast.AST] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {t.id: node for t in targets if isinstance(t, ast.Name)}
        return found


def modules(root: Path = ROOT / "recutils") -> list[Module]:
    """All modules of the package."""
    return [Module(path, root) for path in sorted(root.rglob("*.py"))]


def code_of_page(page: Path) -> str:
    """The code cells (or fenced Python) of a notebook's .md or of another page, without options and magics."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:\{code-cell\} ipython3|python)\n(.*?)^```", text, re.S | re.M)
    options = re.compile(r"\A(?:---\n.*?^---\n|(?::[^\n]*\n)+)", re.S | re.M)
    lines = [line for block in blocks for line in options.sub("", block).splitlines()]
    return re.sub(r"^( *)[%!].*$", r"\1pass", "\n".join(lines), flags=re.M)


def identifiers(node: ast.AST) -> set[str]:
    """All names, attributes and imported names in a piece of code."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    found |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    return found | {a.name for n in ast.walk(node) if isinstance(n, ast.ImportFrom) for a in n.names}


def users(package: list[Module], pages: list[Path]) -> dict[Node, set[str]]:
    """For each public name outside service and shop: the notebooks and pages that reach it, "service" and "shop" where
    those do (the command line being the shop's).

    A name is reached where it stands, or where something reached uses it. Names are compared as written, so that two
    of the same name share their users.
    """
    nodes = {(m.name, name): node for m in package for name, node in m.definitions.items()}
    of_name = defaultdict(set)
    for node in nodes:
        of_name[node[1]].add(node)
    uses: dict[Node, set[Node]] = {}
    for (module, name), code in nodes.items():
        found = {n for word in identifiers(code) for n in of_name[word]}
        uses[module, name] = {n for n in found if not n[1].startswith("_") or n[0] == module}
    reached: dict[Node, set[str]] = defaultdict(set)
    starts = {
        page.stem: set().union(*(of_name[w] for w in identifiers(ast.parse(code_of_page(page))))) for page in pages
    }
    apart = {"service": ("service",), "shop": ("shop", "cli")}
    for root, rooms in apart.items():
        starts[root] = {node for node in nodes if node[0].split(".")[0] in rooms}
    for root, start in starts.items():
        stack = [n for n in start if not n[1].startswith("_") or root in apart]
        while stack:
            node = stack.pop()
            if root not in reached[node]:
                reached[node].add(root)
                stack += uses[node]
    outside = {node for node in nodes if node[0].split(".")[0] not in ("service", "shop", "cli")}
    return {node: reached[node] for node in nodes if not node[1].startswith("_") and node in outside}


def private_reads(module: Module) -> list[str]:
    """Private names that a module takes from another one: imports of `_name`, and `other._name` on anything but its own
    class (`self`, `cls`, or an object of a class that the module itself gives such a name)."""
    own = {n.attr for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {f.name for f in module.functions} | set(module.definitions)
    own |= {
        n.target.id for n in ast.walk(module.tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("recutils"):
            found += [f"line {node.lineno}: {a.name}" for a in node.names if a.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            if base not in ("self", "cls") and node.attr not in own:
                found.append(f"line {node.lineno}: {base or '...'}.{node.attr}")
    return found


def done_at_import(module: Module) -> list[str]:
    """Statements of the first level that do something when the module is imported."""
    quiet = (
        ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    )
    found = []
    for node in module.tree.body:
        documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        typing_or_main = isinstance(node, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(node.test))
        if not (isinstance(node, quiet) or documents or typing_or_main):
            found.append(f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}")
    return found


def n_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a function, `self` and `cls` left out."""
    given = function.args
    names = [a.arg for a in given.posonlyargs + given.args + given.kwonlyargs] + [
        a.arg for a in (given.vararg, given.kwarg) if a
    ]
    return len([n for n in names if n not in ("self", "cls")])


def n_lines(function: ast.AST) -> int:
    """Lines of a function, from `def` to its end, its docstring left out."""
    body = function.body  # type: ignore[attr-defined]
    first = body[0]
    documents = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if documents else 0)  # type: ignore[attr-defined]
