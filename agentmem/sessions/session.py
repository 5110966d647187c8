"""A live session: its ledger in memory, its place on the device, and who is writing."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from agentmem.compression.recipe import SealJob
from agentmem.errors import NotFound, SessionBusy, StaleOwner
from agentmem.memory.hashing import Chain
from agentmem.memory.sealed import SealedMemory
from agentmem.memory.segment import Branch
from agentmem.sessions.reports import Evidence
from agentmem.sessions.stale import Stale
from agentmem.sessions.units import sealed_upto
from agentmem.types import Fidelity, Message, MissReason, RequestId, SessionFormat, SessionRecord, Tail, Turn, TurnState
from agentmem.views import SessionChange, SessionInfo

if TYPE_CHECKING:
    from agentmem.sessions.reply import Reply

WATCH_BUFFER = 64  # changes kept for a slow watcher; older ones are dropped, each carries the whole state


class LeftPieces(Protocol):
    """Pieces of a tool's result whose client may come back. ``left_at``: loop time since when nobody sends any, 0 while somebody does."""

    left_at: float


class Background(Protocol):
    """Work on one session that gives way to whoever wants to write. Event loop only."""

    @property
    def is_working(self) -> bool:
        """Whether there was something to do when it last looked, and it is not done yet."""
        ...

    def poke(self) -> None:
        """Look for work, unless somebody is writing."""
        ...

    async def pause(self) -> None:
        """Return once nothing touches the session any more: after one step of the engine at most, or a few block files."""
        ...

    def resting(self) -> AbstractAsyncContextManager[None]:
        """Keep the session as it is for somebody who looks at it and does not write."""
        ...

    async def settle(self) -> None:
        """Return when nothing is left to do."""
        ...

    async def close(self) -> None:
        """Stop for good."""
        ...


