"""What the fake service answers to the steps of a tool loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from agentmem.conversing import ConverseStep
from agentmem.errors import InvalidInput
from agentmem.events import ConverseEvent, PieceEvent
from agentmem.output import FREE
from agentmem.types import Message, RequestId, SamplingParams, TenantId, TurnInput

if TYPE_CHECKING:
    from support.fake_service import FakeSessions


async def answers(sessions: FakeSessions, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
    """Yield what answers each step: pieces are taken, and what is whole is replied to by ``generate``."""
    async for step in steps:
        sessions.steps.append(step)
        given, piece = step.given, step.piece
        if step.waiting is not None:
            continue
        if piece is not None and step.request_id not in sessions.replies:
            yield _take(sessions, step)
            if not piece.last or piece.more:
                continue
            results = sessions.results[step.request_id].items()
            given = TurnInput(tuple(Message("tool", text, "", call) for call, text in results))
        events = sessions.generate(
            tenant,
            step.session_id,
            given or TurnInput(),
            step.params or SamplingParams(),
            request_id=step.request_id,
            resume_after=step.resume_after,
            deadline=None,
            fidelity=step.fidelity,
            output=step.output or FREE,
        )
        async with aclosing(events):
            async for event in events:
                yield event


def _take(sessions: FakeSessions, step: ConverseStep) -> PieceEvent:
    """Add what is new of a piece."""
    piece, results = step.piece, sessions.results.setdefault(step.request_id, {})
    assert piece is not None
    received = sum(map(len, results.values()))
    if piece.offset > received:
        raise InvalidInput(f"piece.offset is {piece.offset}, but only {received} characters have arrived")
    if "refuse" in piece.text:
        raise InvalidInput("the result was refused")
    results[piece.tool_call_id] = results.get(piece.tool_call_id, "") + piece.text[received - piece.offset :]
    return PieceEvent(RequestId(step.request_id), sum(map(len, results.values())), 0)
