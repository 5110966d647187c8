"""The ledger forgets: content goes from its pages, entries stay, blocks that nobody needs any more are named."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import OTHER, SESSION, TENANT, digest, row, session, turn

from agentmem import faults
from agentmem.errors import InvalidInput, NotFound, StaleOwner
from agentmem.stores import Ledger
from agentmem.types import Forgotten, Message

SECRET = "swordfish " * 700  # longer than a page
ENTRY = Forgotten(0, "user", len(SECRET), "digest", 2.5)
LEFT = replace(turn(1, ""), messages=(Message("user", ""),), forgotten=(ENTRY,))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "meta.sqlite")
    ledger.create_session(session(), [turn(0), turn(1, SECRET)])
    ledger.put_turn(TENANT, SESSION, 1, turn(2), [row("a"), row("b"), row("c")])
    yield ledger
    ledger.close()


def test_what_is_left(ledger: Ledger, tmp_path: Path) -> None:
    """The turn is replaced, its entry is there, no file of the database holds what it said, and free blocks lose their rows."""
    ledger.fork_session(SESSION, session("fork"), 0)
    ledger.put_turn(TENANT, session("fork").id, 1, turn(1), [row("b")])
    gone = ledger.forget(TENANT, SESSION, 1, [LEFT], {digest("a")})

    assert [digest("c")] == gone
    assert [turn(0), LEFT, turn(2)] == ledger.turns(TENANT, SESSION)
    assert [digest("a")] == [name for _, name, _ in ledger.session_blocks(TENANT, SESSION)]
    assert {digest("a"), digest("b")} == ledger.block_rows(map(digest, "abc"))
    assert not [path for path in tmp_path.iterdir() if b"swordfish" in path.read_bytes()]
    assert [] == ledger.integrity()


def test_entries_go_with_their_turn(ledger: Ledger, tmp_path: Path) -> None:
    """Rolled back or deleted turns leave no entry; a turn that is put again keeps its own."""
    ledger.forget(TENANT, SESSION, 1, [LEFT], set())
    ledger.put_turn(TENANT, SESSION, 1, LEFT, [])
    ledger.fork_session(SESSION, session("fork"), 2)
    ledger.truncate(TENANT, SESSION, 1, 0)
    ledger.delete_session(TENANT, session("fork").id)
    with sqlite3.connect(tmp_path / "meta.sqlite") as raw:
        assert 0 == raw.execute("SELECT count(*) FROM forgotten").fetchone()[0]
    raw.close()


def test_it_refuses(ledger: Ledger) -> None:
    """Another tenant, an older epoch and a turn that is not there change nothing."""
    with pytest.raises(NotFound):
        ledger.forget(OTHER, SESSION, 1, [LEFT], set())
    with pytest.raises(StaleOwner):
        ledger.forget(TENANT, SESSION, 0, [LEFT], set())
    with pytest.raises(InvalidInput, match="turn 9 does not exist"):
        ledger.forget(TENANT, SESSION, 1, [LEFT, replace(LEFT, index=9)], set())
    assert [turn(0), turn(1, SECRET), turn(2)] == ledger.turns(TENANT, SESSION)
    assert 3 == len(ledger.session_blocks(TENANT, SESSION))


@pytest.mark.parametrize(("point", "kept"), [("ledger.before_commit", True), ("ledger.after_commit", False)])
def test_all_or_nothing(ledger: Ledger, point: str, *, kept: bool) -> None:
    """What breaks before the commit leaves turns and refs as they were; what breaks after it leaves them forgotten."""
    faults.arm(point, "error", 1)
    try:
        with pytest.raises(RuntimeError):
            ledger.forget(TENANT, SESSION, 1, [LEFT], set())
    finally:
        faults.disarm()
    assert kept is (ledger.turns(TENANT, SESSION)[1] == turn(1, SECRET))
    assert (3 if kept else 0) == len(ledger.session_blocks(TENANT, SESSION))


def test_a_reader_in_the_way_delays_the_log_alone(ledger: Ledger, tmp_path: Path) -> None:
    """Somebody who reads the database meanwhile keeps its log from being emptied, and nothing else: forgotten it is."""
    reader = sqlite3.connect(tmp_path / "meta.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM turns").fetchall()
    ledger.forget(TENANT, SESSION, 1, [LEFT], set())
    reader.close()
    assert LEFT == ledger.turns(TENANT, SESSION)[1]
