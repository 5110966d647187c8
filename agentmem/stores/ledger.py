"""The ledger: sessions, their turns, and which blocks are promised to be on disk. Everything else can be recomputed from it."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from agentmem import faults
from agentmem.errors import InvalidInput, StorageFailed
from agentmem.stores import block_rows, session_rows
from agentmem.stores.database import Database
from agentmem.stores.integrity import problems
from agentmem.stores.records import BlockRow, LedgerStats, Page, SessionSize
from agentmem.stores.rows import forgotten_record, forgotten_rows, session_record, turn_record, turn_row
from agentmem.types import BlockHash, Forgotten, SessionId, SessionRecord, TenantId, Turn

log = logging.getLogger(__name__)
_PUT_TURN = """
INSERT INTO turns (session, turn, messages, token_ids, state, reply_start, finish_reason, fidelity, request_id, input_digest,
    usage, reuse, created_at, report)
VALUES (:session, :turn, :messages, :token_ids, :state, :reply_start, :finish_reason, :fidelity, :request_id, :input_digest,
    :usage, :reuse, :created_at, :report)
ON CONFLICT DO UPDATE SET messages = excluded.messages, token_ids = excluded.token_ids, state = excluded.state,
    reply_start = excluded.reply_start, finish_reason = excluded.finish_reason, fidelity = excluded.fidelity,
    request_id = excluded.request_id, input_digest = excluded.input_digest, usage = excluded.usage, reuse = excluded.reuse,
    created_at = excluded.created_at, report = excluded.report
"""
_PUT_FORGOTTEN = """
INSERT OR IGNORE INTO forgotten (session, turn, message_index, role, tokens, digest, forgotten_at)
VALUES (:session, :turn, :message_index, :role, :tokens, :digest, :forgotten_at)
"""
_COPY_FORGOTTEN = """
INSERT INTO forgotten SELECT :key, turn, message_index, role, tokens, digest, forgotten_at
FROM forgotten WHERE session = :source AND turn <= :upto
"""
_COPY_TURNS = """
INSERT INTO turns SELECT :key, turn, messages, token_ids, state, reply_start, finish_reason, fidelity, request_id, input_digest,
    usage, reuse, created_at, report
FROM turns WHERE session = :source AND turn <= :upto
"""
_TOUCH = """
UPDATE sessions SET updated_at = :now, epoch = :epoch, expires_at = CASE WHEN ttl_seconds > 0 THEN :now + ttl_seconds ELSE 0 END
WHERE key = :key
"""
_SESSION_BLOCKS = """
SELECT r.turn, r.hash, coalesce(b.n_bytes, 0) AS n_bytes FROM refs AS r LEFT JOIN blocks AS b USING (hash)
WHERE r.session = ? ORDER BY r.turn, b.position
"""
_SESSION_BYTES = "SELECT coalesce(sum(n_bytes), 0) FROM blocks WHERE hash IN (SELECT hash FROM refs WHERE session = ?)"
_SIZE = """
WITH s AS (SELECT key FROM sessions WHERE tenant = ? AND id = ?)
SELECT count(*) AS turns, coalesce(sum(length(token_ids)) / 4, 0) AS tokens, max(turn > 0 AND state = 'open') AS open_turn,
    (SELECT coalesce(sum(n_bytes), 0) FROM blocks WHERE hash IN (SELECT hash FROM refs WHERE session IN s)) AS bytes
FROM turns WHERE session IN s
"""
_EXPIRED = """
SELECT tenant, id FROM sessions WHERE expires_at > 0 AND NOT pinned AND expires_at <= ? ORDER BY expires_at LIMIT ?
"""
_STATS = """
SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM turns), (SELECT count(*) FROM blocks),
    (SELECT coalesce(sum(n_bytes), 0) FROM blocks)
