"""The source as syntax trees: modules, what they import, how long they are. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "agentmem": ROOT / "agentmem",
    "agentmem_client": ROOT / "clients/agentmem_client",
    "agentmem_workers": ROOT / "workers/agentmem_workers",
}
LEAF = "leaf"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Module:
    """One source file. ``name`` is dotted; a package's ``__init__`` has the package's name."""

    name: str
    path: Path
    tree: ast.Module
    n_lines: int

    @property
    def where(self) -> str:
        """The path relative to the repository, for messages."""
        return str(self.path.relative_to(ROOT))

    @property
    def layer(self) -> str:
        """The layer: the sub-package's name, ``leaf`` for top-level modules but those that wire things together."""
        return layer_of(self.name)


def layer_of(name: str) -> str:
    """Return the layer of the dotted module ``name``."""
    package, _, rest = name.partition(".")
    if package != "agentmem":
        return package.removeprefix("agentmem_")
    first = rest.partition(".")[0]
    if (PACKAGES["agentmem"] / first).is_dir() and first:
        return first
    return first if first in ("app", "demo", "testing") else LEAF


@cache
def modules() -> tuple[Module, ...]:
    """Return every hand-written module of the three packages, by name."""
    found = []
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if path.stem.endswith(("_pb2", "_pb2_grpc")):
                continue
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            found.append(Module(name, path, ast.parse(text), len(text.splitlines())))
    return tuple(found)


def functions(tree: ast.AST) -> Iterator[Function]:
    """Yield every function and method below ``tree``."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(node: Function | ast.ClassDef, *, docstring: bool = True) -> int:
    """Return how many lines ``node`` takes, decorators apart; without its docstring's lines when told so."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if not docstring and ast.get_docstring(node) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def imported(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and line of everything ``module`` imports, inside functions and TYPE_CHECKING blocks too."""
    package = module.name if module.path.stem == "__init__" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module or "")))
            yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def own_module(dotted: str) -> str | None:
    """Return the longest prefix of ``dotted`` that is a module of ours, generated ones included; None when it is foreign."""
    parts = dotted.split(".")
    if parts[0] not in PACKAGES:
        return None
    for end in range(len(parts), 0, -1):
        path = PACKAGES[parts[0]].joinpath(*parts[1:end])
        if path.with_suffix(".py").is_file() or path.is_dir():
            return ".".join(parts[:end])
    return parts[0]


def defined(tree: ast.AST) -> dict[str, ast.AST]:
    """Return the names that ``tree`` (a module or class) binds: classes, functions, assignments, imports."""
    names: dict[str, ast.AST] = {}
    for node in getattr(tree, "body", []):
        if isinstance(node, Function | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return names
