"""What a template adds for one more message, as text. The tokens before it are never rendered again.

The last message of the history gets a sentinel for its content, and the template renders the history without (A) and with (B) the new
message. What follows the sentinel in A *closes* the last message; what B has beyond that is the difference. Message by message,
so that the difference depends on the conversation alone and never on how calls grouped it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from agentmem.chat.template import Prelude, Template, TemplateRefused
from agentmem.errors import TemplateNotAppendable
from agentmem.types import Message, Tail, ToolCall

# Templates look back a few messages at most; rendering all of a long history for each message would be quadratic.
RECENT = 8


class Unstable(Exception):
    """A rendering has no single place after which the new message could be told apart."""


class Appender:
    """The differences that ``template`` makes after ``prelude``. ``sentinel`` must occur in no message."""

    def __init__(self, template: Template, prelude: Prelude, sentinel: str) -> None:
        self._template = template
        self._prelude = prelude
        self._sentinel = sentinel

    def prelude(self) -> str:
        """Return the rendering of the prelude alone, or "" unless every conversation that a user opens starts with it."""
        if not self._prelude.messages and not self._prelude.tools:
            return ""
        marked = replace(self._prelude, messages=tuple({**entry, "content": self._sentinel} for entry in self._prelude.messages))
        user = (Message("user", "x"),)
        try:
            if marked.messages and self._sentinel not in self._template.render(marked, ()):
                return ""
            alone = self._template.render(self._prelude, ())
            return alone if self._template.render(self._prelude, user).startswith(alone) else ""
        except TemplateRefused:
            return ""

    def first(self, message: Message | None, *, prelude_rendered: bool) -> str:
        """Return what ``message`` (None: the generation prompt) adds to the prelude, or all from the start if that isn't rendered.

        Raises TemplateRefused, or TemplateNotAppendable when the template rewrites the prelude.
        """
        text = self._template.render(self._prelude, _some(message), reply=message is None)
        if not prelude_rendered:
            return text
        alone = self.prelude()
        if not alone or not text.startswith(alone):
            raise TemplateNotAppendable("the chat template renders the system prompt differently before this first message")
        return text.removeprefix(alone)

    def following(self, history: Sequence[Message], message: Message | None, *, tail: Tail, end: str) -> str:
        """Return what ``message`` (None: the generation prompt) adds after ``history``, which is not empty.

        ``tail`` REPLY: the last message was generated and is still to be closed; ``end`` is the text of the end token that
        it already has, or "". Raises TemplateRefused when the template takes the history and refuses the message, and
        TemplateNotAppendable when neither the history nor a placeholder for it shows where the message starts.
        """
        problems = []
        refusal = None
        for past in _pasts(history, message):
            try:
                return self._difference(past, message, tail, end)
            except Unstable as problem:
                refusal = None
                problems.append(str(problem))
            except TemplateRefused as refused:
                refusal = refused
        if refusal is not None:
            raise refusal
        try:
            return self._difference(_placeholder(message, tail), message, tail, end)
        except (Unstable, TemplateRefused) as problem:
            problems.append(f"with a placeholder history: {problem}")
        raise TemplateNotAppendable(f"the chat template cannot be appended to: {'; '.join(problems)}")

    def _difference(self, past: Sequence[Message], message: Message | None, tail: Tail, end: str) -> str:
        """Return the difference that ``message`` makes after ``past``. Raises Unstable, or TemplateRefused for the message."""
        closing = self._closing(past)
        after = self._after_last(past, message, reply=message is None)
        if not after.startswith(closing):
            raise Unstable("the last message closes in another way when one follows")
        return (self._close(past, closing, end) if tail is Tail.REPLY else "") + after.removeprefix(closing)

    def _closing(self, past: Sequence[Message]) -> str:
        try:
            return self._after_last(past)
        except TemplateRefused as refused:
            raise Unstable(f"the history is refused: {refused}") from refused

    def _after_last(self, past: Sequence[Message], message: Message | None = None, *, reply: bool = False) -> str:
        """Return what follows the last message of ``past``. Raises TemplateRefused, or Unstable if it doesn't show exactly once."""
        text = self._template.render(self._prelude, [*past[:-1], self._with_sentinel(past[-1]), *_some(message)], reply=reply)
        if text.count(self._sentinel) != 1:
            raise Unstable(f"it shows the last message {text.count(self._sentinel)} times")
        return text.partition(self._sentinel)[2]

    def _with_sentinel(self, message: Message) -> Message:
        message = self._template.as_written(message)
        if not message.tool_calls:
            return replace(message, content=self._sentinel)
        # Many templates leave out the content of a message that calls tools.
        last = replace(message.tool_calls[-1], arguments=json.dumps({"x": self._sentinel}))
        return replace(message, tool_calls=(*message.tool_calls[:-1], last))

    def _close(self, past: Sequence[Message], closing: str, end: str) -> str:
        """Return what closes a generated reply, given what closes its rendering."""
        if end and end in closing:
            return closing.rpartition(end)[2]
        if not past[-1].tool_calls:
            return closing
        # ``closing`` starts within the rendered call, which the model has written in its own way.
        return self._closing([*past[:-1], replace(past[-1], content="x", tool_calls=())])


def _some(message: Message | None) -> tuple[Message, ...]:
    return () if message is None else (message,)


def _pasts(history: Sequence[Message], message: Message | None) -> Iterator[list[Message]]:
    """Yield what to render in place of ``history``: its recent part, and all of it for a template that needs more."""
    if len(history) > RECENT:
        recent = history[-RECENT:]
        yield _one_result_each([*_placeholder(recent[0], Tail.CLOSED), *recent], message)
    yield _one_result_each(history, message)


def _placeholder(message: Message | None, tail: Tail) -> list[Message]:
    """Return the plainest history that ``message`` can follow."""
    user = Message("user", "x")
    if message is not None and message.role == "tool":
        return [user, Message("assistant", "", tool_calls=(ToolCall("x00000000", "x", "{}"),))]
    if tail is Tail.REPLY or (message is not None and message.role != "assistant"):
        return [user, Message("assistant", "x")]
    return [user]


def _one_result_each(history: Sequence[Message], message: Message | None) -> list[Message]:
    """Return ``history`` with one result of each run of tool results, none if ``message`` is one more.

    Some templates put the results of parallel calls into one turn, which would have to be opened again for a result that comes
    later. So each result is appended as the first would be.
    """
    follower = [*history[1:], message]
    kept = [past for past, after in zip(history, follower, strict=True) if past.role != "tool" or after is None or after.role != "tool"]
    return kept or [history[-1]]
