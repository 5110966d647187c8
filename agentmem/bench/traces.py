"""Recorded agents: what they were asked, what their tools returned, and what they replied, turn by turn.

The files in ``agentmem/bench/recorded`` are package data; ``python -m agentmem.bench.record`` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.types import Message, ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class TraceTurn:
    """``messages`` are new, of the user or a tool; ``reply`` is what the agent answered: a text or one call.

    ``tool``: the name of the tool that is called, "" for a text. ``tokens``: a max_tokens that the reply fits into, 16 to 400.
    """

    messages: tuple[Message, ...]
    reply: Message
    tool: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One agent's conversation. ``about`` says in a sentence what it does."""

    name: str
    about: str
    system: str
    tools: tuple[ToolSpec, ...]
    turns: tuple[TraceTurn, ...]


def trace_names() -> tuple[str, ...]:
    """Return the names of all traces in alphabetical order."""
    folder = files("agentmem.bench").joinpath("recorded")
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def load_traces(names: Iterable[str] | None = None) -> tuple[Trace, ...]:
    """Return the traces called ``names``, in that order; all of them for None. Raises InvalidInput for an unknown name."""
    known = trace_names()
    chosen = known if names is None else tuple(names)
    if unknown := [name for name in chosen if name not in known]:
        raise InvalidInput(f"there is no trace {unknown[0]!r}; known are {', '.join(known)}")
    folder = files("agentmem.bench").joinpath("recorded")
    return tuple(_trace(json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))) for name in chosen)


def _trace(data: dict[str, Any]) -> Trace:
    tools = tuple(ToolSpec(tool["name"], tool["description"], _dump(tool["parameters"])) for tool in data["tools"])
    return Trace(data["name"], data["about"], data["system"], tools, tuple(map(_turn, data["turns"])))


def _turn(data: dict[str, Any]) -> TraceTurn:
    call = data["reply"].get("call")
    calls = (ToolCall(call["id"], call["name"], _dump(call["arguments"])),) if call else ()
    reply = Message("assistant", data["reply"]["content"], tool_calls=calls)
    return TraceTurn(tuple(Message(**message) for message in data["messages"]), reply, call["name"] if call else "", data["tokens"])


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
