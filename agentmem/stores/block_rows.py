"""Queries over block rows and refs. Each runs inside a transaction of the ledger and takes its connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence

from agentmem.stores.records import BlockRow
from agentmem.stores.rows import block_record
from agentmem.types import BlockHash

# Read along blocks_by_use, so the first victims cost the same however many blocks there are.
_IN_EVICTION_ORDER = """
SELECT hash FROM blocks AS b
WHERE :pinned = EXISTS (SELECT 1 FROM refs AS r JOIN sessions AS s ON s.key = r.session WHERE r.hash = b.hash AND s.pinned)
ORDER BY last_used, position DESC
"""


def add(connection: sqlite3.Connection, session: int, turn: int, blocks: Sequence[BlockRow], now: float) -> None:
    """Insert or renew the rows of ``blocks`` and the refs to them from one turn."""
    connection.executemany(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET n_bytes = excluded.n_bytes, last_used = excluded.last_used",
        [(b.hash, b.parent, b.tenant, b.n_bytes, b.position, now) for b in blocks],
    )
    connection.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?, ?)", [(session, turn, b.hash) for b in blocks])


def touch_session(connection: sqlite3.Connection, session: int, now: float) -> None:
    """Mark every block of a session as used now: the new ones are worth nothing without those before them."""
    connection.execute("UPDATE blocks SET last_used = ? WHERE hash IN (SELECT hash FROM refs WHERE session = ?)", (now, session))


def touch(connection: sqlite3.Connection, hashes: Iterable[BlockHash], now: float) -> None:
    """Mark blocks as used at ``now``, unless they were used later."""
    connection.executemany("UPDATE blocks SET last_used = max(last_used, ?) WHERE hash = ?", [(now, h) for h in hashes])


def drop(connection: sqlite3.Connection, hashes: Iterable[BlockHash]) -> None:
    """Delete rows; refs stay."""
    connection.executemany("DELETE FROM blocks WHERE hash = ?", [(h,) for h in hashes])


def of_session(connection: sqlite3.Connection, session: int, after_turn: int = -1) -> list[BlockHash]:
    """Return the distinct blocks that turns above ``after_turn`` refer to."""
    found = connection.execute("SELECT DISTINCT hash FROM refs WHERE session = ? AND turn > ?", (session, after_turn))
    return [BlockHash(row["hash"]) for row in found]


def drop_unreferenced(connection: sqlite3.Connection, hashes: Iterable[BlockHash]) -> list[BlockHash]:
    """Delete the rows of those ``hashes`` that no turn refers to, and return these hashes, whether they had a row or not."""
    gone = [h for h in hashes if not is_referenced(connection, h)]
    drop(connection, gone)
    return gone


def is_referenced(connection: sqlite3.Connection, block_hash: BlockHash) -> bool:
    """Return whether any turn refers to the block."""
    return connection.execute("SELECT 1 FROM refs WHERE hash = ? LIMIT 1", (block_hash,)).fetchone() is not None


def get(connection: sqlite3.Connection, block_hash: BlockHash) -> BlockRow | None:
    """Return the block's row, None without one."""
    row = connection.execute("SELECT * FROM blocks WHERE hash = ?", (block_hash,)).fetchone()
    return None if row is None else block_record(row)


def victims(connection: sqlite3.Connection, limit: int, exclude: Collection[BlockHash]) -> list[BlockHash]:
    """Return up to ``limit`` blocks outside ``exclude``, the first to evict first."""
    found: list[BlockHash] = []
    for pinned in (0, 1):
        for row in connection.execute(_IN_EVICTION_ORDER, {"pinned": pinned}):
            if len(found) >= limit:
                return found
            if row["hash"] not in exclude:
                found.append(BlockHash(row["hash"]))
    return found
