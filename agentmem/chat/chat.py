"""The chat layer's one object: messages in, new token ids out; token ids in, text and messages out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentmem.chat.appending import Appender
from agentmem.chat.calls import CallStream
from agentmem.chat.detokenizer import Detokenizer
from agentmem.chat.grammar import Grammar, Grammars
from agentmem.chat.markup import Markup
from agentmem.chat.reply_parts import NewId, ParsedReply, ReplyParts
from agentmem.chat.response_template import parse_response
from agentmem.chat.template import DEFAULT_FORMAT, Template, TemplateRefused
from agentmem.chat.tool_formats import TOOL_FORMATS
from agentmem.chat.tools import random_id, signature
from agentmem.errors import InternalError, InvalidInput
from agentmem.output import OutputSpec
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
    ``tool_format``: how the model writes tool calls. ``vocab_size``: how many logits the model has, 0: as many as the tokenizer has ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int] = (), vocab_size: int = 0) -> None:
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.eos_token_ids = frozenset((*eos_token_ids, *own))
        self.special_token_ids = frozenset(tokenizer.all_special_ids) | self.eos_token_ids
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer, self.eos_token_ids, vocab_size or len(tokenizer))
        self._markup = Markup(tokenizer)
        self._template = Template(tokenizer, self._markup) if tokenizer.chat_template is not None else None
        self.tool_format = self._template.tool_format if self._template is not None else TOOL_FORMATS.get(DEFAULT_FORMAT)
        self._shown = {
            index: str(token)
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special and str(token) in self.tool_format.controls and index not in self.eos_token_ids
        }

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

    def grammar(self, output: OutputSpec, tools: Sequence[ToolSpec]) -> Grammar | None:
        """Return the grammar of replies that ``output`` allows; None: anything goes. Blocks, and raises, as ``Grammars.compile``."""
        return self._grammars.compile(output, tools, self.tool_format.shape)

    def stream(self, tools: Sequence[ToolSpec], new_id: NewId) -> CallStream:
        """Return a parser of one reply's text, to which ``detokenizer`` turned its tokens. Calls of others than ``tools`` are reported."""
        return self.tool_format.stream(new_id, [tool.name for tool in tools])

    def read_reply(self, token_ids: Sequence[int], text: str, tools: Sequence[ToolSpec] = (), new_id: NewId = random_id) -> ParsedReply:
        """Return the assistant message of a generated reply, and what was wrong with its tool calls.

        It is what ``stream`` gave for ``text``, except where the tokenizer's ``response_template`` finds calls in ``token_ids``, the
        reply's, and the stream found none.
        """
        stream = self.stream(tools, new_id)
        stream.push(text)
        stream.finish()
        if stream.calls:
            return stream.parsed()
        prompt = self._template.reply_prompt() if self._template is not None else ""
        found = parse_response(self._tokenizer, token_ids, prompt, [signature(tool) for tool in tools])
        if found is None:
            return stream.parsed()
        parts = ReplyParts(new_id, [tool.name for tool in tools])
        parts.add(*found)
        return parts.parsed()

    def reply(self, token_ids: Sequence[int], text: str, tools: Sequence[ToolSpec] = (), new_id: NewId = random_id) -> Message:
        """Return the assistant message of a generated reply: its ``text`` with the tool calls taken out. See ``read_reply``."""
        return self.read_reply(token_ids, text, tools, new_id).message

    def detokenizer(self) -> Detokenizer:
        """Return a new incremental detokenizer, for one reply. What opens and closes tool calls is text, special or not."""
        return Detokenizer(self._tokenizer, self._shown)

    def _appender(self, system: str, tools: Sequence[ToolSpec]) -> Appender:
        if self._template is None:
            raise InvalidInput("the model has no chat template; create the session with format RAW")
        return Appender(self._template, self._template.prelude(system, tools), self._markup.sentinel)

    def _end_text(self, last_token: int | None) -> str:
        if last_token is None or last_token not in self.eos_token_ids:
            return ""
        return str(self._tokenizer.decode([last_token], skip_special_tokens=False))
