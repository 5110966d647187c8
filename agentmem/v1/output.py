"""What a reply may be, on the wire."""

from __future__ import annotations

from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.v1 import types_pb2
from agentmem.v1.convert import encoding
from agentmem.v1.enums import FORMAT_KIND, TOOL_MODE


def tool_choice_to_pb(choice: ToolChoice) -> types_pb2.ToolChoice:
    """Return the wire form of a tool choice. Raises InvalidInput for a name that UTF-8 cannot hold."""
    with encoding("tool_choice"):
        return types_pb2.ToolChoice(mode=TOOL_MODE[choice.mode], name=choice.name, parallel=choice.parallel)


def response_format_to_pb(form: ResponseFormat) -> types_pb2.ResponseFormat:
    """Return the wire form of a response format. Raises InvalidInput for text that UTF-8 cannot hold."""
    with encoding("response_format"):
        return types_pb2.ResponseFormat(kind=FORMAT_KIND[form.kind], text=form.text)


def output_from_pb(choice: types_pb2.ToolChoice, form: types_pb2.ResponseFormat) -> OutputSpec:
    """Return what the reply may be. Raises InvalidInput for an unknown mode or kind, and for what does not go with it."""
    return OutputSpec(
        ToolChoice(
            TOOL_MODE.read(choice.mode, "tool_choice.mode", ToolMode.AUTO),
            choice.name,
            choice.parallel if choice.HasField("parallel") else True,
        ),
        ResponseFormat(FORMAT_KIND.read(form.kind, "response_format.kind", FormatKind.TEXT), form.text),
    )
