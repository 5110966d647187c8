"""A session's turns as they are without some of their messages: what stays in the ledger, and where each token was before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from agentmem.chat import Chat, ChatContext
from agentmem.errors import InvalidInput, TemplateNotAppendable
from agentmem.sessions.session import Session
from agentmem.sessions.stale import NOWHERE
from agentmem.types import Forgotten, Message, Tail, Turn
from agentmem.views import ForgetTarget


@dataclass(slots=True)
class Rewritten:
    """``turns`` in order, ``changed`` those that differ. ``tokens`` are all of the session's, ``places`` where they were, or NOWHERE."""

    turns: list[Turn] = field(default_factory=list)
    changed: list[Turn] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def add(self, before: Turn, after: Turn, places: Sequence[int]) -> None:
        """Add a turn that was ``before`` and is ``after`` now."""
        self.turns.append(after)
        self.tokens += after.token_ids
        self.places += places
        if after != before:
            self.changed.append(after)


def digest_of(salt: bytes, message: Message) -> str:
    """Return what tells one message from another; ``salt``, 32 secret bytes, keeps others from finding a short one by trying."""
    said = json.dumps([message.role, message.name, message.content])
    return blake3(said.encode(), key=salt).hexdigest()


def wanted_of(session: Session, targets: Sequence[ForgetTarget]) -> dict[int, list[int]]:
    """Return for each turn the indexes of ``targets`` that are not forgotten yet, in order.

    Raises InvalidInput naming what does not exist or cannot be forgotten: the prelude and what the assistant said.
    """
    wanted: dict[int, set[int]] = {}
    for target in targets:
        turn = session.turns[target.turn_index] if 0 < target.turn_index < len(session.turns) else None
        if turn is None or not 0 <= target.message_index < len(turn.messages):
            raise InvalidInput(f"{_name(session, target)} to forget does not exist")
        if turn.messages[target.message_index].role == "assistant":
            raise InvalidInput(
                f"message {target.message_index} of turn {turn.index} is the assistant's; what a user or a tool said can be forgotten, "
                "a reply goes by a rollback"
            )
        if all(entry.message_index != target.message_index for entry in turn.forgotten):
            wanted.setdefault(turn.index, set()).add(target.message_index)
    return {index: sorted(messages) for index, messages in sorted(wanted.items())}


def _name(session: Session, target: ForgetTarget) -> str:
    if not 0 < target.turn_index < len(session.turns):
        return f"turn {target.turn_index} (there are 1 to {len(session.turns) - 1})"
    count = len(session.turns[target.turn_index].messages)
    return f"message {target.message_index} of turn {target.turn_index} (it has {count})"


def rewritten(chat: Chat, session: Session, wanted: Mapping[int, Sequence[int]], salt: bytes, now: float) -> Rewritten:
    """Return the session without the messages ``wanted``. Generated tokens stay as they are.

    A turn that follows one of which nothing is left is rendered anew too, since it must close the reply before. Changes nothing. Raises
    InvalidInput or TemplateNotAppendable where the template takes the conversation neither without these messages nor with empty ones.
    """
    result, start, before = Rewritten(), 0, Tail.EMPTY
    for turn in session.turns:
        places: list[int] = list(range(start, start + len(turn.token_ids)))
        start += len(turn.token_ids)
        context = _context(session, result)
        after = turn
        for index in wanted.get(turn.index, ()):
            entry = Forgotten(index, turn.messages[index].role, 0, digest_of(salt, turn.messages[index]), now)
            shorter = _rendered(chat, context, _without(after, entry))
            entry = replace(entry, tokens=max(0, len(after.token_ids) - len(shorter.token_ids)))
            places = _moved(after.token_ids, places, shorter.token_ids)
            after = replace(shorter, forgotten=tuple(entry if each.message_index == index else each for each in shorter.forgotten))
        if after is turn and turn.index > 0 and turn.token_ids and context.tail is not before:
            after = _rendered(chat, context, turn)
            places = _moved(turn.token_ids, places, after.token_ids)
        result.add(turn, after, places)
        before = _tail(turn) or before
    return result


