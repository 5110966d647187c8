"""Llama 3.1's JSON calls (https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/#json-based-tool-calling)."""

from __future__ import annotations

from agentmem.chat.call_shape import LLAMA3_JSON
from agentmem.chat.calls import CallSyntax
from agentmem.chat.json_calls import JsonCall
from agentmem.chat.json_reading import Reading, blank
from agentmem.chat.reply_parts import ReplyParts
from agentmem.chat.tools import TOOL_FORMATS, ToolFormat

_INSTRUCTION = """\
To call a function, respond with a JSON object on a line of its own, and with nothing else:
{"name": <function-name>, "parameters": <args-json-object>}"""


def _read(parts: ReplyParts) -> Reading:
    """Read one call, or several with semicolons between them, as the models write parallel calls although their template has none."""
    char = yield from JsonCall(parts, bare=True).read((yield))
    while char == ";":
        char = yield from blank((yield))
        char = yield from JsonCall(parts, bare=True).read(char)
    return char


TOOL_FORMATS.register("llama3_json")(ToolFormat("llama3_json", LLAMA3_JSON, CallSyntax("{", _read, bare=True), _INSTRUCTION))
