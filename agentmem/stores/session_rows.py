"""Queries over session rows. Each runs inside a transaction of the ledger and takes its connection."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from agentmem.errors import AlreadyExists, InvalidInput, NotFound, StaleOwner
from agentmem.stores.paging import Place, decode_place, encode_place
from agentmem.stores.records import Page
from agentmem.stores.rows import session_record, session_row
from agentmem.types import SessionId, SessionRecord, TenantId

MAX_PAGE = 1000

_INSERT = """
INSERT INTO sessions (id, tenant, fingerprint, tokenizer_hash, format, system, tools, policy, labels, ttl_seconds, pinned,
    parent, parent_turn, epoch, created_at, updated_at, expires_at)
VALUES (:id, :tenant, :fingerprint, :tokenizer_hash, :format, :system, :tools, :policy, :labels, :ttl_seconds, :pinned,
    :parent, :parent_turn, :epoch, :created_at, :updated_at, :expires_at)
RETURNING key
"""
_UPDATE = """
UPDATE sessions SET fingerprint = :fingerprint, policy = :policy, labels = :labels, ttl_seconds = :ttl_seconds,
    pinned = :pinned, epoch = :epoch, updated_at = :updated_at, expires_at = :expires_at
WHERE key = :key
"""
_PAGE = """
SELECT * FROM sessions
WHERE tenant = :tenant AND created_at <= :created_at AND (created_at < :created_at OR id > :id)
    AND (pinned OR expires_at <= 0 OR expires_at > :now)
ORDER BY created_at DESC, id LIMIT :limit
"""
# CROSS JOIN keeps SQLite on the first label's index range, which is already in the order of the page.
_PAGE_BY_LABEL = """
SELECT s.* FROM labels AS l CROSS JOIN sessions AS s ON s.key = l.session
WHERE l.tenant = :tenant AND l.name = :name AND l.value = :value
    AND l.created_at <= :created_at AND (l.created_at < :created_at OR l.id > :id)
    AND (s.pinned OR s.expires_at <= 0 OR s.expires_at > :now)
    AND NOT EXISTS (
        SELECT 1 FROM json_each(:others) AS o
        WHERE NOT EXISTS (SELECT 1 FROM labels AS m WHERE m.session = s.key AND m.name = o.key AND m.value = o.value))
ORDER BY l.created_at DESC, l.id LIMIT :limit
"""


def find(connection: sqlite3.Connection, tenant: TenantId, session_id: SessionId) -> sqlite3.Row:
    """Return the session's row, expired or not. Raises NotFound, also for another tenant's session."""
    row: sqlite3.Row | None = connection.execute("SELECT * FROM sessions WHERE tenant = ? AND id = ?", (tenant, session_id)).fetchone()
    if row is None:
        raise not_found(session_id)
    return row


def not_found(session_id: SessionId) -> NotFound:
    """Return the one answer for sessions that are missing, expired or another tenant's."""
    return NotFound(f"session {session_id!r} does not exist", metadata={"session_id": session_id})


def owned(connection: sqlite3.Connection, tenant: TenantId, session_id: SessionId, epoch: int) -> sqlite3.Row:
    """Return the session's row for a writer. Raises NotFound, or StaleOwner when a newer epoch has written to the session."""
    row = find(connection, tenant, session_id)
    if row["epoch"] > epoch:
        raise StaleOwner(f"session {session_id!r} is owned by epoch {row['epoch']}; this write carries epoch {epoch}")
    return row


def is_expired(row: sqlite3.Row, now: float) -> bool:
    """Return whether the session's time has passed; a pinned session has no end."""
    return not row["pinned"] and 0 < row["expires_at"] <= now


def insert(connection: sqlite3.Connection, record: SessionRecord) -> int:
    """Add a session and return its key. Raises AlreadyExists."""
    taken = connection.execute("SELECT 1 FROM sessions WHERE tenant = ? AND id = ?", (record.tenant, record.id)).fetchone()
    if taken is not None:
        raise AlreadyExists(f"session {record.id!r} exists", metadata={"session_id": record.id})
    key = int(connection.execute(_INSERT, session_row(record)).fetchone()["key"])
    _insert_labels(connection, key, record.created_at, record)
    return key


def update(connection: sqlite3.Connection, record: SessionRecord) -> None:
    """Replace what may change of a session. Raises NotFound, StaleOwner."""
    stored = owned(connection, record.tenant, record.id, record.epoch)
    connection.execute(_UPDATE, {**session_row(record), "key": stored["key"]})
    connection.execute("DELETE FROM labels WHERE session = ?", (stored["key"],))
    _insert_labels(connection, stored["key"], stored["created_at"], record)


def _insert_labels(connection: sqlite3.Connection, key: int, created_at: float, record: SessionRecord) -> None:
    connection.executemany(
        "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)",
        [(record.tenant, name, value, created_at, record.id, key) for name, value in record.labels.items()],
    )


def page(
    connection: sqlite3.Connection,
    tenant: TenantId,
    *,
    labels: Mapping[str, str],
    page_size: int,
    page_token: str,
    now: float,
) -> Page:
    """Return the tenant's sessions that carry all ``labels``, newest first. Raises InvalidInput for a wrong size or token."""
    if not 1 <= page_size <= MAX_PAGE:
        raise InvalidInput(f"page_size is {page_size}; allowed: 1 to {MAX_PAGE}")
    place = decode_place(page_token)
    values: dict[str, object] = {**place._asdict(), "tenant": tenant, "now": now, "limit": page_size + 1}
    query = _PAGE
    if labels:
        (name, value), *others = labels.items()
        query = _PAGE_BY_LABEL
        values |= {"name": name, "value": value, "others": json.dumps(dict(others))}
    records = [session_record(row) for row in connection.execute(query, values)]
    if len(records) <= page_size:
        return Page(records, "")
    last = records[page_size - 1]
    return Page(records[:page_size], encode_place(Place(last.created_at, last.id)))
