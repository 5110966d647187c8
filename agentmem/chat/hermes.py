"""The format of Nous Hermes 2 Pro, which Qwen took over (https://github.com/NousResearch/Hermes-Function-Calling)."""

from __future__ import annotations

from agentmem.chat.call_shape import HERMES
from agentmem.chat.calls import CallSyntax
from agentmem.chat.json_calls import JsonCall
from agentmem.chat.json_reading import Reading, blank, literal
from agentmem.chat.reply_parts import ReplyParts
from agentmem.chat.tools import TOOL_FORMATS, ToolFormat

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_INSTRUCTION = """\
For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


def _read(parts: ReplyParts) -> Reading:
    """Read one call and its closing tag."""
    char = yield from blank((yield))
    char = yield from JsonCall(parts, stop=_CLOSE[0]).read(char)
    char = yield from blank(char)
    yield from literal(char, _CLOSE)
    return ""


TOOL_FORMATS.register("hermes")(ToolFormat("hermes", HERMES, CallSyntax(_OPEN, _read), _INSTRUCTION, controls=(_OPEN, _CLOSE)))
