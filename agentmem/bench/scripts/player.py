"""Plays the agent's part of a trace: the script says what it asks and calls, the tools' results are real."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentmem.bench.tools import TOOLS, definitions, run_tool
from agentmem.errors import InvalidInput

LEAST_TOKENS, MOST_TOKENS = 16, 400  # of a reply
# What SmolLM2's tokenizer makes a token of, roughly: up to six letters with the space before, up to two signs, a run of blanks.
PIECE = re.compile(r"[ ]?[A-Za-z]{1,6}|[ ]?\d|[ ]?[^\w\s]{1,2}|\s+|\w")


@dataclass(frozen=True, slots=True)
class Script:
    """One agent. ``files`` are the paths in the standard library that are copied for it, ``play`` what it does there."""

    name: str
    about: str
    system: str
    tools: tuple[str, ...]
    files: tuple[str, ...]
    play: Callable[[Player], None]


class Player:
    """Records one agent on the scratch directory ``root``, which has to have the script's files. Not thread safe.

    ``user``, ``call`` and ``say`` are the conversation; the others prepare it or look something up, and leave no trace.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._new: list[dict[str, str]] = []  # messages since the last reply
        self.turns: list[dict[str, Any]] = []

    def user(self, text: str) -> None:
        """Say ``text`` as the user."""
        self._new.append({"role": "user", "content": text})

    def call(self, tool: str, text: str = "", **arguments: str | int) -> str:
        """Call ``tool`` as the agent, saying ``text`` before it. Return the result, which is what the next reply answers."""
        call: dict[str, Any] = {"id": f"call{len(self.turns):05}", "name": tool, "arguments": arguments}
        written = json.dumps({"name": tool, "arguments": arguments}, ensure_ascii=False)
        self._reply({"content": text, "call": call}, f"{text}\n<tool_call>\n{written}\n</tool_call>")
        result = run_tool(self._root, tool, arguments)
        self._new.append({"role": "tool", "name": tool, "tool_call_id": call["id"], "content": result})
        return result

    def say(self, text: str) -> None:
        """Reply ``text`` as the agent."""
        self._reply({"content": text}, text)

    def _reply(self, reply: dict[str, Any], written: str) -> None:
        if not self._new:
            raise InvalidInput(f"reply {len(self.turns)} answers nothing: {written[:60]!r}")
        self.turns.append({"messages": self._new, "reply": reply, "tokens": max_tokens(written)})
        self._new = []

    def give(self, path: str, text: str) -> None:
        """Put a file of ours into the scratch directory."""
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def plant(self, path: str, old: str, new: str) -> None:
        """Put a bug into a file. Raises InvalidInput when ``old`` does not occur exactly once."""
        text = self._text(path)
        if text.count(old) != 1:
            raise InvalidInput(f"{old!r} occurs {text.count(old)} times in {path}")
        self.give(path, text.replace(old, new))

    def source(self, path: str, name: str) -> str:
        """Return the class, function or method ``name`` (dotted) as it stands in the file now, without a newline at its end."""
        text = self._text(path)
        node: Any = definitions(text)[name]
        return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno])

    def lines(self, path: str, start: int, end: int) -> str:
        """Return lines ``start`` to ``end`` of a file, counted from 1."""
        return "\n".join(self._text(path).splitlines()[start - 1 : end])

    def line(self, text: str, path: str) -> int:
        """Return the number of the first line that holds ``text``, counted from 1."""
        return self._text(path).partition(text)[0].count("\n") + 1

    def _text(self, path: str) -> str:
        return (self._root / path).read_text(encoding="utf-8")


def code(text: str, language: str = "python") -> str:
    """Return ``text`` as a block of code."""
    return f"```{language}\n{text}\n```"


def replaced(text: str, old: str, new: str) -> str:
    """Return ``text`` with one change. Raises InvalidInput when ``old`` is not in it."""
    if old not in text:
        raise InvalidInput(f"{old!r} is not in {text[:60]!r}")
    return text.replace(old, new)


def approximate_tokens(text: str) -> int:
    """Return about how many tokens SmolLM2 makes of ``text``: within 15% for the replies here of 60 tokens and more."""
    return len(PIECE.findall(text))


def max_tokens(reply: str) -> int:
    """Return a limit in tokens that ``reply`` fits into, with a fifth to spare for the approximation: a multiple of 16."""
    return min(max(16 * math.ceil(1.2 * approximate_tokens(reply) / 16), LEAST_TOKENS), MOST_TOKENS)


def record(script: Script) -> dict[str, Any]:
    """Play ``script`` in a directory of its own and return the trace as its JSON file holds it."""
    library = Path(sysconfig.get_path("stdlib"))
    with tempfile.TemporaryDirectory(prefix="agentmem-record-") as directory:
        root = Path(directory).resolve()
        for path in script.files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library / path, root / path)
        player = Player(root)
        script.play(player)
    specs = [TOOLS[name].spec for name in script.tools]
    return {
        "name": script.name,
        "about": script.about,
        "recorded_with": {"python": platform.python_version(), "sources": {path: digest(library / path) for path in script.files}},
        "system": script.system,
        "tools": [{"name": spec.name, "description": spec.description, "parameters": json.loads(spec.parameters)} for spec in specs],
        "turns": player.turns,
    }


def digest(path: Path) -> str:
    """Return a short digest of the file's bytes, 16 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
