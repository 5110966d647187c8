"""A conversation whose every reply can be said again: greedy, of a fixed length, on real text."""

from __future__ import annotations

import heapq
import textwrap
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass, field

from agentmem.errors import AgentMemError
from agentmem.events import FinishEvent, GenerationEvent, StartEvent, TokenEvent
from agentmem.types import MissReason, SamplingParams
from agentmem_client import AsyncSession

BLOCK = 64  # tokens, the default of memory.block_tokens
REPLY_TOKENS = 12
SAMPLING = SamplingParams(max_tokens=REPLY_TOKENS, ignore_eos=True)
SYSTEM = f"You answer questions about this text.\n{heapq.__about__[:900]}"
QUESTIONS = tuple(f"What does part {index} say? {part}" for index, part in enumerate(textwrap.wrap(heapq.__about__[900:], 300)[:10]))


@dataclass(slots=True)
class Heard:
    """What reached the client of one reply; ``error`` is how the stream ended when it did not finish."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    start: StartEvent | None = None
    finish: FinishEvent | None = None
    error: AgentMemError | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the server has promised that the turn survives a crash."""
        return self.finish is not None and self.finish.durable


async def hear(events: AsyncIterable[GenerationEvent], heard: Heard | None = None) -> Heard:
    """Read a reply to its end and return what arrived, also when it broke."""
    heard = heard or Heard()
    try:
        async for event in events:
            match event:
                case StartEvent():
                    heard.start = event
                case TokenEvent():
                    heard.tokens += event.token_ids
                    heard.text += event.text
                case FinishEvent():
                    heard.finish = event
    except AgentMemError as error:
        heard.error = error
    return heard


def request_of(turn: int) -> str:
    """Return the request id of the conversation's turn ``turn``, counted from 1."""
    return f"turn-{turn}"


async def ask(session: AsyncSession, turn: int, *, resume_after: int = 0) -> Heard:
    """Send the question of turn ``turn`` (from 1) and return what came back."""
    events = session.generate(QUESTIONS[turn - 1], SAMPLING, request_id=request_of(turn), resume_after=resume_after)
    return await hear(events)


async def talk(session: AsyncSession, turns: Sequence[int]) -> list[Heard]:
    """Ask the questions of ``turns`` one after the other; stop after the first reply that broke, which is the last one returned."""
    replies = []
    for turn in turns:
        replies.append(await ask(session, turn))
        if replies[-1].error is not None:
            break
    return replies


async def tokens_and_replies(session: AsyncSession) -> tuple[list[int], list[range]]:
    """Return all token ids of the session as the ledger holds them, and where among them the replies are."""
    _, turns = await session.inspect(token_ids=True)
    ids: list[int] = []
    replies = []
    for turn in (info.turn for info in turns):
        if turn.reply_start is not None:
            replies.append(range(len(ids) + turn.reply_start, len(ids) + len(turn.token_ids)))
        ids += turn.token_ids
    return ids, replies


async def ledger_replies(session: AsyncSession) -> list[list[int]]:
    """Return the generated tokens of every turn that the server's ledger holds."""
    ids, replies = await tokens_and_replies(session)
    return [ids[reply.start : reply.stop] for reply in replies]


def assert_restored(heard: Heard) -> None:
    """Check that a reply after a restart read every full block from disk and computed only the rest.

    Idle steps may have been faster and brought the session back before the reply asked for it: then all of it is on the device.
    """
    assert heard.start is not None
    reuse, context = heard.start.reuse, heard.start.context_tokens
    known = context - heard.start.input_tokens - 1  # the K and V of the last token of the last reply never existed
    if reuse.device:
        assert (known, 0, context - known) == (reuse.device, reuse.disk, reuse.computed)
        return
    assert (0, known // BLOCK * BLOCK) == (reuse.device, reuse.disk)
    assert context - reuse.disk == reuse.computed
    assert (MissReason.PARTIAL_BLOCK if known % BLOCK else MissReason.NONE) is reuse.reason
