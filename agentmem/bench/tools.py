"""The tools of recorded agents: they work on one scratch directory, and nothing of the machine shows in what they return."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.types import ToolSpec

TIMEOUT_SECONDS = 60.0
MOST_HITS = 60  # lines of a search that are shown
AROUND = 4  # lines shown before and after an edit
BEGINNING = 10  # lines shown of a file that was written
SECONDS_TAKEN = re.compile(r"(?<=^Ran )(\d+ tests?) in [\d.]+s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it, and what runs it: a function of the scratch directory and the call's arguments."""

    spec: ToolSpec
    run: Callable[..., str]


def run_tool(root: Path, name: str, arguments: Mapping[str, Any]) -> str:
    """Return what tool ``name`` says. It may change files below ``root``, which must be an absolute path without symbolic links.

    Raises InvalidInput for a path outside of ``root``; a call that fails otherwise is told to the agent in words.
    """
    result = TOOLS[name].run(root, **arguments)
    return result.replace(f"{root}/", "").replace(sysconfig.get_path("stdlib"), "lib").rstrip("\n")


def definitions(text: str) -> dict[str, ast.AST]:
    """Return the classes, functions and methods of the Python source ``text`` by their dotted names."""
    found: dict[str, ast.AST] = {}

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[prefix + child.name] = child
                visit(child, f"{prefix}{child.name}.")

    visit(ast.parse(text), "")
    return found


def list_files(root: Path, directory: str) -> str:
    """Return the files below ``directory`` with their lines and bytes."""
    rows = [(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")) for path in _files(_inside(root, directory))]
    return "\n".join(f"{name}  {len(text.splitlines())} lines  {len(text.encode())} bytes" for name, text in rows)


def read_file(root: Path, path: str, start: int, end: int) -> str:
    """Return lines ``start`` to ``end`` of a file, counted from 1, below a line that says which these are."""
    lines = _inside(root, path).read_text(encoding="utf-8").splitlines()
    end = min(end, len(lines))
    return "\n".join([f"{path}, lines {start} to {end} of {len(lines)}:", *lines[start - 1 : end]])


def grep(root: Path, pattern: str, path: str) -> str:
    """Return the lines of a file, or of the files below a directory, in which a regular expression is found."""
    search = re.compile(pattern).search
    hits = [
        f"{file.relative_to(root).as_posix()}:{number}: {line}"
        for file in _files(_inside(root, path))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if search(line)
    ]
    more = [f"({len(hits) - MOST_HITS} more lines are not shown)"] if len(hits) > MOST_HITS else []
    return "\n".join([f"{len(hits)} lines match {pattern!r}:", *hits[:MOST_HITS], *more])


def find_symbol(root: Path, name: str) -> str:
    """Return where classes, functions and methods called ``name`` are defined, and every line that uses the name."""
    lines = []
    for file in _files(root):
        text, where = file.read_text(encoding="utf-8"), file.relative_to(root).as_posix()
        if file.suffix == ".py":
            for dotted, node in definitions(text).items():
                if dotted.rpartition(".")[2] == name:
                    start, end = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
                    lines.append(f"definition: {dotted} in {where}, lines {start} to {end}")
    return "\n".join([*lines, *grep(root, rf"\b{re.escape(name)}\b", ".").splitlines()[1:]])


def edit_file(root: Path, path: str, old: str, new: str) -> str:
    """Replace ``old``, which must occur once in the file, by ``new``; return the numbered lines around the change."""
    file = _inside(root, path)
    text = file.read_text(encoding="utf-8")
    starts = [match.start() for match in re.finditer(re.escape(old), text)]
    if len(starts) != 1:
        at = "\n".join(_numbered(text, line, line) for line in (text.count("\n", 0, start) + 1 for start in starts))
        return (
            f"error: the old text occurs {len(starts)} times in {path}, but it has to occur exactly once. Nothing was changed. "
            f"Give more of the lines around it.\n{at}"
        )
    changed = text[: starts[0]] + new + text[starts[0] + len(old) :]
    file.write_text(changed, encoding="utf-8")
    first = text.count("\n", 0, starts[0]) + 1
    return f"{path} was changed. The lines around the change are now:\n" + _numbered(
        changed, first - AROUND, first + new.count("\n") + AROUND
    )


def write_file(root: Path, path: str, content: str) -> str:
    """Write a whole file; return its size and its first lines, numbered."""
    file = _inside(root, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    size = f"{len(content.splitlines())} lines, {len(content.encode())} bytes"
    return f"{path} was written: {size}. It begins with:\n" + _numbered(content, 1, BEGINNING)


def run_python(root: Path, code: str) -> str:
    """Run ``code`` in a new interpreter in the scratch directory, whose modules come before the standard library's."""
    return _python(root, "-c", code)


def run_tests(root: Path, path: str) -> str:
    """Run a file of unittest tests. How long they took is left out, since it would differ at every recording."""
    return SECONDS_TAKEN.sub(r"\1", _python(root, "-m", "unittest", "-v", path))


def _python(root: Path, *arguments: str) -> str:
    # Without site and the shell's variables: the same output on every machine with the same standard library.
    variables = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80", "NO_COLOR": "1", "PATH": os.defpath}
    done = subprocess.run(  # noqa: S603 - the code is in our own scripts
        [sys.executable, "-S", *arguments],
        cwd=root,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    status = f"exit status {done.returncode}\n" if done.returncode else ""
    return done.stdout + status


def _inside(root: Path, path: str) -> Path:
    """Return the absolute form of ``path``. Raises InvalidInput when it leads out of ``root``."""
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise InvalidInput(f"path {path!r} leads out of the scratch directory")
    return found


def _files(path: Path) -> Iterator[Path]:
    """Yield the files below a directory in the order of their names, or the one file that ``path`` is."""
    yield from (part for part in sorted(path.rglob("*")) if part.is_file()) if path.is_dir() else (path,)


def _numbered(text: str, start: int, end: int) -> str:
    lines = list(enumerate(text.splitlines(), 1))[max(start, 1) - 1 : end]
    return "\n".join(f"{number:5}  {line}".rstrip() for number, line in lines)


def _tool(run: Callable[..., str], description: str, **properties: Mapping[str, object]) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return Tool(ToolSpec(run.__name__, description, json.dumps(schema)), run)


_PATH = {"type": "string", "maxLength": 200, "description": "relative path"}
_LINE = {"type": "integer", "minimum": 1}
_TEXT = {"type": "string", "maxLength": 8000}

TOOLS: dict[str, Tool] = {
    tool.spec.name: tool
    for tool in (
        _tool(list_files, "List the files below a directory with their sizes.", directory=_PATH),
        _tool(read_file, "Read lines of a file, from start to end.", path=_PATH, start=_LINE, end=_LINE),
        _tool(grep, "Search a file or a directory for a regular expression.", pattern={"type": "string", "maxLength": 200}, path=_PATH),
        _tool(find_symbol, "Find where a name is defined and used.", name={"type": "string", "maxLength": 100}),
        _tool(edit_file, "Replace old text, which must occur once in the file, by new text.", path=_PATH, old=_TEXT, new=_TEXT),
        _tool(write_file, "Write a whole file.", path=_PATH, content=_TEXT),
        _tool(run_python, "Run Python code and return what it prints.", code=_TEXT),
        _tool(run_tests, "Run a file of unittest tests.", path=_PATH),
    )
}
