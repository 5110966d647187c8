"""The chat layer's one object: messages in, new token ids out; token ids in, text and messages out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentmem.chat.appending import Appender
from agentmem.chat.detokenizer import Detokenizer
from agentmem.chat.markup import Markup
from agentmem.chat.template import Template, TemplateRefused
from agentmem.chat.tools import TOOL_FORMATS
from agentmem.errors import InternalError, InvalidInput
from agentmem.types import Message, Tail, ToolSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ChatContext:
    """What a session's tokens hold so far.

    ``history``: the messages after the prelude's system prompt, a generated reply last when ``tail`` is REPLY. ``last_token``: the last
    token id, None when there is none. ``prelude_rendered``: the tokens start with what ``Chat.prelude`` returned.
    """

    system: str = ""
    tools: tuple[ToolSpec, ...] = ()
    history: Sequence[Message] = ()
    tail: Tail = Tail.EMPTY
    last_token: int | None = None
    prelude_rendered: bool = False


class Chat:
    """One model's tokenizer and chat template. Immutable after construction and thread safe.

    ``eos_token_ids``: the ids that end a reply, the tokenizer's own included. ``special_token_ids``: those that are no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int] = ()) -> None:
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.eos_token_ids = frozenset((*eos_token_ids, *own))
        self.special_token_ids = frozenset(tokenizer.all_special_ids) | self.eos_token_ids
        self._tokenizer = tokenizer
        self._markup = Markup(tokenizer)
        self._template = Template(tokenizer, self._markup) if tokenizer.chat_template is not None else None
        self._format = TOOL_FORMATS.get("hermes")

    def prelude(self, system: str, tools: Sequence[ToolSpec]) -> list[int]:
        """Return the ids of the system prompt and the tools alone.

        [] when the template can't render them before it has seen a message; they are rendered with the first one then.
        Raises InvalidInput without a template, or for tools whose parameters are not a JSON object.
        """
        return self._markup.encode(self._appender(system, tools).prelude(), start=True)

    def encode(self, context: ChatContext, new: Sequence[Message], *, reply: bool) -> list[int]:
        """Return the ids that ``new`` adds to the session's, with the generation prompt when ``reply``.

        They include what closes a generated reply. Equal conversations have equal ids, however calls grouped their messages.
        Raises InvalidInput (``metadata["index"]``: of the message, ``len(new)`` for the generation prompt) when the
        template refuses a message, TemplateNotAppendable when its rendering has no stable place to append at.
        """
        history = [] if context.tail is Tail.EMPTY else list(context.history)
        added: list[Message | None] = [*(context.history if context.tail is Tail.EMPTY else ()), *new]
        if reply:
            added.append(None)
        if context.tail is Tail.REPLY and (not history or history[-1].role != "assistant"):
            raise InternalError("the tail is a reply, but the history does not end with an assistant message")
        appender = self._appender(context.system, context.tools)
        tail, end = context.tail, self._end_text(context.last_token)
        ids: list[int] = []
        for index, message in enumerate(added):
            try:
                if history:
                    text = appender.following(history, message, tail=tail, end=end)
                else:
                    text = appender.first(message, prelude_rendered=context.prelude_rendered)
            except TemplateRefused as refused:
                what = "a reply here" if message is None else f"message {index} ({message.role})"
                raise InvalidInput(f"the chat template refuses {what}: {refused}", metadata={"index": str(index)}) from refused
            ids += self._markup.encode(text, start=not history and not context.prelude_rendered)
            if message is not None:
                history.append(message)
            tail = Tail.CLOSED
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of raw ``text``: control tokens in it count, none is added. Raises InvalidInput for a lone surrogate."""
        return self._markup.encode(text, start=True)

    def reply(self, token_ids: Sequence[int], text: str) -> Message:
        """Return the assistant message of a generated reply: its ``text`` with the tool calls taken out.

        ``token_ids`` are the reply's, for models whose calls show in the ids alone.
        """
        content, calls = self._format.read(text)
        return Message("assistant", content, tool_calls=calls)

    def detokenizer(self) -> Detokenizer:
        """Return a new incremental detokenizer, for one reply."""
        return Detokenizer(self._tokenizer)

    def _appender(self, system: str, tools: Sequence[ToolSpec]) -> Appender:
        if self._template is None:
            raise InvalidInput("the model has no chat template; create the session with format RAW")
        return Appender(self._template, self._template.prelude(system, tools), self._markup.sentinel)

    def _end_text(self, last_token: int | None) -> str:
        if last_token is None or last_token not in self.eos_token_ids:
            return ""
        return str(self._tokenizer.decode([last_token], skip_special_tokens=False))
