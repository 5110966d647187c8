"""What a call may add to a session, checked, and as token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentmem.chat import Chat, ChatContext
from agentmem.errors import ContextTooLong, InvalidInput
from agentmem.output import FREE, OutputSpec
from agentmem.sessions.session import Session
from agentmem.types import Message, SamplingParams, Tail, TurnInput


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the model can take: token ids below ``vocab_size``, contexts up to ``max_context`` tokens."""

    vocab_size: int
    max_context: int


def check_input(session: Session, given: TurnInput, limits: ModelLimits) -> None:
    """Raise InvalidInput when ``given`` is of the wrong kind for the session or holds an unknown token id."""
    if session.is_raw and (given.messages or given.full_history):
        raise InvalidInput("a RAW session takes text or token_ids, not messages")
    if not session.is_raw and (given.text or given.token_ids):
        raise InvalidInput("a CHAT session takes messages; text and token_ids are for sessions created with format RAW")
    if given.text and given.token_ids:
        raise InvalidInput("both text and token_ids were given; send one of them")
    for position, token_id in enumerate(given.token_ids):
        if not 0 <= token_id < limits.vocab_size:
            raise InvalidInput(f"token_ids[{position}] is {token_id}; the model knows ids 0 to {limits.vocab_size - 1}")


def encode_input(chat: Chat, session: Session, given: TurnInput, *, reply: bool) -> list[int]:
    """Return the token ids that ``given`` adds to the session, with what opens a reply when ``reply``.

    Raises InvalidInput when there is nothing to reply to, TemplateNotAppendable when the template refuses.
    """
    if session.is_raw:
        added = list(given.token_ids) or (chat.encode_text(given.text) if given.text else [])
        if not added and not session.chain.tokens:
            raise InvalidInput("there is nothing to continue: the session is empty, and neither text nor token_ids was given")
        return added
    history = session.messages
    if reply and not given.messages and (not history or session.tail is Tail.REPLY):
        raise InvalidInput("there is nothing to reply to: send at least one message")
    return chat.encode(chat_context(session, history), given.messages, reply=reply)


def chat_context(session: Session, history: Sequence[Message]) -> ChatContext:
    """Return what the chat layer needs to know of the session to render what comes next."""
    tokens = session.chain.tokens
    return ChatContext(
        system=session.record.system,
        tools=session.record.tools,
        history=tuple(history),
        tail=session.tail,
        last_token=tokens[-1] if tokens else None,
        prelude_rendered=bool(session.turns[0].token_ids),
    )


def check_length(session: Session, added: int, limits: ModelLimits, *, reply: bool) -> None:
    """Raise ContextTooLong, naming both numbers, when the session plus ``added`` tokens (and one of a reply) is too long."""
    total = len(session.chain) + added
    if total + reply > limits.max_context:
        room = "leaves no room for a reply within" if reply else "is above"
        raise ContextTooLong(
            f"the context would be {total} tokens ({len(session.chain)} kept, {added} new), which {room} the limit of {limits.max_context}",
            metadata={"tokens": str(total), "limit": str(limits.max_context)},
        )


def digest_of(given: TurnInput, params: SamplingParams | None, output: OutputSpec = FREE) -> str:
    """Return a digest of what a request asked for; equal digests mean that it may be answered from an earlier reply."""
    what = [asdict(given), asdict(params) if params else None, *([] if output == FREE else [asdict(output)])]
    asked = json.dumps(what, sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def common_start(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the token ids that both begin with."""
    length = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return list(one[:length])
