"""What a reply turns out to be: text and tool calls, in pieces for who watches and whole for the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from agentmem.chat.json_reading import Malformed
from agentmem.output import CallDelta
from agentmem.types import Message, ToolCall

Piece = str | CallDelta
NewId = Callable[[int], str]  # from a call's index to its id: nine letters and digits, the only form that Mistral's templates accept


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """A whole reply. ``problems``: what was wrong with its calls, for a person. ``partial``: it ended inside its last call."""

    message: Message
    problems: tuple[str, ...] = ()
    partial: bool = False


@dataclass(slots=True)
class _Call:
    """A call that was announced; ``told`` counts the parts of its arguments that pieces hold."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)
    told: int = 0
    named: bool = False  # whether a piece has told its name and id


class ReplyParts:
    """Collects a reply in the order in which it was written; what it has collected, ``take`` gives out in pieces. Not thread safe.

    ``known``: names of the tools; None if it is not known which there are. ``progress`` grows with everything of a call that is
    delivered, so that a reader that fails knows which text is still to be shown. Whitespace next to calls, at the ends
    of the content, is left out, so trailing whitespace waits until it is known what follows.
    """

    def __init__(self, new_id: NewId, known: Collection[str] | None) -> None:
        self.problems: list[str] = []
        self.partial = False
        self.in_call = False  # a call was begun, and it has not ended
        self.announced = False  # the call that was begun has been told
        self.progress = 0
        self._new_id = new_id
        self._known = known
        self._calls: list[_Call] = []
        self._content: list[str] = []
        self._blank = ""
        self._early: list[str] = []  # arguments that came before the name
        self._pieces: list[Piece] = []

    # -- text -----------------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Add ``text`` to the content."""
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if self._calls and not self._content:
            shown = shown.lstrip()
        self._show(shown)

    def close(self) -> None:
        """Show whitespace at the end of a reply that calls nothing: its content is all of its text."""
        if not self._calls:
            self._show(self._blank)
        self._blank = ""

    def _show(self, text: str) -> None:
        if text:
            self._flush()
            self._content.append(text)
            self._pieces.append(text)

    # -- calls ----------------------------------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """The number of the call that is being read, or else of the next."""
        return len(self._calls) - (self.in_call and self.announced)

    def knows(self, name: str) -> bool:
        """Whether ``name`` is that of a tool."""
        return self._known is not None and name in self._known

    def begin(self) -> None:
        """Begin a call whose name is not known yet."""
        self.in_call, self.announced, self._early = True, False, []

    def announce(self, name: str) -> None:
        """Give the call its name and id, and tell of it. A name of no tool is reported. Raises Malformed for one that is no name."""
        if self.announced:
            raise Malformed("it has two names")
        if not name:
            raise Malformed("its name is empty")
        if self._known is not None and name not in self._known:
            self.problems.append(f"unknown tool {name!r}; known: {', '.join(sorted(self._known)) or 'none'}")
        self._flush()
        index = len(self._calls)
        self._calls.append(_Call(self._new_id(index), name, self._early))
        self.announced = True
        self.progress += 1

    def argument(self, text: str) -> None:
        """Add ``text`` to the call's arguments."""
        if self.announced:
            self._calls[-1].arguments.append(text)
            self.progress += 1
        else:
            self._early.append(text)

    def end(self) -> None:
        """End the call. Without arguments it has an empty object; others than an object are reported. Raises Malformed without a name."""
        if not self.announced:
            raise Malformed("it has no name")
        call = self._calls[-1]
        if not call.arguments:
            self.argument("{}")
        try:
            is_object = isinstance(json.loads("".join(call.arguments)), dict)
        except ValueError as error:
            self.problems.append(f"call {self.index} is not valid JSON: {error}")
        except RecursionError:
            self.problems.append(f"call {self.index} is not valid JSON: it is nested too deeply")
        else:
            if not is_object:
                self.problems.append(f"the arguments of call {self.index} are not a JSON object")
        self.in_call = False
        self.progress += 1

    def abandon(self) -> None:
        """Leave the call as it is: its text broke off, or the reply did."""
        self.in_call = False

    def add(self, text: str, calls: Sequence[tuple[str, str]]) -> None:
        """Add a whole reply: its text and its calls, each a name and arguments."""
        self.say(text)
        for name, arguments in calls:
            self.begin()
            self.announce(name)
            self.argument(arguments)
            self.end()

    # -- results --------------------------------------------------------------------------------------------------------

    def take(self) -> list[Piece]:
        """Return the pieces since the last time; text next to text, and arguments next to arguments, are one."""
        self._flush()
        pieces, self._pieces = self._pieces, []
        joined: list[Piece] = []
        for piece in pieces:
            if joined and isinstance(piece, str) and isinstance(joined[-1], str):
                joined[-1] += piece
            else:
                joined.append(piece)
        return joined

    def _flush(self) -> None:
        """Make a piece of what the last call has got since its last one."""
        if not self._calls:
            return
        call, index = self._calls[-1], len(self._calls) - 1
        arguments = "".join(call.arguments[call.told :])
        call.told = len(call.arguments)
        if not call.named:
            call.named = True
            self._pieces.append(CallDelta(index, call.id, call.name, arguments))
        elif arguments:
            self._pieces.append(CallDelta(index, arguments=arguments))

    def parsed(self) -> ParsedReply:
        """Return the reply so far."""
        calls = tuple(ToolCall(call.id, call.name, "".join(call.arguments)) for call in self._calls)
        return ParsedReply(Message("assistant", "".join(self._content), tool_calls=calls), tuple(self.problems), self.partial)
