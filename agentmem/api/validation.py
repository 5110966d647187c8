"""The limits of what a call may send. Each function returns its argument or raises InvalidInput naming the field and what is allowed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from agentmem.errors import InvalidInput
from agentmem.types import SessionFormat, ToolSpec, TurnInput
from agentmem.views import ForgetTarget, SessionPatch, SessionSpec

MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
MAX_TOOLS = 512
MAX_MESSAGES = 20_000
MAX_PAGE = 1000
MAX_PAGE_TOKEN_CHARACTERS = 1024

_ID = re.compile(r"[!-~]{1,128}")
_ID_ALLOWED = "1 to 128 printable ASCII characters without spaces"
_SHOWN = 40  # characters of a wrong value that an error repeats


def _refuse(field: str, value: object, allowed: str) -> InvalidInput:
    shown = repr(value)
    return InvalidInput(f"{field} is {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...'}; allowed: {allowed}")


def identifier(field: str, value: str) -> str:
    """Check a required id."""
    if not _ID.fullmatch(value):
        raise _refuse(field, value, _ID_ALLOWED)
    return value


def optional_identifier(field: str, value: str | None) -> str | None:
    """Check an id that may be left out; empty becomes None."""
    return identifier(field, value) if value else None


def count(field: str, value: int, low: int = 0, high: int | None = None) -> int:
    """Check a whole number from ``low`` to ``high``."""
    if value < low or (high is not None and value > high):
        raise _refuse(field, value, f"{low} or more" if high is None else f"{low} to {high}")
    return value


def seconds(field: str, value: float, high: float = math.inf) -> float:
    """Check a duration from 0 to ``high``."""
    if not math.isfinite(value) or not 0 <= value <= high:
        raise _refuse(field, value, "0 or more seconds" if math.isinf(high) else f"0 to {high:g} seconds")
    return value


def page_size(field: str, value: int, default: int = 100) -> int:
    """Check how many things to return; 0 becomes ``default``."""
    return count(field, value, 0, MAX_PAGE) or default


def text(field: str, value: str) -> str:
    """Check a text that must say something."""
    if not value:
        raise _refuse(field, value, "a text that is not empty")
    return value


def targets(value: Sequence[ForgetTarget]) -> Sequence[ForgetTarget]:
    """Check which messages to forget: at least one, none of the prelude."""
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise InvalidInput(f"messages has {len(value)} entries; allowed: 1 to {MAX_MESSAGES}")
    for i, target in enumerate(value):
        if target.turn_index < 1:
            raise _refuse(f"messages[{i}].turn_index", target.turn_index, "1 or more; turn 0, the system prompt and the tools, stays")
        count(f"messages[{i}].message_index", target.message_index)
    return value


def page_token(value: str) -> str:
    """Check that a page token has a sane length; what it says is for whoever made it to judge."""
    if len(value) > MAX_PAGE_TOKEN_CHARACTERS:
        raise _refuse("page_token", value, "a next_page_token of an earlier page, or empty")
    return value


def labels(value: Mapping[str, str]) -> dict[str, str]:
    """Check a session's labels."""
    if len(value) > MAX_LABELS:
        raise InvalidInput(f"labels has {len(value)} entries; allowed: at most {MAX_LABELS}")
    for key, text in value.items():
        if not 1 <= len(key) <= MAX_LABEL_CHARACTERS:
            raise _refuse("labels key", key, f"1 to {MAX_LABEL_CHARACTERS} characters")
        if len(text) > MAX_LABEL_CHARACTERS:
            raise _refuse(f"labels[{key!r}]", text, f"up to {MAX_LABEL_CHARACTERS} characters")
    return dict(value)


def _tools(tools: Sequence[ToolSpec]) -> None:
    if len(tools) > MAX_TOOLS:
        raise InvalidInput(f"tools has {len(tools)} entries; allowed: at most {MAX_TOOLS}")
    names = [tool.name for tool in tools]
    for i, tool in enumerate(tools):
        if not tool.name or names.index(tool.name) != i:
            raise _refuse(f"tools[{i}].name", tool.name, "a name that no other tool has")
        if tool.parameters and not _is_json_object(tool.parameters):
            raise _refuse(f"tools[{i}].parameters", tool.parameters, "a JSON schema (an object), or empty")


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def spec(value: SessionSpec) -> SessionSpec:
    """Check what a new session shall be."""
    optional_identifier("session_id", value.session_id)
    seconds("ttl_seconds", value.ttl_seconds)
    labels(value.labels)
    _tools(value.tools)
    if value.format is SessionFormat.RAW and (value.system or value.tools):
        field = "system" if value.system else "tools"
        raise InvalidInput(f"{field} is set in a RAW session; allowed: empty, since RAW renders no template")
    return value


def patch(value: SessionPatch) -> SessionPatch:
    """Check what to change in a session."""
    if value.ttl_seconds is not None:
        seconds("ttl_seconds", value.ttl_seconds)
    if value.labels is not None:
        labels(value.labels)
    return value


def turn_input(value: TurnInput) -> TurnInput:
    """Check what a call adds to a session."""
    given = [name for name in ("messages", "text", "token_ids") if getattr(value, name)]
    if len(given) > 1:
        raise InvalidInput(f"input has {' and '.join(given)}; allowed: one of messages, text, token_ids")
    if len(value.messages) > MAX_MESSAGES:
        raise InvalidInput(f"input.messages has {len(value.messages)} entries; allowed: at most {MAX_MESSAGES}")
    if value.full_history and not value.messages:
        raise InvalidInput("input.full_history is set without input.messages; allowed: with the whole conversation")
    return value


def some_input(value: TurnInput) -> TurnInput:
    """Check what a call adds that does nothing else, so that an empty input is a mistake."""
    if not (value.messages or value.text or value.token_ids):
        raise InvalidInput("input is empty; allowed: messages, text or token_ids")
    return turn_input(value)
