"""Tables of the ledger and the one place that opens its database file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from agentmem.errors import ConfigError, StorageFailed

VERSION = 3

# What stays of forgotten messages. `IF NOT EXISTS` only matters to a file whose version was turned back.
_FORGOTTEN = """
CREATE TABLE IF NOT EXISTS forgotten (
    session INTEGER NOT NULL, turn INTEGER NOT NULL, message_index INTEGER NOT NULL, role TEXT NOT NULL, tokens INTEGER NOT NULL,
    digest TEXT NOT NULL, forgotten_at REAL NOT NULL,
    PRIMARY KEY (session, turn, message_index),
    FOREIGN KEY (session, turn) REFERENCES turns ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
"""
# `refs` outlive the block rows that they name: a ref without a row is a block that was evicted, no ref at all one that
# was never stored. `labels` repeats the tenant and the order of its session so that a filtered page is one index range.
_SCHEMA = """
CREATE TABLE sessions (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL, tenant TEXT NOT NULL, fingerprint TEXT NOT NULL, tokenizer_hash TEXT NOT NULL,
    format TEXT NOT NULL, system TEXT NOT NULL, tools TEXT NOT NULL, policy TEXT NOT NULL, labels TEXT NOT NULL,
    ttl_seconds REAL NOT NULL, pinned INTEGER NOT NULL, parent TEXT, parent_turn INTEGER, epoch INTEGER NOT NULL,
    created_at REAL NOT NULL, updated_at REAL NOT NULL, expires_at REAL NOT NULL,
    UNIQUE (tenant, id)
) STRICT;
CREATE INDEX sessions_in_order ON sessions (tenant, created_at DESC, id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE expires_at > 0 AND NOT pinned;

CREATE TABLE labels (
    tenant TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, created_at REAL NOT NULL, id TEXT NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE,
    PRIMARY KEY (tenant, name, value, created_at DESC, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_by_session ON labels (session, name, value);

CREATE TABLE turns (
    session INTEGER NOT NULL REFERENCES sessions ON DELETE CASCADE, turn INTEGER NOT NULL,
    messages TEXT NOT NULL, token_ids BLOB NOT NULL, state TEXT NOT NULL, reply_start INTEGER, finish_reason TEXT,
    fidelity TEXT NOT NULL, request_id TEXT, input_digest TEXT NOT NULL, usage TEXT NOT NULL, reuse TEXT NOT NULL,
    created_at REAL NOT NULL, report TEXT,
    PRIMARY KEY (session, turn)
) STRICT;

CREATE TABLE blocks (
    hash BLOB PRIMARY KEY, parent BLOB, tenant TEXT NOT NULL, n_bytes INTEGER NOT NULL, position INTEGER NOT NULL,
    last_used REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX blocks_by_use ON blocks (last_used, position DESC);
CREATE INDEX blocks_by_tenant ON blocks (tenant, n_bytes);

CREATE TABLE refs (
    session INTEGER NOT NULL, turn INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (session, turn, hash),
    FOREIGN KEY (session, turn) REFERENCES turns ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX refs_by_hash ON refs (hash);
"""
# What makes a file of version n one of version n + 1. New columns come last, so that `INSERT INTO turns SELECT` fits old and new files.
_MIGRATIONS = {1: "ALTER TABLE turns ADD COLUMN report TEXT;", 2: _FORGOTTEN}


def connect(path: Path) -> sqlite3.Connection:
    """Open the database at ``path``, making its folder and tables when they are new, and bringing an older version's up to date.

    Raises ConfigError when a newer version wrote the file, StorageFailed when it cannot be opened or is no database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"the ledger {path} cannot be opened: {error}") from error
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise StorageFailed(f"the ledger {path} cannot be read: {error}") from error
    except ConfigError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an acknowledged turn survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what was deleted or forgotten is not left in free pages
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise ConfigError(f"the ledger {path} has format version {version}; this agentmem reads up to {VERSION}: use a newer agentmem")
    if version == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {_FORGOTTEN} PRAGMA user_version = {VERSION}; COMMIT;")
    elif version < VERSION:
        steps = " ".join(_MIGRATIONS[older] for older in range(version, VERSION))
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;")