class Session:
    """Event loop only. ``turns`` mirrors the ledger, plus what is still waiting to be written (``unsaved``).

    ``row_bytes`` are the device bytes of one token; with AUTO a context of up to ``exact_tokens`` is attended to whole. A ``closed``
    session was deleted, or somebody else has written to it: what is in memory is history, and the next call reads the ledger.
    """

    def __init__(self, record: SessionRecord, turns: list[Turn], chain: Chain, row_bytes: int, exact_tokens: int = sys.maxsize) -> None:
        self.record = record
        self.row_bytes = row_bytes
        self.exact_tokens = exact_tokens
        self.turns = turns
        self.chain = chain
        self.branch: Branch | None = None
        self.computed = 0  # leading tokens whose K and V have existed
        self.num_saved_blocks = 0  # leading blocks of the chain that the ledger refers to
        self.hint: tuple[MissReason, str] | None = None  # why a miss is to be expected, when it is known
        self.unsaved: dict[int, str] = {}  # turn index -> why it is not durable yet
        self.replies: OrderedDict[RequestId, Reply] = OrderedDict()
        self.left_pieces: OrderedDict[RequestId, LeftPieces] = OrderedDict()  # of tool results, by the request they belong to
        self.writer: str | None = None
        self.closed = False
        self.sealed: SealedMemory | None = None  # what a compact view of the session is made of
        self.sealed_by: tuple[SealJob, ...] = ()  # the job behind each unit of ``sealed``
        self.stale: Stale | None = None  # what replies attend to that do not wait until what was forgotten is as if never read
        self.evidence = Evidence()
        self.background: Background | None = None
        self._watchers: set[asyncio.Queue[SessionChange]] = set()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[Message]:
        """Every message of every turn that was not forgotten, in order, the system prompt apart."""
        return [message for turn in self.turns[1:] for message in turn.remembered]

    @property
    def tail(self) -> Tail:
        """How the token ids end."""
        if not self.chain.tokens:
            return Tail.EMPTY
        last = next(turn for turn in reversed(self.turns) if turn.token_ids)
        return Tail.REPLY if last.reply_start is not None else Tail.CLOSED

    @property
    def old_memory(self) -> Stale | None:
        """The memory with holes, while it is on the device and nothing has taken its place."""
        return self.stale if self.stale is not None and self.stale.branch.alive else None

    def memory_with_holes(self, asked: Fidelity | None) -> Stale | None:
        """Return the old memory for a call with that fidelity (None: the policy's), unless it wants everything exact, or there is none."""
        return None if (asked or self.record.policy.fidelity) is Fidelity.EXACT else self.old_memory

    @property
    def open_turn(self) -> Turn | None:
        """The turn that takes more messages, if there is one."""
        last = self.turns[-1]
        return last if last.index > 0 and last.state is TurnState.OPEN else None

    @property
    def is_raw(self) -> bool:
        """Whether the session takes text and token ids instead of messages."""
        return self.record.format is SessionFormat.RAW

    @property
    def last_sealed(self) -> int:
        """Index of the last turn that has ended and is durable."""
        ended = len(self.turns) - (self.open_turn is not None)
        return min([ended, *self.unsaved]) - 1

    def knows(self, request_id: RequestId | None) -> bool:
        """Return whether a reply of that request is under way, in memory, or in the ledger."""
        if request_id is None:
            return False
        return request_id in self.replies or any(turn.request_id == request_id and turn.reply_start is not None for turn in self.turns)

    def length_at(self, turn_index: int) -> int:
        """Return how many tokens turns 0 to ``turn_index`` hold. Raises NotFound naming the turns there are."""
        if not 0 <= turn_index < len(self.turns):
            raise NotFound(f"session has no turn {turn_index}; it has turns 0 to {len(self.turns) - 1}", reason="TURN_NOT_FOUND")
        return sum(len(turn.token_ids) for turn in self.turns[: turn_index + 1])

    def fidelity_for(self, asked: Fidelity | None, tokens: int) -> Fidelity:
        """Return what a call with a context of ``tokens`` runs with: what it ``asked`` for, else what the policy says, AUTO resolved."""
        wanted = asked or self.record.policy.fidelity
        if wanted is not Fidelity.AUTO:
            return wanted
        return Fidelity.EXACT if tokens <= self.exact_tokens else Fidelity.RECALL

    def info(self, *, disk_bytes: int = 0) -> SessionInfo:
        """Return what the outside sees; ``disk_bytes`` is for the caller to look up."""
        holed = self.memory_with_holes(None)
        branch = self.branch if self.branch is not None and self.branch.alive else None
        branch = holed.branch if holed is not None else branch
        root = branch.root if branch is not None else None
        resident = branch.length if branch is not None else 0
        if root is not None:
            resident += root.length - root.covers
        return SessionInfo(
            record=self.record,
            n_turns=len(self.turns),
            n_tokens=len(self.chain),
            open_turn=self.open_turn is not None,
            busy=self.writer is not None,
            durable=not self.unsaved,
            device_bytes=resident * self.row_bytes,
            disk_bytes=disk_bytes,
            device_tokens=resident,
            fidelity=Fidelity.RECALL if holed is not None else self.fidelity_for(None, len(self.chain) + 1),
            resident_tokens=root.length if root is not None else 0,
            sealed_tokens=self.sealed.length if self.sealed is not None else 0,
            host_bytes=root.compact.host_bytes if root is not None and root.compact is not None else 0,
            exact=self.old_memory is None and (branch is None or branch.approx_from is None),
        )

    # -- writing ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def writing(self, what: str) -> AsyncIterator[None]:
        """Hold the session for one writer. Raises SessionBusy naming who writes, NotFound when it was deleted meanwhile."""
        await self.claim(what)
        try:
            yield
        except StaleOwner:
            self.closed = True
            raise
        finally:
            self.unclaim()

    async def claim(self, what: str) -> None:
        """Become the session's writer; background work has stopped when this returns. Raises as ``writing``."""
        self._check_open()
        if self.writer is not None:
            raise SessionBusy(f"session {self.record.id!r} is busy: {self.writer} is writing; one writer at a time", retry_after=0.5)
        self.writer = what
        try:
            if self.background is not None:
                await self.background.pause()
            self._check_open()
        except BaseException:
            self.unclaim()
            raise

    def _check_open(self) -> None:
        if self.closed:
            raise NotFound(f"session {self.record.id!r} was deleted", reason="SESSION_NOT_FOUND")

    def unclaim(self) -> None:
        """Let the next writer in, and until it comes what works in the background."""
        self.writer = None
        if self.background is not None:
            self.background.poke()

    def put_turn(self, turn: Turn) -> None:
        """Replace the turn of that index or add it at the end; the chain already holds its tokens."""
        self.turns[turn.index :] = [turn]
        now = time.time()
        expires = now + self.record.ttl_seconds if self.record.ttl_seconds else 0.0
        self.record = replace(self.record, updated_at=now, expires_at=expires)

    def keep_saved(self, num_blocks: int, reason: tuple[MissReason, str]) -> None:
        """Note that of the archived blocks only the first ``num_blocks`` are left, and why: the next reply says so.

        What was made of the others goes with them; they are archived again as soon as their K and V are there.
        """
        if num_blocks < self.num_saved_blocks:
            self.num_saved_blocks = num_blocks
            self.cut_sealed(num_blocks * self.chain.block_tokens)
            self.hint = self.hint or reason

    def cut_sealed(self, tokens: int) -> None:
        """Keep the sealed units that lie within the first ``tokens`` tokens."""
        self.sealed = sealed_upto(self.sealed, self.chain.hashes, tokens, self.chain.block_tokens)
        self.sealed_by = self.sealed_by[: len(self.sealed.units)] if self.sealed is not None else ()

    # -- watching -----------------------------------------------------------------------------------------------------

    def notify(self, kind: str, turn_index: int | None = None) -> None:
        """Tell every watcher; a watcher that reads too slowly loses the oldest changes, never the newest."""
        change = SessionChange(kind, turn_index, self.info())
        for changes in self._watchers:
            if changes.full():
                changes.get_nowait()
            changes.put_nowait(change)

    @contextmanager
    def watched(self) -> Iterator[asyncio.Queue[SessionChange]]:
        """Yield a queue of the changes that happen from now on."""
        changes: asyncio.Queue[SessionChange] = asyncio.Queue(WATCH_BUFFER)
        self._watchers.add(changes)
        try:
            yield changes
        finally:
            self._watchers.discard(changes)

    @property
    def is_watched(self) -> bool:
        """Whether anyone watches."""
        return bool(self._watchers)
