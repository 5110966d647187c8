"""Waiting for the background work on a session, so that what is measured next does not depend on how far it has come."""

from __future__ import annotations

from agentmem.errors import InternalError
from agentmem.views import SealState, SessionInfo, TurnInfo
from agentmem_client import AsyncSession


async def settled(session: AsyncSession) -> tuple[SessionInfo, list[TurnInfo]]:
    """Return the session and its turns once all is done: exact again where the policy wants it, reported, archived, compressed, indexed.

    Raises InternalError when a seal job was given up.
    """
    await session.seal()
    info, turns = await session.inspect(messages=False)
    parked = [turn.turn.index for turn in turns if turn.sealed is SealState.PARKED]
    if parked:
        raise InternalError(f"the seal job of turn {parked[0]} of session {session.id} is parked")
    return info, turns
