"""Replays a committed turn from the ledger as the events that its reply once was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentmem.chat import Chat
from agentmem.engine.stopping import ReplyText
from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent, GenerationEvent, StartEvent, TokenEvent
from agentmem.sessions.reply import Parts
from agentmem.sessions.session import Session
from agentmem.sessions.shaping import CallIds, parsed_reply, parser_of
from agentmem.types import FinishReason, RequestId, Turn


def replay(session: Session, turn: Turn, chat: Chat, after: int, stop: Sequence[str] = ()) -> Iterator[GenerationEvent]:
    """Yield the events of ``turn`` from its generated token ``after`` on. Raises InvalidInput when there are fewer tokens.

    ``stop``: the request's stop strings, which the ledger does not keep. They say where the text was cut and what of it was held back.
    """
    generated = turn.token_ids[turn.reply_start or 0 :]
    if after > len(generated):
        raise InvalidInput(f"resume_after is {after}, but the reply has {len(generated)} tokens")
    yield StartEvent(
        session_id=session.record.id,
        request_id=turn.request_id or RequestId(""),
        turn_index=turn.index,
        reuse=turn.reuse,
        fidelity=turn.fidelity,
        input_tokens=turn.usage.input_tokens,
        context_tokens=turn.usage.context_tokens,
    )
    pieces, text = _spoken(turn, generated, ReplyText(chat.detokenizer(), stop))
    message = turn.messages[-1] if turn.messages else None
    if message is not None and not message.tool_calls:
        text = message.content
    calls = message.tool_calls if message is not None else ()
    ids = CallIds(session.record.id, turn.request_id or RequestId(""), tuple(call.id for call in calls))
    parsed = parsed_reply(chat, session, ids, generated, text)
    told = sum(map(len, pieces[:after]))
    parts = Parts(parser_of(chat, session, ids))
    parts.skip(text[:told])
    last = parts.ended(TokenEvent(after, generated[after:], text[told:]))
    if last.token_ids or last.text or last.content or last.tool_calls:
        yield last
    yield FinishEvent(
        turn_index=turn.index,
        finish_reason=turn.finish_reason or FinishReason.STOP,
        message=None if session.is_raw else message,
        text=text,
        usage=turn.usage,
        reuse=turn.reuse,
        fidelity=turn.fidelity,
        durable=not session.unsaved,
        partial=parsed.partial,
        problems=parsed.problems,
    )


def _spoken(turn: Turn, generated: Sequence[int], stream: ReplyText) -> tuple[list[str], str]:
    """Return what each token added to the text when it was generated, and the whole text."""
    ended = turn.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)  # by the last token, which is no text
    pieces = [stream.push(token) for token in generated[: len(generated) - ended]]
    return pieces, "".join(pieces) + ("" if stream.stopped else stream.finish())
