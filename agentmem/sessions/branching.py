"""Fork and rollback, and the fork that a resent conversation needs when it leaves the ledger."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace

from blake3 import blake3

from agentmem.chat import match_history
from agentmem.errors import AlreadyExists, InvalidInput, StorageFailed
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch
from agentmem.sessions.rewriting import digest_of, unresent
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.session import Session
from agentmem.sessions.stale import cut
from agentmem.sessions.table import SessionTable
from agentmem.stores.archive import Archive
from agentmem.types import Message, MissReason, RequestId, SessionId, TurnInput
from agentmem.views import ChangeKind


@dataclass(frozen=True, slots=True)
class Divergence:
    """``at_turn``: the last turn that is equal, when the conversation left the ledger after it; None when it only goes on.

    ``num_known``: leading messages of the conversation that need not be added. ``detail`` names the first difference.
    """

    num_known: int
    at_turn: int | None = None
    detail: str = ""


def divergence(session: Session, incoming: Sequence[Message]) -> Divergence:
    """Compare a whole conversation with the session, system prompt included.

    Raises InvalidInput when the system prompt differs: it belongs to the session, so another one needs another session.
    """
    skipped = 0
    if incoming and incoming[0].role == "system" and session.record.system:
        if incoming[0].content != session.record.system:
            raise InvalidInput("messages[0] is another system prompt than the session's; create a session with it")
        skipped = 1
    match = match_history(session.messages, incoming[skipped:])
    if match.diverged_at is None:
        return Divergence(skipped + match.n_equal)
    known, at_turn = 0, 0
    for turn in session.turns[1:]:
        if known + len(turn.remembered) > match.n_equal:
            break
        known += len(turn.remembered)
        at_turn = turn.index
    return Divergence(skipped + known, at_turn, match.detail)


class Brancher:
    """Event loop only. Callers shield these calls: half a fork is not a state."""

    def __init__(self, table: SessionTable, sealer: Sealer, archive: Archive) -> None:
        self.table = table
        self.sealer = sealer
        self.archive = archive

    async def fork(self, source: Session, at_turn: int | None, new_id: str | None, labels: Mapping[str, str] | None) -> Session:
        """Return a new session with turns 0 to ``at_turn`` of ``source`` (default: all ended, durable ones). Copies no K and no V."""
        turn = at_turn if at_turn is not None else source.last_sealed
        length = source.length_at(turn)
        if any(index <= turn for index in source.unsaved):
            raise StorageFailed("the session is not durable yet, so it cannot be forked", retry_after=1.0)
        now = time.time()
        ttl = source.record.ttl_seconds
        record = replace(
            source.record,
            id=SessionId(new_id or f"s-{secrets.token_hex(8)}"),
            labels=dict(source.record.labels if labels is None else labels),
            parent=source.record.id,
            parent_turn=turn,
            epoch=1,
            created_at=now,
            updated_at=now,
            expires_at=now + ttl if ttl else 0.0,
        )
        async with self.table.lock(record.tenant, record.id), at_rest(source):
            turns, chain = list(source.turns[: turn + 1]), source.chain.copy(length)
            forked = self.table.new(record, turns, chain)
            forked.computed = min(length, source.computed)
            forked.sealed, forked.sealed_by = source.sealed, source.sealed_by
            forked.evidence = source.evidence.upto(turn, length)
            await self.table.off_loop(self.table.ledger.fork_session, source.record.id, record, turn)
            if source.turns[: turn + 1] != turns:  # a writer was faster: what the ledger has copied may be newer
                forked = self.table.build(record, await self.table.off_loop(self.table.ledger.turns, record.tenant, record.id))
            # Rows of a session that is being written may be claimed and not yet filled; its fork finds the finished blocks by hash.
            elif source.writer is None and source.branch is not None:
                forked.branch = await self.table.engine.call(fork_branch, self.table.engine.pool, source.branch, length)
            forked.cut_sealed(length)
            await self.table.count_saved(forked)
            self.table.add(forked)
        return forked

    async def rollback(self, session: Session, to_turn: int) -> Session:
        """Drop every turn after ``to_turn``. Raises SessionBusy, NotFound, StorageFailed while the session is not durable."""
        async with session.writing("RollbackSession"):
            length = session.length_at(to_turn)
            if session.unsaved and not await self.sealer.commit(session):
                raise StorageFailed("the session is not durable yet, so it cannot be rolled back", retry_after=1.0)
            record = session.record
            gone = await self.table.off_loop(self.table.ledger.truncate, record.tenant, record.id, record.epoch, to_turn)
            del session.turns[to_turn + 1 :]
            session.chain.truncate(length)
            session.computed = min(session.computed, length)
            session.cut_sealed(length)
            session.evidence = session.evidence.upto(to_turn, length)
            session.num_saved_blocks = min(session.num_saved_blocks, len(session.chain.hashes))
            session.replies.clear()
            if session.branch is not None:
                await self.table.engine.call(cut, self.table.engine.pool, session.branch, length)
            if session.stale is not None:
                await self.table.engine.call(self.table.engine.pool.release, session.stale.branch)
                session.stale = None
            await self.table.off_loop(self.archive.erase, gone)
            await self.table.count_saved(session)
        session.notify(ChangeKind.ROLLED_BACK, to_turn)
        return session

    async def match(self, session: Session, given: TurnInput, request_id: RequestId | None) -> tuple[Session, TurnInput]:
        """Match a resent conversation: return what of it is new, and the session, or the fork of it, that it goes on.

        The name of the fork follows from ``request_id``, so that a retry finds the fork that the first try made.
        """
        if session.knows(request_id):
            return session, given
        given, diverged = self._compared(session, given)
        if diverged.at_turn is not None:
            name = None
            if request_id is not None:
                name = f"{session.record.id[:110]}-{blake3(request_id.encode()).hexdigest()[:12]}"
            session = await self._fork_once(session, diverged.at_turn, name)
            if session.knows(request_id):
                return session, given
            session.hint = (MissReason.HISTORY_CHANGED, diverged.detail)
        return session, TurnInput(messages=given.messages[diverged.num_known :])

    def _compared(self, session: Session, given: TurnInput) -> tuple[TurnInput, Divergence]:
        """Compare a conversation with the session, without the messages that the session has forgotten, whether they come again or not."""
        if any(turn.forgotten for turn in session.turns):
            salt = self.table.salt_of(session.record.tenant)
            remembered = unresent(session.turns, given.messages, lambda digest, message: digest == digest_of(salt, message))
            found = divergence(session, remembered)
            if found.at_turn is None:
                return replace(given, messages=tuple(remembered)), found
        return given, divergence(session, given.messages)

    async def _fork_once(self, source: Session, at_turn: int, name: str | None) -> Session:
        try:
            return await self.fork(source, at_turn, name, None)
        except AlreadyExists:
            if name is None:
                raise
            return await self.table.open(source.record.tenant, name)


def at_rest(session: Session) -> AbstractAsyncContextManager[None]:
    """Return a context in which the session's background work stands still."""
    return session.background.resting() if session.background is not None else nullcontext()


def fork_branch(pool: KVPool, branch: Branch, length: int) -> Branch | None:
    """Return a branch of its own over up to ``length`` tokens of ``branch``; None where that is away or at work. Engine thread."""
    if not branch.alive or branch.busy:
        return None
    forked = pool.fork(branch, min(length, branch.length))
    pool.set_idle(forked)
    return forked