"""


class Ledger:
    """Thread safe. Every method is one transaction and durable when it returns.

    A session is named by tenant and id: the same id of two tenants is two sessions, and neither tenant can tell.
    All methods raise StorageFailed when the disk refuses, those that name a session NotFound.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._db = Database(path)
        self._clock = clock

    def close(self) -> None:
        """Close the database file."""
        self._db.close()

    # Sessions

    def create_session(self, record: SessionRecord, turns: Sequence[Turn]) -> None:
        """Add a session with its first turns, numbered from 0. Raises AlreadyExists, also while an expired one is not yet deleted."""
        if [turn.index for turn in turns] != list(range(len(turns))):
            raise InvalidInput(f"turns are numbered {[turn.index for turn in turns]}; allowed: 0, 1, 2 ... in order")
        with self._db.write() as connection:
            key = session_rows.insert(connection, record)
            for turn in turns:
                _put_turn(connection, key, turn)

    def get_session(self, tenant: TenantId, session_id: SessionId) -> SessionRecord:
        """Return the session. Raises NotFound, also for an expired session."""
        with self._db.read() as connection:
            row = session_rows.find(connection, tenant, session_id)
        if session_rows.is_expired(row, self._clock()):
            raise session_rows.not_found(session_id)
        return session_record(row)

    def list_sessions(self, tenant: TenantId, *, labels: Mapping[str, str], page_size: int, page_token: str) -> Page:
        """Return a page of the tenant's sessions that carry all ``labels``, newest first, expired ones left out.

        Costs the same however many sessions there are. Raises InvalidInput for a page size outside 1 to 1000 or a foreign token.
        """
        with self._db.read() as connection:
            return session_rows.page(connection, tenant, labels=labels, page_size=page_size, page_token=page_token, now=self._clock())

    def update_session(self, record: SessionRecord) -> None:
        """Replace TTL, pin, policy, labels, fingerprint, epoch, ``updated_at``, ``expires_at``. Raises StaleOwner for an older epoch."""
        with self._db.write() as connection:
            session_rows.update(connection, record)

    def delete_session(self, tenant: TenantId, session_id: SessionId) -> list[BlockHash]:
        """Remove a session, expired or not, with its turns and refs; return the blocks that nobody refers to any more.

        The rows of these blocks are gone too; their files are for the caller to erase.
        """
        with self._db.write() as connection:
            key = session_rows.find(connection, tenant, session_id)["key"]
            hashes = block_rows.of_session(connection, key)
            connection.execute("DELETE FROM sessions WHERE key = ?", (key,))
            return block_rows.drop_unreferenced(connection, hashes)

    def fork_session(self, source: SessionId, record: SessionRecord, upto_turn: int) -> None:
        """Add ``record`` with turns 0 to ``upto_turn`` of the same tenant's ``source`` and their blocks, copying no K or V.

        Raises NotFound, AlreadyExists, InvalidInput when the source has no such turn.
        """
        with self._db.write() as connection:
            source_key = session_rows.find(connection, record.tenant, source)["key"]
            last = _last_turn(connection, source_key)
            if not 0 <= upto_turn <= last:
                raise InvalidInput(f"turn {upto_turn} to fork at does not exist; session {source!r} has turns 0 to {last}")
            key = session_rows.insert(connection, record)
            values = {"key": key, "source": source_key, "upto": upto_turn}
            connection.execute(_COPY_TURNS, values)
            connection.execute(_COPY_FORGOTTEN, values)
            connection.execute("INSERT INTO refs SELECT :key, turn, hash FROM refs WHERE session = :source AND turn <= :upto", values)

    def expired(self, now: float, limit: int) -> list[tuple[TenantId, SessionId]]:
        """Return up to ``limit`` sessions whose time has passed at ``now``, the longest expired first; never pinned ones."""
        with self._db.read() as connection:
            return [(TenantId(row["tenant"]), SessionId(row["id"])) for row in connection.execute(_EXPIRED, (now, limit))]

    # Turns

    def turns(self, tenant: TenantId, session_id: SessionId) -> list[Turn]:
        """Return all turns in order."""
        with self._db.read() as connection:
            key = session_rows.find(connection, tenant, session_id)["key"]
            gone: defaultdict[int, list[Forgotten]] = defaultdict(list)
            for row in connection.execute("SELECT * FROM forgotten WHERE session = ? ORDER BY turn, message_index", (key,)):
                gone[row["turn"]].append(forgotten_record(row))
            rows = connection.execute("SELECT * FROM turns WHERE session = ? ORDER BY turn", (key,))
            return [turn_record(row, tuple(gone[row["turn"]])) for row in rows]

    def put_turn(self, tenant: TenantId, session_id: SessionId, epoch: int, turn: Turn, blocks: Sequence[BlockRow]) -> None:
        """Commit a turn: the turn (new, or replacing the one with its index), refs and rows of ``blocks``, the session's times.

        ``blocks`` are those that this turn completes; their files are durable already. Raises StaleOwner for an older epoch,
        InvalidInput for a turn that would leave a gap or a block of another tenant.
        """
        foreign = next((b for b in blocks if b.tenant != tenant), None)
        if foreign is not None:
            raise InvalidInput(f"block {foreign.hash.hex()} belongs to another tenant")
        now = self._clock()
        with self._db.write() as connection:
            key = session_rows.owned(connection, tenant, session_id, epoch)["key"]
            last = _last_turn(connection, key)
            if not 0 <= turn.index <= last + 1:
                raise InvalidInput(f"turn {turn.index} would leave a gap; session {session_id!r} takes turns 0 to {last + 1}")
            _put_turn(connection, key, turn)
            block_rows.add(connection, key, turn.index, blocks, now)
            block_rows.touch_session(connection, key, now)
            connection.execute(_TOUCH, {"key": key, "now": now, "epoch": epoch})
            faults.point("ledger.before_commit")
        faults.point("ledger.after_commit")

    def truncate(self, tenant: TenantId, session_id: SessionId, epoch: int, upto_turn: int) -> list[BlockHash]:
        """Drop the turns above ``upto_turn`` and their refs; return the blocks that nobody refers to any more, as ``delete_session``.

        Raises StaleOwner for an older epoch, InvalidInput when there is no such turn.
        """
        with self._db.write() as connection:
            key = session_rows.owned(connection, tenant, session_id, epoch)["key"]
            last = _last_turn(connection, key)
            if not 0 <= upto_turn <= last:
                raise InvalidInput(f"turn {upto_turn} to go back to does not exist; session {session_id!r} has turns 0 to {last}")
            hashes = block_rows.of_session(connection, key, after_turn=upto_turn)
            connection.execute("DELETE FROM turns WHERE session = ? AND turn > ?", (key, upto_turn))
            connection.execute(_TOUCH, {"key": key, "now": self._clock(), "epoch": epoch})
            return block_rows.drop_unreferenced(connection, hashes)

    def forget(
        self, tenant: TenantId, session_id: SessionId, epoch: int, turns: Sequence[Turn], chain: Collection[BlockHash]
    ) -> list[BlockHash]:
        """Replace ``turns`` by what is left of them, and drop the session's refs to blocks outside ``chain``, the names of its blocks now.

        Returns the blocks that nobody refers to any more, as ``truncate``. What the turns said is then in no page of the database file, nor
        in its log. Raises StaleOwner for an older epoch, InvalidInput for a turn that there is not.
        """
        with self._db.write() as connection:
            key = session_rows.owned(connection, tenant, session_id, epoch)["key"]
            last = _last_turn(connection, key)
            for turn in turns:
                if not 0 <= turn.index <= last:
                    raise InvalidInput(f"turn {turn.index} does not exist; session {session_id!r} has turns 0 to {last}")
                _put_turn(connection, key, turn)
            dead = [name for name in block_rows.of_session(connection, key) if name not in chain]
            connection.executemany("DELETE FROM refs WHERE session = ? AND hash = ?", [(key, name) for name in dead])
            connection.execute(_TOUCH, {"key": key, "now": self._clock(), "epoch": epoch})
            gone = block_rows.drop_unreferenced(connection, dead)
            faults.point("ledger.before_commit")
        faults.point("ledger.after_commit")
        try:
            with self._db.read() as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except StorageFailed as error:  # forgotten it is; the log will be written over
            log.warning("what was forgotten is still in the ledger's log: %s", error.message)
        return gone

    # Blocks

    def block_row(self, block_hash: BlockHash) -> BlockRow | None:
        """Return the block's row; None when its file is not promised."""
        with self._db.read() as connection:
            return block_rows.get(connection, block_hash)

    def block_rows(self, hashes: Iterable[BlockHash]) -> set[BlockHash]:
        """Return which of ``hashes`` have a row."""
        with self._db.read() as connection:
            return {h for h in hashes if block_rows.get(connection, h) is not None}

    def referenced(self, hashes: Iterable[BlockHash]) -> set[BlockHash]:
        """Return which of ``hashes`` some turn refers to, with or without a row."""
        with self._db.read() as connection:
            return {h for h in hashes if block_rows.is_referenced(connection, h)}

    def was_referenced(self, block_hash: BlockHash) -> bool:
        """Return whether some turn refers to the block: without a row, that is a block that was evicted."""
        return bool(self.referenced([block_hash]))

    def session_blocks(self, tenant: TenantId, session_id: SessionId) -> list[tuple[int, BlockHash, int]]:
        """Return (turn, block, bytes on disk) in the order of turns; bytes are 0 for a block without a row."""
        with self._db.read() as connection:
            key = session_rows.find(connection, tenant, session_id)["key"]
            return [(row["turn"], BlockHash(row["hash"]), row["n_bytes"]) for row in connection.execute(_SESSION_BLOCKS, (key,))]

    def session_bytes(self, tenant: TenantId, session_id: SessionId) -> int:
        """Return the bytes of the session's blocks on disk, those that it shares with others included."""
        with self._db.read() as connection:
            key = session_rows.find(connection, tenant, session_id)["key"]
            return int(connection.execute(_SESSION_BYTES, (key,)).fetchone()[0])

    def session_sizes(self, tenant: TenantId, session_ids: Sequence[SessionId]) -> dict[SessionId, SessionSize]:
        """Return how large sessions are, for those that exist."""
        with self._db.read() as connection:
            return {
                session_id: SessionSize(row["turns"], row["tokens"], bool(row["open_turn"]), row["bytes"])
                for session_id in session_ids
                if (row := connection.execute(_SIZE, (tenant, session_id)).fetchone())["turns"]
            }

    def lru_blocks(self, limit: int, exclude: Collection[BlockHash]) -> list[BlockHash]:
        """Return up to ``limit`` blocks, first to evict first: pinned sessions' last, longest unused first, deepest first."""
        with self._db.read() as connection:
            return block_rows.victims(connection, limit, exclude)

    def drop_blocks(self, hashes: Iterable[BlockHash]) -> None:
        """Take back the promise of these files; refs stay, which tells EVICTED from NEW."""
        with self._db.write() as connection:
            block_rows.drop(connection, hashes)

    def touch_blocks(self, hashes: Iterable[BlockHash], now: float) -> None:
        """Mark blocks as used at ``now``."""
        with self._db.write() as connection:
            block_rows.touch(connection, hashes, now)

    # The whole

    def stats(self) -> LedgerStats:
        """Count rows."""
        with self._db.read() as connection:
            return LedgerStats(*connection.execute(_STATS).fetchone())

    def integrity(self) -> list[str]:
        """Return the problems found, one sentence each. Reads everything: for tests and ``agentmem doctor``."""
        with self._db.read() as connection:
            return problems(connection)


def _put_turn(connection: sqlite3.Connection, key: int, turn: Turn) -> None:
    connection.execute(_PUT_TURN, {**turn_row(turn), "session": key})
    connection.executemany(_PUT_FORGOTTEN, [{**row, "session": key} for row in forgotten_rows(turn)])


def _last_turn(connection: sqlite3.Connection, key: int) -> int:
    return int(connection.execute("SELECT coalesce(max(turn), -1) FROM turns WHERE session = ?", (key,)).fetchone()[0])
