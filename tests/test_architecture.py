"""The habits that a machine can check. Each failure names the file, the line and the rule."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.source_tree import LEAF, PACKAGES, ROOT, Module, defined, functions, imported, layer_of, length, modules, own_module

from agentmem import errors

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_SERVICER_LINES = 15
MEDIAN_FILE_LINES = 150

# A layer may import layers of a lower number, and itself. Two layers of one number do not know each other.
RANK = {
    LEAF: 0,
    "v1": 1,
    "stores": 1,
    "compression": 2,
    "memory": 3,
    "speculation": 4,
    "chat": 5,
    "engine": 5,
    "sessions": 6,
    "api": 7,
    "http": 7,
    "app": 8,
    "testing": 9,
    "bench": 9,
    "demo": 10,
    "cli": 11,
}
# These two see less than their height would allow: they are installed or run on their own.
ONLY = {"client": {LEAF, "v1"}, "workers": {LEAF, "stores", "compression"}}
SEES_CLIENT = {"testing", "demo", "bench", "cli"}
SEES_WORKERS = {"sessions", "app", "bench", "cli"}
SEES_PROTOBUF = {"v1", "api", "http", "client"}

# Which layers may import a foreign library; the deeper a library sits, the fewer know it.
FOREIGN = {
    "google": SEES_PROTOBUF,
    "grpc": SEES_PROTOBUF | {"app", "testing"},
    "grpc_health": {"api", "app"},
    "grpc_reflection": {"api", "app"},
    "grpc_status": SEES_PROTOBUF,
    "redis": {"stores"},
    "sqlite3": {"stores"},
    "transformers": {"chat", "engine", "bench", "demo"},
    "torch": {"stores", "compression", "memory", "speculation", "chat", "engine", "sessions", "workers", "bench", "demo", "app", "testing"},
    "typer": {"bench", "cli"},
    "rich": {"bench", "cli", "demo"},
}


def allowed(importer: str, target: str) -> bool:
    """Whether code of layer ``importer`` may import layer ``target``."""
    if importer == target:
        return True
    if importer in ONLY:
        return target in ONLY[importer]
    if target == "client":
        return importer in SEES_CLIENT
    if target == "workers":
        return importer in SEES_WORKERS
    if target == "v1":
        return importer in SEES_PROTOBUF
    return RANK[target] < RANK[importer]


def each_module() -> list[object]:
    return [pytest.param(module, id=module.name) for module in modules()]


@pytest.mark.parametrize("module", each_module())
def test_files_and_functions_stay_short(module: Module) -> None:
    """A file has at most 400 lines and a function at most 50."""
    assert module.n_lines <= MAX_FILE_LINES, f"{module.where} has {module.n_lines} lines"
    long = [
        f"{module.where}:{node.lineno} {node.name} has {length(node)} lines"
        for node in functions(module.tree)
        if length(node) > MAX_FUNCTION_LINES
    ]
    assert [] == long


def test_test_files_stay_short_too() -> None:
    """A file of tests has at most 400 lines as well."""
    lines = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert {} == {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


def test_the_median_file_is_small() -> None:
    """Half of the files have well under 150 lines."""
    assert statistics.median(module.n_lines for module in modules()) < MEDIAN_FILE_LINES


@pytest.mark.parametrize("module", each_module())
def test_imports_only_go_downward(module: Module) -> None:
    """A layer imports the layers below it alone, inside functions too."""
    wrong = [
        f"{module.where}:{line} {module.layer} imports {name}"
        for name, line in imported(module)
        if (own := own_module(name)) and not allowed(module.layer, layer_of(own))
    ]
    assert [] == wrong


@pytest.mark.parametrize("module", each_module())
def test_foreign_libraries_stay_in_their_layers(module: Module) -> None:
    """Protobuf, transformers, SQLite, Redis and torch are known to the layers that need them and to no other."""
    wrong = [
        f"{module.where}:{line} {module.layer} imports {name}"
        for name, line in imported(module)
        if (library := name.partition(".")[0]) in FOREIGN and module.layer not in FOREIGN[library]
    ]
    assert [] == wrong


def test_there_are_no_import_cycles() -> None:
    """No module imports itself by a detour, not even inside a function."""
    graph = {module.name: {own for name, _ in imported(module) if (own := own_module(name))} - {module.name} for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import agentmem", ("torch", "grpc", "transformers", "numpy")),
        ("import agentmem.config, agentmem.types, agentmem.errors, agentmem.registry", ("torch", "grpc", "transformers", "numpy")),
        ("import agentmem_client", ("torch", "transformers", "numpy", "typer", "rich")),
        ("import agentmem.cli.main", ("torch", "transformers", "numpy")),
    ],
)
def test_importing_stays_light(statement: str, forbidden: tuple[str, ...]) -> None:
    """The package, the client and the command line start without loading what only a server needs."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(set({forbidden!r}) & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [] == json.loads(done.stdout)


def public(tree: ast.AST) -> list[ast.AST]:
    """Return the public classes, functions and methods of ``tree``; what is inside a function is nobody's business."""
    found: list[ast.AST] = []
    for name, node in defined(tree).items():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not name.startswith("_"):
            found += [node, *(public(node) if isinstance(node, ast.ClassDef) else ())]
    return found


