"""The session manager: what the API calls. It finds the session, checks who may write, and delegates."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from agentmem.conversing import ConverseStep
from agentmem.engine.engine import Engine
from agentmem.errors import ContextTooLong, NotFound, StaleOwner, StorageFailed
from agentmem.events import ConverseEvent, GenerationEvent
from agentmem.output import OutputSpec
from agentmem.sessions import insight, transfer
from agentmem.sessions.branching import Brancher
from agentmem.sessions.conversing import Converser
from agentmem.sessions.forgetting import Forgetter
from agentmem.sessions.generation import Asked, Generator
from agentmem.sessions.inputs import check_input, digest_of
from agentmem.sessions.recollection import Recollection
from agentmem.sessions.reports import with_exact_report
from agentmem.sessions.sealer import Sealer
from agentmem.sessions.sealing import Sealing
from agentmem.sessions.session import Session
from agentmem.sessions.specs import check_policy, check_spec, new_record
from agentmem.sessions.table import SessionTable, expired
from agentmem.stores.archive import Archive
from agentmem.types import (
    Fidelity,
    RequestId,
    SamplingParams,
    SessionFormat,
    SessionId,
    SessionRecord,
    TenantId,
    Turn,
    TurnInput,
    TurnState,
)
from agentmem.views import (
    AppendResult,
    ChangeKind,
    DeleteReport,
    ForgetTarget,
    PrefixInfo,
    RecalledSpan,
    ServerStats,
    SessionChange,
    SessionInfo,
    SessionPatch,
    SessionSpec,
    TurnInfo,
)

T = TypeVar("T")


class SessionManager:
    """Every method belongs to the event loop, checks the tenant, and raises AgentMemError only.

    Calls that change a session run to their end even when their caller goes away, so that memory and ledger stay equal.
    """

    def __init__(self, table: SessionTable, generator: Generator, sealing: Sealing, archive: Archive) -> None:
        self.table = table
        self.generator = generator
        self.sealing = sealing
        self.sealer: Sealer = sealing.sealer
        self.archive = archive
        self.engine: Engine = generator.engine
        self.ledger = table.ledger
        self.converser = Converser(table, generator, sealing, self.generate)
        self.brancher = Brancher(table, sealing.sealer, archive)
        self.forgetter = Forgetter(table, sealing.sealer, archive, generator.chat)
        self.recollection = Recollection(generator.engine, archive, generator.chat, generator.limits)

    # -- create, read, update, delete ---------------------------------------------------------------------------------

    async def create(self, tenant: TenantId, spec: SessionSpec) -> SessionInfo:
        """Create a session; its system prompt and tools become turn 0. Raises AlreadyExists, ContextTooLong, InvalidInput."""
        check_spec(spec)
        prelude: list[int] = []
        if spec.format is SessionFormat.CHAT:
            prelude = await asyncio.to_thread(self.generator.chat.prelude, spec.system, spec.tools)
        if len(prelude) >= self.generator.limits.max_context:
            limit = self.generator.limits.max_context
            raise ContextTooLong(f"system prompt and tools are {len(prelude)} tokens, which leaves no room within the limit of {limit}")
        now = time.time()
        record = new_record(tenant, spec, self.table.model, now)
        prelude_turn = Turn(0, token_ids=tuple(prelude), state=TurnState.SEALED, created_at=now)
        return await self._finish(self._create(record, [prelude_turn]))

    async def _create(self, record: SessionRecord, turns: list[Turn]) -> SessionInfo:
        async with self.table.lock(record.tenant, record.id):
            await self.table.off_loop(self.ledger.create_session, record, turns)
            session = self.table.build(record, turns)
            session.computed = 0
            self.table.add(session)
        return session.info()

    async def get(self, tenant: TenantId, session_id: str) -> SessionInfo:
        """Return a session. Raises NotFound."""
        return await self._info(await self.table.open(tenant, session_id))

    async def list(self, tenant: TenantId, *, labels: Mapping[str, str], page_size: int, page_token: str) -> tuple[list[SessionInfo], str]:
        """Return a page of sessions, newest first, and the next page's token. Sizes come from the ledger: nothing is loaded."""
        page = await self.table.off_loop(
            lambda: self.ledger.list_sessions(tenant, labels=labels, page_size=page_size, page_token=page_token)
        )
        sizes = await self.table.off_loop(self.ledger.session_sizes, tenant, [record.id for record in page.records])
        infos = []
        for record in page.records:
            live = self.table.live(tenant, record.id)
            size = sizes[record.id]
            stored = SessionInfo(record, size.turns, size.tokens, open_turn=size.open_turn, disk_bytes=size.bytes)
            infos.append(live.info(disk_bytes=size.bytes) if live else stored)
        return infos, page.next_token

    async def update(self, tenant: TenantId, session_id: str, patch: SessionPatch) -> SessionInfo:
        """Change time to live, pin, policy or labels; None leaves a field as it is."""
        session = await self.table.open(tenant, session_id)
        if patch.policy is not None:
            check_policy(patch.policy)
        await self._finish(self._update(session, patch))
        return await self._info(session)

    async def set_fidelity(self, tenant: TenantId, session_id: str, fidelity: Fidelity) -> SessionInfo:
        """Set what every reply from now on runs with, unless its call says otherwise. A reply under way goes on as it began."""
        session = await self.table.open(tenant, session_id)
        await self._finish(self._update(session, SessionPatch(policy=replace(session.record.policy, fidelity=fidelity))))
        return await self._info(session)

    async def _update(self, session: Session, patch: SessionPatch) -> None:
        """Change the record. Nobody has to wait for a reply under way: it runs with the policy that it began with."""
        if session.closed:
            raise NotFound(f"session {session.record.id!r} was deleted", reason="SESSION_NOT_FOUND")

        def changed(record: SessionRecord) -> SessionRecord:
            ttl = record.ttl_seconds if patch.ttl_seconds is None else patch.ttl_seconds
            return replace(
                record,
                ttl_seconds=ttl,
                pinned=record.pinned if patch.pinned is None else patch.pinned,
                policy=patch.policy or record.policy,
                labels=record.labels if patch.labels is None else dict(patch.labels),
                updated_at=now,
                expires_at=now + ttl if ttl else 0.0,
            )

        now = time.time()
        try:
            await self.table.off_loop(self.ledger.update_session, changed(session.record))
        except StaleOwner:
            session.closed = True
            raise
        session.record = changed(session.record)
        if session.background is not None:
            session.background.poke()
        session.notify(ChangeKind.UPDATED)

    async def delete(self, tenant: TenantId, session_id: str) -> DeleteReport:
        """Delete a session, its turns and the blocks that no other session uses. A running reply is cancelled first."""
        return await self._finish(self._delete(tenant, SessionId(session_id)))

    async def expire(self, tenant: TenantId, session_id: str, now: float) -> bool:
        """Delete a session whose time has passed at ``now`` (seconds since the epoch); return False when it was used meanwhile."""
        return await self._finish(self._expire(tenant, SessionId(session_id), now))

    async def _delete(self, tenant: TenantId, name: SessionId) -> DeleteReport:
        async with self.table.lock(tenant, name):
            await self.table.off_loop(self.ledger.get_session, tenant, name)
            session = self.table.live(tenant, name)
            if session is not None:
                await self._stop_replies(session)
            return await self._erase(tenant, name, session, ChangeKind.DELETED)

    async def _expire(self, tenant: TenantId, name: SessionId, now: float) -> bool:
        async with self.table.lock(tenant, name):
            session = self.table.live(tenant, name)
            if session is not None and not expired(session, now):
                return False
            await self._erase(tenant, name, session, ChangeKind.EXPIRED)
            return True

    async def _erase(self, tenant: TenantId, name: SessionId, session: Session | None, kind: ChangeKind) -> DeleteReport:
        async with session.writing("DeleteSession") if session else contextlib.nullcontext():
            rows = await self.table.off_loop(self.ledger.session_blocks, tenant, name)
            turns = len(session.turns) if session else len(await self.table.off_loop(self.ledger.turns, tenant, name))
            gone = await self.table.off_loop(self.ledger.delete_session, tenant, name)
            if session is not None:
                await self.table.forget(session)
                session.notify(kind)
        await self.table.off_loop(self.archive.erase, gone)
        await self.engine.call(self.engine.speculator.forget, tenant)
        sizes = {block: n_bytes for _, block, n_bytes in rows}
        erased = sum(sizes.get(block, 0) for block in gone)
        return DeleteReport(turns, len(gone), erased, len(sizes.keys() - set(gone)))

    async def _stop_replies(self, session: Session) -> None:
        for reply in list(session.replies.values()):
            if not reply.run.done:
                self.engine.cancel(reply.run)
            await reply.closed()

    # -- branching ----------------------------------------------------------------------------------------------------

    async def fork(
        self, tenant: TenantId, session_id: str, *, at_turn: int | None, new_id: str | None, labels: Mapping[str, str] | None
    ) -> SessionInfo:
        """Return a new session with turns 0 to ``at_turn`` (all that are sealed by default). Copies no K and no V."""
        source = await self.table.open(tenant, session_id)
        return await self._info(await self._finish(self.brancher.fork(source, at_turn, new_id, labels)))

    async def rollback(self, tenant: TenantId, session_id: str, *, to_turn: int) -> SessionInfo:
        """Drop every turn after ``to_turn``."""
        session = await self.table.open(tenant, session_id)
        return await self._info(await self._finish(self.brancher.rollback(session, to_turn)))

    # -- import and export, watching ------------------------------------------------------------------------------------

    async def export(self, tenant: TenantId, session_id: str) -> AsyncGenerator[bytes]:
        """Yield the session's ledger in chunks, checksummed; K and V are recomputed where it is imported."""
        session = await self.table.open(tenant, session_id)
        for chunk in transfer.dump(session.record, list(session.turns)):
            yield chunk

    async def import_session(self, tenant: TenantId, chunks: AsyncIterator[bytes], *, new_id: str | None) -> SessionInfo:
        """Make a session from exported bytes. Raises InvalidInput, ModelMismatch, AlreadyExists."""
        data = await transfer.collect(chunks)
        model = self.table.model
        record, turns = await self.table.off_loop(transfer.load, data, model.tokenizer_hash, self.generator.limits.vocab_size)
        check_policy(record.policy)
        now = time.time()
        record = replace(
            record,
            id=SessionId(new_id or record.id),
            tenant=tenant,
            fingerprint=model.fingerprint,
            epoch=1,
            parent=None,
            parent_turn=None,
            updated_at=now,
            expires_at=now + record.ttl_seconds if record.ttl_seconds else 0.0,
        )
        return await self._finish(self._create(record, turns))

    async def watch(self, tenant: TenantId, session_id: str) -> AsyncGenerator[SessionChange]:
        """Yield the present state, then every change; ends with DELETED or EXPIRED."""
        session = await self.table.open(tenant, session_id)
        with session.watched() as changes:
            yield SessionChange(ChangeKind.SNAPSHOT, None, session.info())
            while True:
                change = await changes.get()
                yield change
                if change.kind in (ChangeKind.DELETED, ChangeKind.EXPIRED):
                    return

    # -- turns --------------------------------------------------------------------------------------------------------

    async def append(self, tenant: TenantId, session_id: str, turn_input: TurnInput, *, request_id: str | None) -> AppendResult:
        """Add input without a reply; it is computed and durable when this returns."""
        session = await self.table.open(tenant, session_id)
        return await self.generator.append(session, turn_input, RequestId(request_id) if request_id else None)

    async def generate(
        self,
        tenant: TenantId,
        session_id: str,
        turn_input: TurnInput,
        params: SamplingParams,
        *,
        request_id: str | None,
        resume_after: int,
        deadline: float | None,
        fidelity: Fidelity | None,
        output: OutputSpec,
    ) -> AsyncGenerator[GenerationEvent]:
        """Add input and yield the reply. With ``full_history`` a changed past forks the session; the first event names the fork."""
        session = await self.table.open(tenant, session_id)
        check_input(session, turn_input, self.generator.limits)
        name = RequestId(request_id) if request_id else None
        digest = digest_of(turn_input, params, output)
        if turn_input.full_history:
            if not session.knows(name):
                self.generator.refuse_when_draining()  # before a fork is made that nothing would be added to
            session, turn_input = await self._finish(self.brancher.match(session, turn_input, name))
        asked = Asked(turn_input, params, digest, name, resume_after, deadline, fidelity, output)
        events = self.generator.generate(session, asked)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def converse(self, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
        """Answer the steps of a tool loop, one after the other."""
        return self.converser.converse(tenant, steps)

    async def end_turn(self, tenant: TenantId, session_id: str, *, waiting_on_tool: bool, eta_seconds: float) -> SessionInfo:
        """Seal the open turn, if there is one, and make it durable. Memory that is away is back shortly before ``eta_seconds`` are over."""
        session = await self.table.open(tenant, session_id)
        await self._finish(self._end_turn(session))
        if waiting_on_tool:
            self.sealing.expect(session, eta_seconds)
        return await self.get(tenant, session_id)

    async def _end_turn(self, session: Session) -> None:
        async with session.writing("EndTurn"):
            turn = session.open_turn
            if turn is not None:
                session.put_turn(replace(turn, state=TurnState.SEALED))
                session.turns[-1] = with_exact_report(session.turns, session.record.policy)
            if turn is not None or session.unsaved:
                await self.sealer.commit(session)
                session.notify(ChangeKind.SEALED, session.turns[-1].index)

    async def seal(self, tenant: TenantId, session_id: str) -> SessionInfo:
        """Seal what is open and return when all of it is durable, compressed and indexed. Raises StorageFailed when the disk refuses."""
        info = await self.end_turn(tenant, session_id, waiting_on_tool=False, eta_seconds=0.0)
        if not info.durable:
            raise StorageFailed("the session is not durable yet: the disk refuses", retry_after=1.0)
        session = await self.table.open(tenant, session_id)
        await self.sealing.settle(session)
        return await self._info(session)

    async def cancel(self, tenant: TenantId, session_id: str, request_id: str) -> bool:
        """Stop the reply of ``request_id``; return whether it was running. What it has generated is committed."""
        session = await self.table.open(tenant, session_id)
        reply = session.replies.get(RequestId(request_id))
        if reply is None or reply.run.done:
            return False
        self.engine.cancel(reply.run)
        return True

    # -- looking inside -----------------------------------------------------------------------------------------------

    async def inspect(self, tenant: TenantId, session_id: str, *, attention: bool = False) -> tuple[SessionInfo, builtins.list[TurnInfo]]:
        """Return a session with its turns, where their blocks are and how far they are sealed.

        With ``attention`` also what share of the last tokens' attention goes to each turn, sinks left out (``Recollection.attention``).
        """
        info = await self.get(tenant, session_id)
        session = await self.table.open(tenant, session_id)
        shares = await self._finish(self.recollection.attention(session)) if attention else []
        rows = await self.table.off_loop(self.ledger.session_blocks, tenant, session.record.id)
        return info, insight.turn_infos(session, rows, self.sealing, shares)

    async def recall(self, tenant: TenantId, session_id: str, text: str, k: int) -> builtins.list[RecalledSpan]:
        """Return up to ``k`` spans of the session that ``text`` attends to, the heaviest first. The session stays as it is."""
        session = await self.table.open(tenant, session_id)
        self.generator.refuse_when_draining()
        return await self._finish(self.recollection.recall(session, text, k))

    async def forget(self, tenant: TenantId, session_id: str, messages: Sequence[ForgetTarget]) -> SessionInfo:
        """Drop messages from a session as if they had never been said; see ``Forgetter.forget``."""
        session = await self.table.open(tenant, session_id)
        await self._finish(self.forgetter.forget(session, messages))
        return await self._info(session)

    def stats(self) -> ServerStats:
        """Return the replica's numbers. Reads the ledger's counts: cheap, but call it off hot paths."""
        return insight.stats(self.table, self.sealing, draining=self.generator.draining)

    async def prefixes(self, tenant: TenantId, limit: int) -> builtins.list[PrefixInfo]:
        """Return the prefixes that the tenant's live sessions share, most shared first."""
        return insight.prefixes(self.table, tenant, limit)

    async def drain(self, seconds: float) -> None:
        """Refuse new work, wait for what runs, then commit what is left of it."""
        await self.generator.drain(seconds, list(self.table))

    async def rest(self) -> None:
        """End all background work; what it had not reached yet is found again at the next start."""
        await asyncio.gather(*(session.background.close() for session in self.table if session.background is not None))

    # -- internals ----------------------------------------------------------------------------------------------------

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        return await self.generator.tasks.finish(work)

    async def _info(self, session: Session) -> SessionInfo:
        disk_bytes = await self.table.off_loop(self.ledger.session_bytes, session.record.tenant, session.record.id)
        return session.info(disk_bytes=disk_bytes)
