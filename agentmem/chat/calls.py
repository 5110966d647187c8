"""Tool calls found in a reply while it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from agentmem.chat.json_reading import Ended, Malformed, Reading
from agentmem.chat.reply_parts import NewId, ParsedReply, Piece, ReplyParts
from agentmem.types import ToolCall


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How calls show in text. ``marker`` opens them; ``read`` is the coroutine that reads what follows and tells ``ReplyParts``.

    ``bare``: nothing opens them but their own ``{`` on a line of its own, which is the marker and read by ``read`` too. Such text need
    not be a call, so it is no problem if it is none.
    """

    marker: str
    read: Callable[[ReplyParts], Reading]
    bare: bool = False


class CallStream:
    """Parses one reply as its text comes. What it gives out doesn't depend on how the text was cut. Not thread safe.

    Nothing is dropped but the calls' own markup and whitespace around them: what turns out to be no call is content, from where a call
    breaks off if it was told already; ``problems`` says so. Text is held back only while it may begin a call.
    ``known``: names of the tools, None if it is not known which there are.
    """

    def __init__(self, syntax: CallSyntax, new_id: NewId, known: Collection[str] | None = None) -> None:
        self._syntax = syntax
        self._parts = ReplyParts(new_id, known)
        self._rest = ""  # text that is neither shown nor read
        self._reading: Reading | None = None
        self._raw: list[str] = []  # what the reader was given, the marker included
        self._kept = 0  # how many characters of it were delivered as calls
        self._line_is_blank = True
        self._opening = re.compile(r"(?:\A|\n)[ \t]*(?=\{)")

    def push(self, text: str) -> list[Piece]:
        """Return the pieces that became certain with ``text``: visible text and tool calls, in order."""
        self._rest += text
        self._advance()
        return self._parts.take()

    def finish(self) -> list[Piece]:
        """Return what was held back; the reply is complete."""
        while self._reading is not None:
            self._end_reading(self._reading)
            self._advance()
        self._parts.say(self._rest)
        self._rest = ""
        self._parts.close()
        return self._parts.take()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls so far; the last one may be incomplete."""
        return self.parsed().message.tool_calls

    @property
    def content(self) -> str:
        """The text around the calls so far."""
        return self.parsed().message.content

    @property
    def problems(self) -> list[str]:
        """What was wrong with the calls, for a person."""
        return list(self._parts.problems)

    @property
    def partial(self) -> bool:
        """Whether the reply ended inside its last call. Known after ``finish``."""
        return self._parts.partial

    def parsed(self) -> ParsedReply:
        """Return the reply so far."""
        return self._parts.parsed()

    # -- text between calls ---------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go through the rest, as far as it can be decided what it is."""
        while self._rest and (self._read_calls(self._reading) if self._reading is not None else self._read_text()):
            pass

    def _read_text(self) -> bool:
        """Show text up to the next marker; return whether there is one."""
        at, marker = self._find(), self._syntax.marker
        if at is None:
            held = next((n for n in range(min(len(marker) - 1, len(self._rest)), 0, -1) if self._rest.endswith(marker[:n])), 0)
            self._show(len(self._rest) - held)
            return False
        self._show(at)
        self._start_reading()
        return True

    def _show(self, length: int) -> None:
        text, self._rest = self._rest[:length], self._rest[length:]
        line = text.rpartition("\n")[2]
        self._line_is_blank = (self._line_is_blank or len(line) < len(text)) and not line.strip()
        self._parts.say(text)

    def _find(self) -> int | None:
        """Return where in the rest the next marker is."""
        if not self._syntax.bare:
            at = self._rest.find(self._syntax.marker)
            return at if at >= 0 else None
        found = self._opening.search(self._rest)
        if found is not None and not self._line_is_blank and self._rest[found.start()] != "\n":
            found = self._opening.search(self._rest, 1)
        return None if found is None else found.end()

    # -- calls ----------------------------------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        marker = self._syntax.marker
        self._reading = self._syntax.read(self._parts)
        next(self._reading)
        self._raw, self._kept = [], 0
        if not self._syntax.bare:
            self._raw += marker
            self._rest = self._rest[len(marker) :]

    def _read_calls(self, reading: Reading) -> bool:
        """Give the rest to the reader, character by character; return whether it left some of it."""
        parts = self._parts
        for position, char in enumerate(self._rest):
            self._raw.append(char)
            progress = parts.progress
            try:
                reading.send(char)
            except Malformed as problem:
                self._rest = self._rest[position + 1 :]
                self._give_up(problem)
                return True
            except StopIteration as end:
                self._rest = f"{end.value}{self._rest[position + 1 :]}"
                self._stop_reading()
                return True
            if parts.progress != progress:
                self._kept = len(self._raw)
        self._rest = ""
        return False

    def _end_reading(self, reading: Reading) -> None:
        """Tell the reader that the text ends here."""
        parts = self._parts
        try:
            reading.send("")
        except StopIteration:
            self._stop_reading()
            return
        except Malformed as problem:
            if not parts.in_call and self._kept:
                parts.problems.append(f"the reply ended before call {parts.index - 1} was closed")
            elif parts.announced and parts.in_call:
                parts.partial = True
                parts.problems.append(f"the reply ended inside call {parts.index}")
            else:
                self._give_up(problem)
                return
            parts.abandon()
            self._stop_reading()

    def _give_up(self, problem: Malformed) -> None:
        """Report what broke a call, and make what was not delivered of it text again."""
        parts, kept = self._parts, self._kept
        if isinstance(problem, Ended):
            what = f"the reply ended inside call {parts.index}"
        elif parts.in_call or not kept:
            what = f"call {parts.index} is malformed: {problem}"
        else:
            what = f"call {parts.index - 1} is not closed: {problem}"
        if kept or not self._syntax.bare:
            parts.problems.append(what)
        parts.abandon()
        self._rest = "".join(self._raw[kept:]) + self._rest
        self._stop_reading()
        if not kept:
            self._show(len(self._syntax.marker))  # the marker is text now, and what came after it may hold another one

    def _stop_reading(self) -> None:
        self._reading = None
        self._raw = []
        self._line_is_blank = True
