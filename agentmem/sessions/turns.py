"""Small rules of turns: what a call adds to one, which request it answers, the seed of its reply."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import replace

from agentmem.errors import InvalidInput
from agentmem.sessions.session import Session
from agentmem.types import RequestId, SamplingParams, Turn, TurnInput
from agentmem.views import AppendResult


def seed_of(session: Session, params: SamplingParams | None, request_id: RequestId | None) -> int:
    """Return the seed: the one given, else one that a retry of the same request gives again, else a random one."""
    if params is None:
        return 0
    if params.seed is not None:
        return params.seed
    if request_id is not None:
        digest = hashlib.sha256(f"{session.record.id}/{request_id}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1
    return secrets.randbits(63)


def same_request(before: str, now: str) -> None:
    """Raise InvalidInput when two digests that came under one request id differ. "" was forgotten with what the request said."""
    if before and before != now:
        raise InvalidInput("request_id was used for another request in this session; use a new one", reason="REQUEST_ID_REUSED")


def extended(session: Session, given: TurnInput, added: list[int], request_id: RequestId | None, digest: str) -> Turn:
    """Return the open turn with ``given`` added, or a new turn that holds it."""
    turn = session.open_turn or Turn(len(session.turns), created_at=time.time())
    return replace(
        turn,
        messages=(*turn.messages, *given.messages),
        token_ids=(*turn.token_ids, *added),
        request_id=request_id,
        input_digest=digest,
    )


def appended(session: Session, request_id: RequestId | None, digest: str) -> AppendResult | None:
    """Return what an earlier Append of the same request answered."""
    turn = session.turns[-1]
    if request_id is None or turn.request_id != request_id:
        return None
    same_request(turn.input_digest, digest)
    return AppendResult(turn.index, turn.usage.input_tokens, turn.usage.context_tokens, not session.unsaved)
