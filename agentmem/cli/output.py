"""What commands print: JSON for programs on stdout, tables for people, errors and progress on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import typer

from agentmem.errors import AgentMemError, Disconnected
from agentmem.views import SessionInfo

BAR_CHARACTERS = 20
PIPE_COLUMNS = 240  # a pipe has no width of its own; lines stay whole for grep


def fail(error: AgentMemError) -> None:
    """Print ``error`` as one line on stderr, with what to do about a server that does not answer."""
    hint = "; is a server running there? `agentmem serve` starts one" if isinstance(error, Disconnected) else ""
    typer.echo(f"error: {' '.join(error.message.split())}{hint} ({error.reason})", err=True)


def print_json(value: object) -> None:
    """Print ``value`` as one line of JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table for people. The first column, a name to copy, is wrapped last."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    first, *others = columns
    table = Table(Column(first, no_wrap=True, overflow="fold"), *others, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PIPE_COLUMNS
    console.print(table)


def bar(share: float, whole: float) -> str:
    """Return a bar as long as ``share`` of ``whole``: up to 20 characters, at least one for what is not nothing."""
    length = round(BAR_CHARACTERS * share / whole) if whole > 0 else 0
    return "#" * (max(length, 1) if share > 0 else 0)


def snippet(text: str, characters: int) -> str:
    """Return the beginning of ``text`` as one line; what a terminal might obey is replaced."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
    return line if len(line) <= characters else line[:characters] + "..."


def session_json(info: SessionInfo) -> dict[str, Any]:
    """Return a session as one flat JSON object."""
    values = asdict(info)
    record: dict[str, Any] = values.pop("record")
    return record | values


def ago(seconds_since_epoch: float) -> str:
    """Return how long ago a moment was, or how far ahead, in the largest unit that fits."""
    seconds = time.time() - seconds_since_epoch
    size, unit = next(((size, unit) for size, unit in ((86400, "d"), (3600, "h"), (60, "min")) if abs(seconds) >= size), (1, "s"))
    text = f"{abs(seconds) / size:.0f} {unit}"
    return f"{text} ago" if seconds >= 0 else f"in {text}"
