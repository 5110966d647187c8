"""Transactions and the translation of errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem.errors import InvalidInput, StorageFailed
from agentmem.stores.database import Database, free_bytes


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an empty database with a table of one number."""
    database = Database(tmp_path / "meta.sqlite")
    with database.write() as connection:
        connection.execute("CREATE TABLE t (n INTEGER CHECK (n < 100))")
    yield database
    database.close()


def numbers(database: Database) -> list[int]:
    """Return what was committed."""
    with database.read() as connection:
        return [row["n"] for row in connection.execute("SELECT n FROM t")]


def test_body_that_raises_is_rolled_back(database: Database) -> None:
    """An exception takes the whole transaction back and passes through."""

    def fail() -> None:
        with database.write() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [] == numbers(database)


def test_sqlite_error_is_storage_failed(database: Database) -> None:
    """What SQLite refuses is StorageFailed with path and free bytes; the next transaction works."""
    with pytest.raises(StorageFailed, match=r"meta\.sqlite.*bytes free"), database.write() as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (100,)])
    with database.write() as connection:
        connection.execute("INSERT INTO t VALUES (2)")
    assert [2] == numbers(database)


def test_full_disk_is_storage_failed(database: Database) -> None:
    """SQLite's own disk-full error leaves as StorageFailed and changes nothing."""
    with database.read() as connection:
        connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageFailed, match="full"), database.write() as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(1,)] * 10_000)
    assert [] == numbers(database)


def test_lone_surrogate_is_invalid_input(database: Database) -> None:
    """Text that UTF-8 cannot hold is the caller's mistake."""
    with pytest.raises(InvalidInput, match="surrogate at character 1"), database.read() as connection:
        connection.execute("SELECT ?", ("a\ud800",))


def test_huge_number_is_invalid_input(database: Database) -> None:
    """A number beyond 64 bits is the caller's mistake."""
    with pytest.raises(InvalidInput, match="64 bits"), database.read() as connection:
        connection.execute("SELECT ?", (2**64,))


def test_closed_database_is_storage_failed(database: Database) -> None:
    """After close, which may come twice, every call says so."""
    database.close()
    database.close()
    with pytest.raises(StorageFailed, match="closed"):
        numbers(database)


def test_free_bytes_of_a_missing_path(tmp_path: Path) -> None:
    """An error message never fails for want of a number."""
    assert "free bytes unknown" == free_bytes(tmp_path / "missing")
