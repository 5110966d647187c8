"""What a reply may be: which tools it may call, what form its text must have, and how its calls are told piece by piece."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentmem.errors import InvalidInput

MAX_GRAMMAR = 200_000  # characters of a schema, regular expression or grammar


class ToolMode(StrEnum):
    """Whether a reply calls tools."""

    AUTO = "auto"  # as the model likes
    NONE = "none"  # never
    REQUIRED = "required"  # at least one
    NAMED = "named"  # the one that is named


class FormatKind(StrEnum):
    """What constrains the text of a reply."""

    TEXT = "text"  # nothing
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools the reply calls. ``name``: of the one tool, with NAMED alone. ``parallel``: it may call several."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""
    parallel: bool = True

    def __post_init__(self) -> None:
        """Raise InvalidInput when the name does not go with the mode."""
        if (self.mode is ToolMode.NAMED) != bool(self.name):
            raise InvalidInput(f"tool_choice.name is {self.name!r} with mode {self.mode}; allowed: a name with mode named, none otherwise")


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the reply's text must match. ``text``: the JSON schema, regular expression or Lark grammar; "" for the other kinds."""

    kind: FormatKind = FormatKind.TEXT
    text: str = ""

    def __post_init__(self) -> None:
        """Raise InvalidInput when the text does not go with the kind, or is too long."""
        needs_text = self.kind in (FormatKind.JSON_SCHEMA, FormatKind.REGEX, FormatKind.LARK)
        if needs_text != bool(self.text):
            raise InvalidInput(f"response_format {self.kind} {'needs' if needs_text else 'takes no'} text")
        if len(self.text) > MAX_GRAMMAR:
            raise InvalidInput(f"response_format.text has {len(self.text)} characters; allowed: up to {MAX_GRAMMAR}")


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What one reply may be. The default leaves everything to the model."""

    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    response_format: ResponseFormat = field(default_factory=ResponseFormat)


FREE = OutputSpec()


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call, number ``index`` of the reply.

    ``id`` and ``name`` come once, with the first piece; the ``arguments`` of all pieces, put together, are the JSON text as it was written.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
