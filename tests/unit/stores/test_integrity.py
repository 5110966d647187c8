"""The ledger's check finds what is broken on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stores import SESSION, TENANT, row, session, turn

from agentmem.stores import Ledger
from agentmem.stores.integrity import problems
from agentmem.stores.schema import connect


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Return a connection to a sound ledger with two turns and a block, foreign keys off."""
    ledger = Ledger(tmp_path / "meta.sqlite")
    ledger.create_session(session(labels={"x": "1"}), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 1, turn(1), [row("a")])
    ledger.close()
    connection = connect(tmp_path / "meta.sqlite")
    connection.execute("PRAGMA foreign_keys = OFF")
    yield connection
    connection.close()


def test_sound_ledger(connection: sqlite3.Connection) -> None:
    """Nothing is found where nothing is broken."""
    assert [] == problems(connection)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("DELETE FROM sessions", "without its sessions"),
        ("DELETE FROM turns WHERE turn = 0", "has 1 turns from 1 to 1"),
        ("DELETE FROM turns WHERE turn = 1", "table refs has a row without its turns"),
        ("UPDATE labels SET value = '2'", "is filed under labels"),
        ("UPDATE labels SET tenant = 'globex'", "is filed under labels"),
        ("DELETE FROM refs", "has a row that no turn refers to"),
        ("UPDATE blocks SET tenant = 'globex'", "another tenant's session"),
    ],
)
def test_damage_is_found(connection: sqlite3.Connection, damage: str, finding: str) -> None:
    """Each broken rule is named."""
    connection.execute(damage)
    assert any(finding in problem for problem in problems(connection))
