"""The model's chat template, called with marked messages and with tools in the way that it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentmem.chat.markup import REFUSALS, Markup
from agentmem.chat.tools import TOOL_FORMATS, parse_arguments, signature
from agentmem.types import Message, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Tools = list[dict[Any, Any] | Callable[..., Any]] | None  # what transformers takes; only dictionaries are given


class TemplateRefused(Exception):
    """The template raised on its input; the text is the template's."""


@dataclass(frozen=True, slots=True)
class Prelude:
    """What stands before the first message, in the form that the template takes: system message and tool signatures."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: Tools = None


class Template:
    """Renders messages to text with marks in place of callers' control tokens. Stateless after construction, thread safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markup: Markup) -> None:
        self._tokenizer = tokenizer
        self._markup = markup
        self._format = TOOL_FORMATS.get("hermes")
        self.knows_tools = self._uses_tools()

    def prelude(self, system: str, tools: Sequence[ToolSpec]) -> Prelude:
        """Return the prelude of ``system`` and ``tools``; a template without tools gets them as a section of the system prompt."""
        if tools and not self.knows_tools:
            system = "\n\n".join(filter(None, (system, self._format.section(tools))))
            tools = ()
        messages = ({"role": "system", "content": self._markup.mark(system)},) if system else ()
        return Prelude(messages, [self._markup.mark(signature(tool)) for tool in tools] or None)

    def render(self, prelude: Prelude, messages: Sequence[Message], *, reply: bool = False) -> str:
        """Return the rendering of ``messages`` after ``prelude``, with the generation prompt when ``reply``.

        Raises TemplateRefused with the template's own words.
        """
        return self._apply([*prelude.messages, *map(self._entry, messages)], prelude.tools, reply=reply)

    def as_written(self, message: Message) -> Message:
        """Return ``message`` as the template gets it: with tool calls and results as text if it knows no tools."""
        return message if self.knows_tools else self._format.write(message)

    def _entry(self, message: Message) -> dict[str, Any]:
        message = self.as_written(message)
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            entry["name"] = message.name
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            entry["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": parse_arguments(call.arguments)}}
                for call in message.tool_calls
            ]
        return self._markup.mark(entry)

    def _apply(self, entries: list[dict[str, Any]], tools: Tools, *, reply: bool) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(entries, tools=tools, tokenize=False, add_generation_prompt=reply))
        except REFUSALS as error:
            raise TemplateRefused(self._markup.unmark(str(error))) from error

    def _uses_tools(self) -> bool:
        user = [{"role": "user", "content": "x"}]
        probe = signature(ToolSpec(self._markup.sentinel, "", ""))
        try:
            return self._markup.sentinel in self._apply(user, [probe], reply=True)
        except TemplateRefused:
            return False
