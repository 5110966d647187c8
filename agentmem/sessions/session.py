"""A live session: its ledger in memory, its place on the device, and who is writing."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from agentmem.errors import NotFound, SessionBusy, StaleOwner
from agentmem.memory.hashing import Chain
from agentmem.memory.segment import Branch
from agentmem.types import Message, MissReason, RequestId, SessionFormat, SessionRecord, Tail, Turn, TurnState
from agentmem.views import SessionChange, SessionInfo

if TYPE_CHECKING:
    from agentmem.sessions.reply import Reply

WATCH_BUFFER = 64  # changes kept for a slow watcher; older ones are dropped, each carries the whole state


class Session:
    """Event loop only. ``turns`` mirrors the ledger, plus what is still waiting to be written (``unsaved``).

    ``row_bytes`` are the device bytes of one token. A ``closed`` session was deleted, or somebody else has written to it: what is
    in memory is history, and the next call reads the ledger.
    """

    def __init__(self, record: SessionRecord, turns: list[Turn], chain: Chain, row_bytes: int) -> None:
        self.record = record
        self.row_bytes = row_bytes
        self.turns = turns
        self.chain = chain
        self.branch: Branch | None = None
        self.computed = 0  # leading tokens whose K and V have existed
        self.num_saved_blocks = 0  # leading blocks of the chain that the ledger refers to
        self.hint: tuple[MissReason, str] | None = None  # why a miss is to be expected, when it is known
        self.unsaved: dict[int, str] = {}  # turn index -> why it is not durable yet
        self.replies: OrderedDict[RequestId, Reply] = OrderedDict()
        self.writer: str | None = None
        self.closed = False
        self._watchers: set[asyncio.Queue[SessionChange]] = set()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def messages(self) -> list[Message]:
        """Every message of every turn, in order, the system prompt apart."""
        return [message for turn in self.turns[1:] for message in turn.messages]

    @property
    def tail(self) -> Tail:
        """How the token ids end."""
        if not self.chain.tokens:
            return Tail.EMPTY
        return Tail.REPLY if self.turns[-1].reply_start is not None else Tail.CLOSED

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

    def info(self, *, disk_bytes: int = 0) -> SessionInfo:
        """Return what the outside sees; ``disk_bytes`` is for the caller to look up."""
        resident = self.branch.length if self.branch is not None and self.branch.alive else 0
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
        )

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Hold the session for one writer. Raises SessionBusy naming who writes, NotFound when it was deleted meanwhile."""
        self.claim(what)
        try:
            yield
        except StaleOwner:
            self.closed = True
            raise
        finally:
            self.unclaim()

    def claim(self, what: str) -> None:
        """Become the session's writer. Raises as ``writing``."""
        if self.closed:
            raise NotFound(f"session {self.record.id!r} was deleted", reason="SESSION_NOT_FOUND")
        if self.writer is not None:
            raise SessionBusy(f"session {self.record.id!r} is busy: {self.writer} is writing; one writer at a time", retry_after=0.5)
        self.writer = what

    def unclaim(self) -> None:
        """Let the next writer in."""
        self.writer = None

    def put_turn(self, turn: Turn) -> None:
        """Replace the turn of that index or add it at the end; the chain already holds its tokens."""
        self.turns[turn.index :] = [turn]
        now = time.time()
        expires = now + self.record.ttl_seconds if self.record.ttl_seconds else 0.0
        self.record = replace(self.record, updated_at=now, expires_at=expires)

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
