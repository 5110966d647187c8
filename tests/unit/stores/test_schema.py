"""Opening the database file."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import SESSION, TENANT, session, turn

from agentmem.errors import ConfigError, StorageFailed
from agentmem.stores import Ledger
from agentmem.stores.schema import VERSION, connect
from agentmem.types import FidelityReport, Forgotten


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


def test_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """A file of version 1, whose turns have no report, keeps its turns and then takes reports, in forks too."""
    path = tmp_path / "meta.sqlite"
    ledger = Ledger(path)
    ledger.create_session(session(), [turn(0), turn(1)])
    ledger.close()
    old = sqlite3.connect(path)
    old.executescript("ALTER TABLE turns DROP COLUMN report; PRAGMA user_version = 1;")
    old.close()
    reopened = Ledger(path)
    assert [turn(0), turn(1)] == reopened.turns(TENANT, SESSION)
    sealed = replace(turn(1), report=FidelityReport(tokens=7, mean_kl=0.25))
    reopened.put_turn(TENANT, SESSION, 1, sealed, [])
    reopened.fork_session(SESSION, session("fork"), 1)
    reopened.close()
    again = Ledger(path)
    assert [[turn(0), sealed]] * 2 == [again.turns(TENANT, name.id) for name in (session(), session("fork"))]
    again.close()
    raw = sqlite3.connect(path)
    assert VERSION == pragma(raw, "user_version")
    raw.close()


def test_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A version-1 file that cannot be changed is StorageFailed, and its version stays, so that the next start tries again."""
    path = tmp_path / "meta.sqlite"
    connect(path).close()
    old = sqlite3.connect(path)
    old.execute("PRAGMA user_version = 1")  # and yet with the new column: ALTER TABLE is refused
    old.close()
    with pytest.raises(StorageFailed, match="report"):
        connect(path)
    old = sqlite3.connect(path)
    assert 1 == pragma(old, "user_version")
    old.close()


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


def test_version_2_learns_to_forget(tmp_path: Path) -> None:
    """A file of version 2, which knows no forgotten messages, keeps its turns and then takes their entries, in forks too."""
    path = tmp_path / "meta.sqlite"
    ledger = Ledger(path)
    ledger.create_session(session(), [turn(0), turn(1)])
    ledger.close()
    old = sqlite3.connect(path)
    old.executescript("DROP TABLE forgotten; PRAGMA user_version = 2;")
    old.close()
    reopened = Ledger(path)
    assert [turn(0), turn(1)] == reopened.turns(TENANT, SESSION)
    left = replace(turn(1), forgotten=(Forgotten(0, "user", 7, "digest", 1.5),))
    reopened.forget(TENANT, SESSION, 1, [left], set())
    reopened.fork_session(SESSION, session("fork"), 1)
    assert [[turn(0), left]] * 2 == [reopened.turns(TENANT, name.id) for name in (session(), session("fork"))]
    reopened.close()
