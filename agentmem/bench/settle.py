"""Waiting for the background work on a session, so that what is measured next does not depend on how far it has come."""

from __future__ import annotations

import asyncio
import time

from agentmem.errors import InternalError
from agentmem.types import Fidelity
from agentmem.views import SealState, SessionInfo, TurnInfo
from agentmem_client import AsyncSession

POLL_SECONDS = 0.02
MOST_SECONDS = 900.0


async def settled(session: AsyncSession, *, reencoded: bool = True) -> tuple[SessionInfo, list[TurnInfo]]:
    """Return the session and its turns once they are sealed: compressed, indexed and, where ``reencoded``, exact and reported.

    Raises InternalError when a seal job was given up, or when it takes longer than anything should.
    """
    until = time.monotonic() + MOST_SECONDS
    while time.monotonic() < until:
        info, turns = await session.inspect(messages=False)
        parked = [turn.turn.index for turn in turns if turn.sealed is SealState.PARKED]
        if parked:
            raise InternalError(f"the seal job of turn {parked[0]} of session {session.id} is parked")
        if not (reencoded and not _is_exact(info, turns)) and all(turn.sealed is not SealState.QUEUED for turn in turns):
            return info, turns
        await asyncio.sleep(POLL_SECONDS)
    raise InternalError(f"session {session.id} was not sealed within {MOST_SECONDS:.0f} s")


def _is_exact(info: SessionInfo, turns: list[TurnInfo]) -> bool:
    generated = [turn.turn for turn in turns if turn.turn.reply_start is not None and turn.turn.fidelity is not Fidelity.EXACT]
    return info.exact and all(turn.report is not None for turn in generated)
