"""How tools are shown and called in text: the table of formats, one file each."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from agentmem.chat.call_shape import CallShape
from agentmem.chat.calls import CallStream, CallSyntax
from agentmem.chat.reply_parts import NewId
from agentmem.errors import InvalidInput
from agentmem.registry import Registry
from agentmem.types import Message, ToolCall, ToolSpec

_SECTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

{instruction}"""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way of writing tools, calls and results as text.

    ``shape``: how calls are written, ``syntax``: how they are read, which is laxer. ``instruction`` tells a model that was not trained
    for it how to call. ``controls``: the tokens that are part of calls, shown where a tokenizer counts them as special too.
    """

    name: str
    shape: CallShape
    syntax: CallSyntax
    instruction: str
    controls: tuple[str, ...] = ()

    def section(self, tools: Sequence[ToolSpec]) -> str:
        """Return what the system prompt says about ``tools``, one JSON signature a line.

        Raises InvalidInput when one's parameters are not a JSON object.
        """
        return _SECTION.format(tools="\n".join(dump(signature(tool)) for tool in tools), instruction=self.instruction)

    def write(self, message: Message) -> Message:
        """Return ``message`` with its tool calls, or its being a tool's result, put into its content, for templates without tools.

        Results go into a user message, because such templates may know no tool role.
        """
        if message.role == "tool":
            return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
        if not message.tool_calls:
            return message
        calls = written_calls(self.shape, message.tool_calls)
        return Message(message.role, f"{message.content}\n{calls}" if message.content else calls, message.name)

    def read(self, text: str) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the text around the tool calls in ``text``, and the calls. Malformed calls stay text."""
        stream = self.stream(random_id)
        stream.push(text)
        stream.finish()
        return stream.content, stream.calls

    def stream(self, new_id: NewId, known: Collection[str] | None = None) -> CallStream:
        """Return a parser for one reply. ``known``: names of the tools, None if it is not known which there are."""
        return CallStream(self.syntax, new_id, known)


TOOL_FORMATS: Registry[ToolFormat] = Registry("tool format")


def written_calls(shape: CallShape, calls: Sequence[ToolCall]) -> str:
    """Return ``calls`` as text in ``shape``."""
    written = []
    for call in calls:
        name = dump(call.name)[1:-1] if shape.before_name.endswith('"') else call.name
        written.append(f"{shape.before_name}{name}{shape.between}{dump(parse_arguments(call.arguments))}{shape.after}")
    if shape.separator is not None:
        return f"{shape.open}{shape.separator.join(written)}{shape.close}"
    return shape.gap.join(f"{shape.open}{call}{shape.close}" for call in written)


def random_id(_index: int) -> str:
    """Return an id for a call, for callers that need not get the same one again."""
    return uuid.uuid4().hex[:9]


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


def dump(value: object) -> str:
    """Return ``value`` as JSON text, without escapes for what UTF-8 can hold."""
    return json.dumps(value, ensure_ascii=False)
