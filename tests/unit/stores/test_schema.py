"""Opening the database file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentmem.errors import ConfigError, StorageFailed
from agentmem.stores.schema import VERSION, connect


def pragma(connection: sqlite3.Connection, name: str) -> object:
    """Return the value of a pragma."""
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def test_settings_of_a_new_file(tmp_path: Path) -> None:
    """A new ledger uses WAL, full syncs and foreign keys, and carries its version."""
    connection = connect(tmp_path / "new" / "meta.sqlite")
    found = [pragma(connection, name) for name in ("journal_mode", "synchronous", "foreign_keys", "user_version")]
    connection.close()
    assert ["wal", 2, 1, VERSION] == found


def test_opening_twice_keeps_the_tables(tmp_path: Path) -> None:
    """The schema is made once."""
    connect(tmp_path / "meta.sqlite").close()
    connect(tmp_path / "meta.sqlite").close()


def test_newer_version_is_refused(tmp_path: Path) -> None:
    """A file of a newer agentmem is left alone, and the error names both versions."""
    connection = connect(tmp_path / "meta.sqlite")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match=f"version {VERSION + 1}.*up to {VERSION}"):
        connect(tmp_path / "meta.sqlite")


def test_garbage_is_refused(tmp_path: Path) -> None:
    """A file that is no database is StorageFailed, naming the file."""
    path = tmp_path / "meta.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageFailed, match=r"meta\.sqlite"):
        connect(path)


def test_unreachable_folder_is_refused(tmp_path: Path) -> None:
    """A path below a file is StorageFailed, naming the path."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageFailed, match="file"):
        connect(tmp_path / "file" / "meta.sqlite")
