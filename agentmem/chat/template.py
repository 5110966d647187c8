"""The model's chat template, called with marked messages and with tools in the way that it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentmem.chat.markup import REFUSALS, Markup
from agentmem.chat.tool_formats import TOOL_FORMATS, ToolFormat
from agentmem.chat.tools import parse_arguments, signature
from agentmem.types import Message, ToolCall, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Tools = list[dict[Any, Any] | Callable[..., Any]] | None  # what transformers takes; only dictionaries are given


DEFAULT_FORMAT = "hermes"  # many models have seen it, whatever their template says


class TemplateRefused(Exception):
    """The template raised on its input; the text is the template's."""


@dataclass(frozen=True, slots=True)
class Prelude:
    """What stands before the first message, in the form that the template takes: system message and tool signatures."""

    messages: tuple[dict[str, Any], ...] = ()
    tools: Tools = None


class Template:
    """Renders messages to text with marks in place of callers' control tokens. Stateless after construction, thread safe.

    ``knows_tools``: it shows tools by itself. ``tool_format``: how it writes calls, which is how the model was trained to.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markup: Markup) -> None:
        self._tokenizer = tokenizer
        self._markup = markup
        self._probe = signature(ToolSpec(markup.sentinel, "", ""))
        self.knows_tools = self._uses_tools()
        self.tool_format = self._format_of_calls() if self.knows_tools else TOOL_FORMATS.get(DEFAULT_FORMAT)

    def prelude(self, system: str, tools: Sequence[ToolSpec]) -> Prelude:
        """Return the prelude of ``system`` and ``tools``; a template without tools gets them as a section of the system prompt."""
        if tools and not self.knows_tools:
            system = "\n\n".join(filter(None, (system, self.tool_format.section(tools))))
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
        return message if self.knows_tools else self.tool_format.write(message)

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

    def reply_prompt(self) -> str:
        """Return the rendering of a plain question and what opens the reply to it; "" for a template that has no such thing."""
        try:
            return self._apply([{"role": "user", "content": "x"}], None, reply=True)
        except TemplateRefused:
            return ""

    def _uses_tools(self) -> bool:
        try:
            return self._markup.sentinel in self._apply([{"role": "user", "content": "x"}], [self._probe], reply=True)
        except TemplateRefused:
            return False

    def _format_of_calls(self) -> ToolFormat:
        """Return the format that reads back what the template makes of a call, the default one if none does."""
        name = self._markup.sentinel
        user, call = Message("user", "x"), ToolCall("x00000000", name, f'{{"x": "{name}"}}')
        prelude = Prelude(tools=[self._probe])
        try:
            before = self.render(prelude, [user], reply=True)
            whole = self.render(prelude, [user, Message("assistant", "", tool_calls=(call,))])
        except TemplateRefused:
            return TOOL_FORMATS.get(DEFAULT_FORMAT)
        # A reply is what comes after the prompt for it. Where that has an opened tag at its end, calls don't begin with the rest of it.
        equal = next((at for at, pair in enumerate(zip(before, whole, strict=False)) if len(set(pair)) > 1), len(before))
        replies = (whole[equal:], whole)
        # Bare calls last: every JSON call on a line of its own looks like one.
        for known in sorted(map(TOOL_FORMATS.get, TOOL_FORMATS), key=lambda known: known.syntax.bare):
            for reply in replies:
                if any((found.name, parse_arguments(found.arguments)) == (name, {"x": name}) for found in known.read(reply)[1]):
                    return known
        return TOOL_FORMATS.get(DEFAULT_FORMAT)
