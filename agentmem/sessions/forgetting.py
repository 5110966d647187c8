"""Forget: a stale tool result goes, from the ledger, from the disk, and from what the session attends to.

At once nobody attends to it any more: replies go on over the old memory with holes (``stale``), and say that they are approximate. Calls
that ask for EXACT compute what came after it again, as if it had never been read; so does background work when nobody writes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from agentmem.chat import Chat
from agentmem.engine.engine import Engine
from agentmem.errors import StorageFailed
from agentmem.memory.segment import Branch
from agentmem.sessions.branching import fork_branch
from agentmem.sessions.rewriting import Rewritten, rewritten, wanted_of
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.session import Session
from agentmem.sessions.stale import NOWHERE, Stale, cut, stale_of
from agentmem.sessions.table import SessionTable
from agentmem.stores.archive import Archive
from agentmem.types import MissReason
from agentmem.views import ChangeKind, ForgetTarget


class Forgetter:
    """Event loop only. Callers shield these calls: half of one is not a state."""

    def __init__(self, table: SessionTable, sealer: Sealer, archive: Archive, chat: Chat) -> None:
        self.table = table
        self.sealer = sealer
        self.archive = archive
        self.chat = chat

    async def forget(self, session: Session, targets: Sequence[ForgetTarget]) -> None:
        """Drop messages; one that is forgotten already is no error.

        Their content leaves the ledger in one transaction, which keeps an audit entry, and the files of blocks that only this session used
        go after it. What the assistant said about them stays, and so does all that sessions forked before have: those are others. Raises
        InvalidInput where a message does not exist or is the assistant's, SessionBusy, StorageFailed; then nothing is forgotten. A template
        that cannot do without a message gets an empty one in its place.
        """
        async with session.writing("Forget"):
            wanted = wanted_of(session, targets)
            if not wanted:
                return
            if session.unsaved and not await self.sealer.commit(session):
                raise StorageFailed("the session is not durable yet, so nothing of it can be forgotten", retry_after=1.0)
            record, now = session.record, time.time()
            salt = self.table.salt_of(record.tenant)
            edit = await asyncio.to_thread(rewritten, self.chat, session, wanted, salt, now)
            chain = self.table.chain(record.tenant, edit.tokens)
            names = set(chain.hashes)
            try:
                gone = await self.table.off_loop(self.table.ledger.forget, record.tenant, record.id, record.epoch, edit.changed, names)
            except StorageFailed:
                raise
            except BaseException:  # it may have been committed: the next call reads the ledger
                session.closed = True
                raise
            first = _first_moved(edit)
            await self._set_aside(session, edit, first)
            session.turns[:] = edit.turns
            session.chain = chain
            session.record = replace(record, updated_at=now, expires_at=now + record.ttl_seconds if record.ttl_seconds else 0.0)
            session.computed = min(session.computed, first)
            session.cut_sealed(first)
            session.evidence.forget(first, sys.maxsize)
            session.replies.clear()
            if first < len(chain):
                session.hint = (MissReason.FORGOTTEN, f"turn {next(iter(wanted))}")
            await self.table.off_loop(self.archive.erase, gone)
            await self.table.engine.call(self.table.engine.speculator.forget, record.tenant)
            await self.table.count_saved(session)
        session.notify(ChangeKind.UPDATED)

    async def _set_aside(self, session: Session, edit: Rewritten, first: int) -> None:
        """Give the session what of its memory came before position ``first``, and keep the rest for replies that cannot wait."""
        call, pool, branch = self.table.engine.call, self.table.engine.pool, session.branch
        old = session.old_memory
        if branch is None or not branch.alive:
            branch = None
        if old is not None:
            places = [old.places[place] if place != NOWHERE else NOWHERE for place in edit.places]
            session.stale = await call(stale_of, old.branch, old.tokens, places, edit.tokens)
        elif branch is not None and first < min(len(edit.tokens), branch.length):
            session.stale = await call(_stale_of, branch, list(session.chain.tokens), edit)
            session.branch = await call(fork_branch, pool, branch, first)
            return
        if branch is not None:
            await call(cut, pool, branch, first)


def _stale_of(branch: Branch, before: list[int], edit: Rewritten) -> Stale | None:
    return stale_of(branch, before, edit.places, edit.tokens) if branch.alive else None


def _first_moved(edit: Rewritten) -> int:
    """Return how many leading tokens are where they were."""
    return next((at for at, place in enumerate(edit.places) if place != at), len(edit.places))


async def drop_stale(session: Session, engine: Engine) -> None:
    """End the old memory of a session, if it has one: an exact one has taken its place."""
    if session.stale is not None:
        branch, session.stale = session.stale.branch, None
        await engine.call(engine.pool.release, branch)
