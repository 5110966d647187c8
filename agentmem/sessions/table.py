"""The live sessions: loaded from the ledger when first used, forgotten when idle for long."""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakValueDictionary

from agentmem.engine.engine import Engine
from agentmem.errors import ModelMismatch
from agentmem.memory.hashing import Chain, chain_root
from agentmem.sessions.session import Session
from agentmem.stores.ledger import Ledger
from agentmem.types import BlockHash, Fingerprint, MissReason, SessionId, SessionRecord, Tail, TenantId, Turn

T = TypeVar("T")
Key = tuple[TenantId, SessionId]
MAX_LIVE = 4096


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model this server runs. ``fingerprint`` covers everything that K and V depend on, ``tokenizer_hash`` what ids mean."""

    name: str
    fingerprint: Fingerprint
    tokenizer_hash: str
    kv_dtype: str


class SessionTable:
    """Event loop only; ledger calls run on threads.

    A session that decides for itself attends to everything while that is at most ``exact_bytes`` of K and V. ``on_live`` is called with
    each session that is now in memory, ``on_loaded`` with each that was in the ledger alone until somebody asked for it.
    """

    def __init__(
        self, ledger: Ledger, engine: Engine, model: ModelIdentity, secret: bytes, block_tokens: int, *, exact_bytes: int = sys.maxsize
    ) -> None:
        self.ledger = ledger
        self.engine = engine
        self.model = model
        self.block_tokens = block_tokens
        self.started = time.monotonic()
        self.on_live: Callable[[Session], None] = lambda _session: None
        self.on_loaded: Callable[[Session], None] = lambda _session: None
        self._exact_tokens = exact_bytes // engine.pool.shape.row_bytes
        self._secret = secret
        self._live: OrderedDict[Key, Session] = OrderedDict()
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._live.values()))

    async def off_loop(self, function: Callable[..., T], *args: object) -> T:
        """Run a blocking store call on a thread."""
        return await asyncio.to_thread(function, *args)

    def salt_of(self, tenant: TenantId) -> bytes:
        """Return 32 bytes that are a tenant's own: an HMAC under the server's secret."""
        return hmac.digest(self._secret, tenant.encode(), "sha256")

    def root_of(self, tenant: TenantId) -> BlockHash:
        """Return the chain root of a tenant's sessions, which no other tenant has (invariant 9)."""
        return chain_root(self.salt_of(tenant), self.model.fingerprint, self.block_tokens, self.model.kv_dtype)

    def chain(self, tenant: TenantId, tokens: list[int] | tuple[int, ...] = ()) -> Chain:
        """Return a chain over ``tokens`` under the tenant's root."""
        return Chain(self.root_of(tenant), self.block_tokens, tokens)

    def lock(self, tenant: TenantId, session_id: str) -> asyncio.Lock:
        """Return the lock under which a session is created, loaded and deleted, so that it is in memory once at most."""
        return self._locks.setdefault((tenant, SessionId(session_id)), asyncio.Lock())

    def live(self, tenant: TenantId, session_id: str) -> Session | None:
        """Return the session if it is in memory."""
        session = self._live.get((tenant, SessionId(session_id)))
        return None if session is None or session.closed else session

    def add(self, session: Session) -> None:
        """Make a session live; the caller holds its lock."""
        self._live[session.record.tenant, session.record.id] = session
        self.on_live(session)

    async def open(self, tenant: TenantId, session_id: str) -> Session:
        """Return the session of ``tenant``. Raises NotFound, also for another tenant's, ModelMismatch for other token ids."""
        key = (tenant, SessionId(session_id))
        session = self.live(*key)
        if session is None:
            async with self.lock(*key):
                session = self.live(*key) or await self._load(*key)
        if expired(session, time.time()):
            await self.off_loop(self.ledger.get_session, *key)  # raises NotFound in the one wording there is
        if key in self._live:
            self._live.move_to_end(key)
        await self._forget_idle()
        return session

    async def _load(self, tenant: TenantId, name: SessionId) -> Session:
        record = await self.off_loop(self.ledger.get_session, tenant, name)
        turns = await self.off_loop(self.ledger.turns, tenant, name)
        outdated = self._live.get((tenant, name))
        if outdated is not None:
            await self.forget(outdated)
        session = self.build(record, turns)
        if record.fingerprint != self.model.fingerprint:
            if record.tokenizer_hash != self.model.tokenizer_hash:
                raise ModelMismatch(
                    f"session {name!r} was made with another tokenizer (model {record.fingerprint}); this server runs {self.model.name!r}"
                )
            session.hint = (_what_changed(record.fingerprint, self.model.fingerprint), f"it was {record.fingerprint}")
            session.record = replace(record, fingerprint=self.model.fingerprint)
            await self.off_loop(self.ledger.update_session, session.record)
        await self.count_saved(session)
        self.add(session)
        self.on_loaded(session)
        return session

    def new(self, record: SessionRecord, turns: list[Turn], chain: Chain) -> Session:
        """Return a session that nothing has been computed of; ``chain`` holds the tokens of ``turns``."""
        return Session(record, turns, chain, self.engine.pool.shape.row_bytes, self._exact_tokens)

    def build(self, record: SessionRecord, turns: list[Turn]) -> Session:
        """Return a session over ledger rows, with nothing on the device."""
        chain = self.chain(record.tenant, [token for turn in turns for token in turn.token_ids])
        session = self.new(record, turns, chain)
        session.computed = max(0, len(chain) - (session.tail is Tail.REPLY))
        return session

    async def count_saved(self, session: Session) -> None:
        """Count the leading blocks of the session that the ledger promises to be on disk."""
        rows = await self.off_loop(self.ledger.session_blocks, session.record.tenant, session.record.id)
        known = {name for _, name, n_bytes in rows if n_bytes}
        hashes = session.chain.hashes
        session.num_saved_blocks = next((i for i, name in enumerate(hashes) if name not in known), len(hashes))

    async def forget(self, session: Session) -> None:
        """Drop the session from memory and from the device; what the ledger has of it stays."""
        key = (session.record.tenant, session.record.id)
        if self._live.get(key) is session:
            del self._live[key]
        session.closed = True
        if session.background is not None:
            await session.background.close()
        branches = [session.branch, session.stale.branch if session.stale is not None else None]
        session.branch = session.stale = None
        for branch in branches:
            if branch is not None:
                await self.engine.call(self.engine.pool.release, branch)

    async def _forget_idle(self) -> None:
        if len(self._live) <= MAX_LIVE:
            return
        for session in list(self._live.values())[: len(self._live) - MAX_LIVE]:
            if session.writer is None and not session.unsaved and not session.is_watched:
                await self.forget(session)


def expired(session: Session, now: float) -> bool:
    """Return whether the session's time to live has passed at ``now``, seconds since the epoch. One that is written to lives."""
    record = session.record
    return bool(record.expires_at) and not record.pinned and session.writer is None and now >= record.expires_at


def _what_changed(before: str, now: str) -> MissReason:
    """Fingerprints are ``model.template``: say which half differs."""
    same_model = before.partition(".")[0] == now.partition(".")[0]
    return MissReason.TEMPLATE_CHANGED if same_model else MissReason.MODEL_CHANGED
