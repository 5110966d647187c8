"""Clients that resend the whole conversation: what of it the ledger already holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.types import Message, ToolCall

_EXACT = 2**53  # floats hold every integer up to it


@dataclass(frozen=True, slots=True)
class HistoryMatch:
    """How far a resent conversation follows the ledger.

    ``n_equal``: leading messages that are equal. ``diverged_at``: index of the first message that is not, or None when the whole
    ledger was resent, so that whatever follows can be appended. ``detail`` names the message and what differs, for the reuse report.
    """

    n_equal: int
    diverged_at: int | None = None
    detail: str = ""


def match_history(ledger: Sequence[Message], incoming: Sequence[Message]) -> HistoryMatch:
    """Compare ``incoming``, a whole conversation, with the ``ledger``'s messages, one by one.

    Roles, names and contents are compared exactly. That includes trailing whitespace: a client that strips a reply has changed
    what the model wrote. Tool calls are compared by name and by their arguments as JSON values, however
    they are formatted (arguments that are not JSON: as text); their ids must agree where both sides have one.
    """
    for index, (known, sent) in enumerate(zip(ledger, incoming, strict=False)):
        difference = _difference(known, sent)
        if difference:
            return HistoryMatch(index, index, f"{difference} of message {index}")
    if len(incoming) < len(ledger):
        return HistoryMatch(len(incoming), len(incoming), f"message {len(incoming)} was left out")
    return HistoryMatch(len(ledger))


def _difference(known: Message, sent: Message) -> str:
    for field in ("role", "name", "content"):
        if getattr(known, field) != getattr(sent, field):
            return field
    if not _ids_agree(known.tool_call_id, sent.tool_call_id):
        return "tool_call_id"
    if len(known.tool_calls) != len(sent.tool_calls) or not all(map(_calls_agree, known.tool_calls, sent.tool_calls)):
        return "tool_calls"
    return ""


def _ids_agree(known: str, sent: str) -> bool:
    return known == sent or not known or not sent


def _calls_agree(known: ToolCall, sent: ToolCall) -> bool:
    if known.name != sent.name or not _ids_agree(known.id, sent.id):
        return False
    return known.arguments == sent.arguments or _canonical(known.arguments) == _canonical(sent.arguments)


def _canonical(arguments: str) -> str:
    # Through text again, because Python takes 1 and true for equal. Models leave newlines in strings unescaped, which Python's clients
    # can be told to accept; clients that read no arguments as an empty object send that.
    try:
        return json.dumps(json.loads(arguments.strip() or "{}", parse_float=_number, parse_int=_number, strict=False), sort_keys=True)
    except (ValueError, RecursionError):  # not JSON, or JSON too deep to be anyone's arguments
        return arguments


def _number(text: str) -> float:
    # 1.0 and 1 are one number to JSON, and beyond 2^53 JavaScript's clients send the nearest float.
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= _EXACT else value
