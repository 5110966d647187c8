"""Mistral's two formats: a list of objects up to its tokenizer v7, names with arguments since v11.

They are described at https://docs.mistral.ai/guides/tokenization/ and in mistral-common.
"""

from __future__ import annotations

from agentmem.chat.call_shape import MISTRAL, MISTRAL_ARGS
from agentmem.chat.calls import CallSyntax
from agentmem.chat.json_calls import JsonCall, arguments
from agentmem.chat.json_reading import Ended, Reading, blank, literal, unexpected
from agentmem.chat.reply_parts import ReplyParts
from agentmem.chat.tools import TOOL_FORMATS, ToolFormat

_OPEN, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_LIST = """\
To call functions, respond with [TOOL_CALLS] and a list of json objects with function name and arguments:
[TOOL_CALLS][{"name": <function-name>, "arguments": <args-json-object>}]"""
_NAMED = """\
For each function call, respond with [TOOL_CALLS], the function's name, [ARGS] and its arguments:
[TOOL_CALLS]<function-name>[ARGS]<args-json-object>"""


def _read_list(parts: ReplyParts) -> Reading:
    """Read a list of calls."""
    char = yield from blank((yield))
    if char != "[":
        raise unexpected(char, "the '[' of a list of calls")
    char = ","
    while char == ",":
        char = yield from blank((yield))
        char = yield from JsonCall(parts, stop="]").read(char)
        char = yield from blank(char)
    if char != "]":
        raise unexpected(char, "',' or ']'")
    return ""


def _read_named(parts: ReplyParts) -> Reading:
    """Read one name, perhaps an id of the model's own, and the arguments."""
    parts.begin()
    name: list[str] = []
    char = yield from blank((yield))
    char = yield from _word(char, name)
    char = yield from blank(char)
    if char == "[":
        if (yield from _mark(char)) == _ID:
            char = yield from _word((yield), [])
            yield from literal(char, _ARGS)
        char = yield
    elif char != "{":
        raise unexpected(char, repr(_ARGS))
    parts.announce("".join(name))
    char = yield from blank(char)
    char = yield from arguments(char, parts)
    parts.end()
    return char


def _word(char: str, letters: list[str]) -> Reading:
    """Read into ``letters`` what may be a name or an id: anything up to a mark, an object or whitespace."""
    while char and char not in "[{" and not char.isspace():
        letters.append(char)
        char = yield
    return char


def _mark(char: str) -> Reading:
    """Read one of the two marks that follow a name, and return it."""
    text = char
    while text not in (_ID, _ARGS):
        if not any(mark.startswith(text) for mark in (_ID, _ARGS)):
            raise unexpected(char, repr(_ARGS))
        char = yield
        text += char
        if not char:
            raise Ended("the text ends within a mark")
    return text


TOOL_FORMATS.register("mistral")(ToolFormat("mistral", MISTRAL, CallSyntax(_OPEN, _read_list), _LIST, controls=(_OPEN,)))
TOOL_FORMATS.register("mistral_args")(
    ToolFormat("mistral_args", MISTRAL_ARGS, CallSyntax(_OPEN, _read_named), _NAMED, controls=(_OPEN, _ID, _ARGS))
)