def _context(session: Session, sofar: Rewritten) -> ChatContext:
    return ChatContext(
        system=session.record.system,
        tools=session.record.tools,
        history=[message for turn in sofar.turns[1:] for message in turn.remembered],
        tail=next((tail for turn in reversed(sofar.turns) if (tail := _tail(turn)) is not None), Tail.EMPTY),
        last_token=sofar.tokens[-1] if sofar.tokens else None,
        prelude_rendered=bool(session.turns[0].token_ids),
    )


def _tail(turn: Turn) -> Tail | None:
    """Return how the turn's tokens end; None when it has none."""
    if not turn.token_ids:
        return None
    return Tail.CLOSED if turn.reply_start is None else Tail.REPLY


def _without(turn: Turn, entry: Forgotten) -> Turn:
    """Return ``turn`` with nothing in the place of a message but its role. The digest of its request would tell what it said: it goes."""
    messages = list(turn.messages)
    messages[entry.message_index] = Message(entry.role, "")
    forgotten = sorted([*turn.forgotten, entry], key=lambda each: each.message_index)
    return replace(turn, messages=tuple(messages), forgotten=tuple(forgotten), input_digest="")


def _rendered(chat: Chat, context: ChatContext, turn: Turn) -> Turn:
    """Return ``turn`` with the tokens of the messages that it remembers, and of its reply.

    Where the template does not take the conversation without the others, they stay as empty messages.
    """
    if turn.reply_start is None:
        return replace(turn, token_ids=tuple(_encoded(chat, context, turn.remembered, turn.messages, reply=False)))
    ids = _encoded(chat, context, turn.remembered[:-1], turn.messages[:-1], reply=True)
    return replace(turn, token_ids=(*ids, *turn.token_ids[turn.reply_start :]), reply_start=len(ids))


def _encoded(chat: Chat, context: ChatContext, left: Sequence[Message], all_of_it: Sequence[Message], *, reply: bool) -> list[int]:
    if not left and not reply:
        return []
    try:
        return chat.encode(context, left, reply=reply)
    except (InvalidInput, TemplateNotAppendable):
        return chat.encode(context, all_of_it, reply=reply)


def _moved(before: Sequence[int], places: list[int], after: Sequence[int]) -> list[int]:
    """Return the places of the tokens ``after``, which are those ``before`` without a part or with another in its place."""
    head = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    longest = min(len(before), len(after)) - head
    pairs = zip(reversed(before), reversed(after), strict=False)
    tail = next((i for i, (a, b) in enumerate(pairs) if a != b or i >= longest), longest)
    return [*places[:head], *[NOWHERE] * (len(after) - head - tail), *places[len(places) - tail :]]


def unresent(turns: Sequence[Turn], incoming: Sequence[Message], is_known: Callable[[str, Message], bool]) -> list[Message]:
    """Return a resent conversation without the messages in it that were forgotten: a client may not know, and they stay forgotten.

    One is recognised in its place, by its digest (``is_known``) or because it is as empty as the session shows it. A system prompt
    in front stays.
    """
    lead = 1 if incoming and incoming[0].role == "system" else 0
    return [*incoming[:lead], *_unresent(turns, incoming[lead:], is_known)]


def _unresent(turns: Sequence[Turn], incoming: Sequence[Message], is_known: Callable[[str, Message], bool]) -> Iterator[Message]:
    rest = list(incoming)
    for turn in turns[1:]:
        gone = {entry.message_index: entry for entry in turn.forgotten}
        for index in range(len(turn.messages)):
            if not rest:
                return
            entry = gone.get(index)
            if entry is None:
                yield rest.pop(0)
            elif is_known(entry.digest, rest[0]) or rest[0] == Message(entry.role, ""):
                rest.pop(0)
    yield from rest