@pytest.mark.parametrize("module", each_module())
def test_everything_public_has_a_docstring(module: Module) -> None:
    """Modules, public classes, functions and methods say what they do."""
    missing = [
        f"{module.where}:{getattr(node, 'lineno', 1)}" for node in (module.tree, *public(module.tree)) if not ast.get_docstring(node)
    ]
    assert [] == missing


def is_broad(node: ast.expr | None) -> bool:
    """Whether an except clause or a suppress() takes every exception."""
    return node is None or any(isinstance(part, ast.Name) and part.id in ("Exception", "BaseException") for part in ast.walk(node))


@pytest.mark.parametrize("module", each_module())
def test_no_error_is_swallowed(module: Module) -> None:
    """No bare except, no broad except whose body does nothing, no suppress(Exception)."""
    wrong = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler):
            idle = all(
                isinstance(line, ast.Pass | ast.Continue) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
                for line in node.body
            )
            if node.type is None or (idle and is_broad(node.type)):
                wrong.append(f"{module.where}:{node.lineno}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(is_broad, node.args)):
            wrong.append(f"{module.where}:{node.lineno}")
    assert [] == wrong


def test_servicer_methods_are_thin() -> None:
    """A servicer's method converts, calls and converts back: at most 15 lines, its docstring apart."""
    wrong = [
        f"{module.where}:{method.lineno} {method.name}"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Servicer") for base in node.bases)
        for method in functions(node)
        if length(method, docstring=False) > MAX_SERVICER_LINES
    ]
    assert [] == wrong


@pytest.mark.parametrize("module", each_module())
def test_all_is_sorted_and_true(module: Module) -> None:
    """``__all__`` is sorted and every name in it exists."""
    names = defined(module.tree)
    if "__all__" not in names:
        return
    listed = ast.literal_eval(names["__all__"].value)  # type: ignore[attr-defined]
    assert sorted(listed) == list(listed)
    lazily = set(names) if "__getattr__" not in names else set(listed)
    assert [] == [name for name in listed if name not in lazily]


def test_every_error_is_mapped() -> None:
    """Each class of the tree has its row in the one table, and a reason of its own that leads back to it."""

    def tree(cls: type[errors.AgentMemError]) -> set[type[errors.AgentMemError]]:
        return {cls}.union(*map(tree, cls.__subclasses__()))

    ours = {cls for cls in tree(errors.AgentMemError) if cls.__module__ == errors.__name__} - {errors.AgentMemError}
    assert ours == set(errors.STATUS)
    assert ours == set(errors.BY_REASON.values())


def test_every_test_says_what_it_expects() -> None:
    """Each test function has a docstring that states the expected behaviour."""
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert [] == missing


PATH = re.compile(r"[\w./-]+\.(?:py|proto|toml|md|txt|sh|yaml)|(?:agentmem|clients|workers|protos|tests|deploy)(?:/[\w.-]+)*/?")
SYMBOL = re.compile(r"(?P<path>[\w/]+\.py)::?(?P<symbol>[\w.]+)(?:\(\))?")
DOTTED = re.compile(r"(?P<path>agentmem(?:_client|_workers)?(?:\.\w+)+)(?:\(\))?")


def symbol_exists(path: Path, dotted: str) -> bool:
    """Whether ``dotted`` (``Class.method``) is bound in the Python file ``path``, attributes of a class included."""
    if not path.is_file():
        return False
    node: ast.AST | None = ast.parse(path.read_text(encoding="utf-8"))
    for part in filter(None, dotted.split(".")):
        node = defined(node).get(part) if node is not None else None
    return node is not None


def named_thing_exists(text: str) -> bool:
    """Whether what a page calls ``text`` is there: a path, ``path.py:Symbol.method`` or ``agentmem.module.Symbol``. Else: not ours."""
    if match := SYMBOL.fullmatch(text):
        return symbol_exists(ROOT / match["path"], match["symbol"])
    if (match := DOTTED.fullmatch(text)) and match["path"] != "agentmem.toml" and (own := own_module(match["path"])):
        folder = PACKAGES[own.partition(".")[0]].joinpath(*own.split(".")[1:])
        rest = match["path"][len(own) :].strip(".")
        path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        return not rest or symbol_exists(path, rest)
    if PATH.fullmatch(text) and "/" in text:
        return (ROOT / text).exists()
    return True


def test_the_architecture_page_names_what_exists() -> None:
    """Every path, ``path.py:Symbol`` and dotted name in backticks in ARCHITECTURE.md is found in the tree."""
    quoted = re.findall(r"`([^`\n]+)`", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert [] == [text for text in quoted if not named_thing_exists(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("agentmem/errors.py", True),
        ("agentmem/gone.py", False),
        ("agentmem/errors.py:AgentMemError.default_reason", True),
        ("agentmem/errors.py:Gone", False),
        ("agentmem.config.load_settings", True),
        ("agentmem.config.load_nothing", False),
        ("agentmem.toml", True),
        ("attend(q, k, v)", True),
    ],
)
def test_the_page_check_can_fail(text: str, found: bool) -> None:
    """The check finds what exists, misses what does not, and leaves words that are not names of ours alone."""
    assert found is named_thing_exists(text)
