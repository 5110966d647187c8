"""How tools are shown and called in text, for templates that know none, and how calls are found in replies."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentmem.errors import InvalidInput
from agentmem.registry import Registry
from agentmem.types import Message, ToolCall, ToolSpec


class ToolFormat(Protocol):
    """A way of writing tools, calls and results as text."""

    def section(self, tools: Sequence[ToolSpec]) -> str:
        """Return what the system prompt says about ``tools``. Raises InvalidInput when one's parameters are not a JSON object."""

    def write(self, message: Message) -> Message:
        """Return ``message`` with its tool calls, or its being a tool's result, put into its content."""

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the text around the tool calls in ``text``, and the calls. Malformed calls stay text."""


TOOL_FORMATS: Registry[ToolFormat] = Registry("tool format")

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SECTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Hermes:
    """The format of Nous Hermes 2 Pro, which Qwen took over (https://github.com/NousResearch/Hermes-Function-Calling).

    Results go into a user message, because templates without tools may know no tool role.
    """

    def section(self, tools: Sequence[ToolSpec]) -> str:
        """Return the system prompt's section about ``tools``, one JSON signature a line."""
        return _SECTION.format(tools="\n".join(_dump(signature(tool)) for tool in tools))

    def write(self, message: Message) -> Message:
        """Return ``message`` as one that any template can render."""
        if message.role == "tool":
            return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
        if not message.tool_calls:
            return message
        calls = [_dump({"name": call.name, "arguments": parse_arguments(call.arguments)}) for call in message.tool_calls]
        blocks = [f"{_OPEN}\n{call}\n{_CLOSE}" for call in calls]
        return Message(message.role, "\n".join([message.content, *blocks] if message.content else blocks), message.name)

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the text without its ``<tool_call>`` blocks, stripped if there were any, and the calls in order."""
        calls: list[ToolCall] = []
        kept: list[str] = []
        rest = text
        while _OPEN in rest:
            before, _, after = rest.partition(_OPEN)
            call, length = _read_call(after)
            if call is None:
                kept.append(before + _OPEN)
            else:
                kept.append(before)
                calls.append(call)
            rest = after[length:]
        return ("".join([*kept, rest]).strip() if calls else text), tuple(calls)


TOOL_FORMATS.register("hermes")(Hermes())


def _read_call(text: str) -> tuple[ToolCall | None, int]:
    """Return the call at the start of ``text``, which follows an opening tag, and how much it takes; (None, 0) if there is none."""
    start = len(text) - len(text.lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, 0
    tail = text[end:].lstrip()
    closed = tail.startswith(_CLOSE)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not (closed or not tail):
        return None, 0
    arguments = value.get("arguments", {})
    written = arguments if isinstance(arguments, str) else _dump(arguments)
    # Nine letters and digits: the only form of id that Mistral's templates accept.
    call = ToolCall(uuid.uuid4().hex[:9], value["name"], written)
    return call, len(text) - len(tail) + (len(_CLOSE) if closed else 0)


def signature(tool: ToolSpec) -> dict[str, Any]:
    """Return ``tool`` as templates expect it (OpenAI's form). Raises InvalidInput when its parameters are not a JSON object."""
    parameters = parse_arguments(tool.parameters or "{}")
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters of tool {tool.name!r} are not a JSON object: {tool.parameters[:100]!r}")
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": parameters}}


def parse_arguments(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return the JSON object in ``text``, or ``text`` itself when there is none: models and clients write broken JSON too."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
