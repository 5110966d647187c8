"""Sealing: when a turn ends, its blocks go to the archive and its ledger row is committed, in that order.

Invariant 7, commit after durable: block files are fsynced and renamed before the transaction that promises them. A turn whose
writes fail (disk full) keeps answering from memory, is reported as not durable, and is tried again until it is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from functools import partial

from agentmem.engine.engine import Engine
from agentmem.errors import AgentMemError, StorageFailed
from agentmem.memory.hashing import Chain
from agentmem.memory.pool import PinnedRows
from agentmem.memory.segment import Branch
from agentmem.sessions.session import Session
from agentmem.stores.archive import QUOTA_FULL, Archive
from agentmem.stores.ledger import Ledger
from agentmem.stores.records import StoredBlock
from agentmem.types import SessionId, SessionRecord, TenantId, Turn
from agentmem.views import ChangeKind
from agentmem_workers.port import Executor

log = logging.getLogger(__name__)
ARCHIVE_AT_ONCE = 4  # blocks of one portion of background archiving: what a writer who comes in may have to wait for


class Sealer:
    """Event loop only; the work itself runs on the executor. ``keep_blocks`` False keeps the ledger alone."""

    def __init__(self, engine: Engine, archive: Archive, ledger: Ledger, executor: Executor, *, keep_blocks: bool) -> None:
        self.engine = engine
        self.archive = archive
        self.ledger = ledger
        self.executor = executor
        self.keep_blocks = keep_blocks
        self.unsaved: dict[tuple[TenantId, SessionId], Session] = {}

    async def commit(self, session: Session) -> bool:
        """Make every turn of ``session`` durable that is not; return whether all are now. Never raises StorageFailed."""
        last = session.turns[-1].index
        session.unsaved.setdefault(last, "being written")
        try:
            await self._commit(session, set(session.unsaved))
        except StorageFailed as error:
            log.warning("turn %d is not durable yet: %s", last, error.message)
            session.unsaved = dict.fromkeys(session.unsaved, error.message)
            self.unsaved[session.record.tenant, session.record.id] = session
            return False
        session.unsaved.clear()
        if self.unsaved.pop((session.record.tenant, session.record.id), None) is not None:
            session.notify(ChangeKind.DURABLE, last)
        return True

    async def archive_some(self, session: Session, dirty: Collection[int]) -> bool:
        """Archive the next few blocks that became exact in the background, and write the turns ``dirty``; return whether all went well.

        The session counts as durable meanwhile: its ledger is complete, what is added can be computed from it. Never raises StorageFailed.
        """
        try:
            await self._commit(session, dirty, ARCHIVE_AT_ONCE)
        except StorageFailed as error:
            log.warning("session %s could not be archived in the background: %s", session.record.id, error.message)
            if dirty:
                session.unsaved |= dict.fromkeys(dirty, error.message)
                self.unsaved[session.record.tenant, session.record.id] = session
            return False
        return True

    def has_more(self, session: Session) -> bool:
        """Return whether exact blocks are on the device that the archive does not have."""
        branch = session.branch
        if not self.keep_blocks or branch is None or not branch.alive:
            return False
        size = session.chain.block_tokens
        return branch.covers <= session.num_saved_blocks * size <= branch.exact_length - size

    async def _commit(self, session: Session, dirty: Collection[int], limit: int | None = None) -> None:
        start = session.num_saved_blocks
        pinned = await self.engine.call(self._pin, session.branch, session.chain, start, limit)
        size, tenant = session.chain.block_tokens, session.record.tenant
        blocks = [
            StoredBlock(session.chain.hashes[i], session.chain.parent_of(i), tenant, i * size, *rows.tensors())
            for i, rows in enumerate(pinned, start=start)
        ]
        try:
            num_saved, failure = await self.executor.run(partial(self._store, session.record, list(_by_turn(session, blocks, dirty))))
        finally:
            await self.engine.call(self._unpin, pinned)
        session.num_saved_blocks += num_saved
        if failure is not None:
            raise failure

    def _pin(self, branch: Branch | None, chain: Chain, start: int, limit: int | None) -> list[PinnedRows]:
        """Engine thread: hold the rows of the branch's exact blocks from block ``start`` on still while they are written."""
        size = chain.block_tokens
        if not self.keep_blocks or branch is None or not branch.alive or start * size < branch.covers:
            return []
        stop = min(len(chain.hashes), branch.exact_length // size)
        if limit is not None:
            stop = min(stop, start + limit)
        return [self.engine.pool.pin(branch, i * size, (i + 1) * size) for i in range(start, stop)]

    def _unpin(self, pinned: list[PinnedRows]) -> None:
        for rows in pinned:
            self.engine.pool.unpin(rows)

    def _store(self, record: SessionRecord, parts: list[tuple[Turn, list[StoredBlock]]]) -> tuple[int, StorageFailed | None]:
        """Executor: of each turn the blocks first, then the turn; return how many blocks were stored, and what refused the others.

        Once blocks fail the turns alone are written, since they are enough to lose nothing. A quota that is too small for the
        blocks is no failure: the turns are durable, their K and V will be computed again after a restart.
        """
        num_saved, failure = 0, None
        for turn, blocks in parts:
            if failure is None:
                try:
                    num_saved += len(self.archive.commit(record.tenant, record.id, record.epoch, turn, blocks))
                    continue
                except StorageFailed as error:
                    failure = error
            self.ledger.put_turn(record.tenant, record.id, record.epoch, turn, [])
        if failure is not None and failure.reason == QUOTA_FULL:
            log.info("session %s is kept without some of its blocks: %s", record.id, failure.message)
            return num_saved, None
        return num_saved, failure

    async def heal(self) -> None:
        """Try once more to write what could not be written; what fails again waits for the next call."""
        for key, session in list(self.unsaved.items()):
            if session.closed:
                del self.unsaved[key]
            elif session.writer is None:
                try:
                    async with session.writing("healing"):
                        await self.commit(session)
                except AgentMemError as error:
                    log.warning("session %s cannot be made durable: %s", session.record.id, error.message)


def _by_turn(session: Session, blocks: list[StoredBlock], dirty: Collection[int]) -> Iterator[tuple[Turn, list[StoredBlock]]]:
    """Yield the turns to write, each with the blocks that it completes: a fork or rollback keeps these as long as it keeps the turn."""
    end, size = 0, session.chain.block_tokens
    for turn in session.turns:
        start, end = end, end + len(turn.token_ids)
        completed = [block for block in blocks if start < block.position + size <= end]
        if completed or turn.index in dirty:
            yield turn, completed
