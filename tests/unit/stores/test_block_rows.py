"""Block rows: who is promised, who is referred to, who goes first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.stores import SESSION, TENANT, digest, row, session, turn

from agentmem.stores import Ledger, block_rows
from agentmem.stores.schema import connect
from agentmem.types import SessionId


class Clock:
    """A clock that each reading moves on by a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Return a ledger with one session and its prelude; it must be sound when the test ends."""
    ledger = Ledger(tmp_path / "meta.sqlite", clock=Clock())
    ledger.create_session(session(), [turn(0)])
    yield ledger
    assert [] == ledger.integrity()
    ledger.close()


def add(ledger: Ledger, name: str, *blocks: str, **fields: object) -> None:
    """Add a session of one turn whose blocks follow each other."""
    ledger.create_session(session(name, **fields), [])
    ledger.put_turn(TENANT, SessionId(name), 1, turn(0), [row(block, 4 * n) for n, block in enumerate(blocks)])


def test_row_comes_back(ledger: Ledger) -> None:
    """A committed block has a row with all that was said of it; an unknown one has none."""
    ledger.put_turn(TENANT, SESSION, 1, turn(0), [row("a", 8)])
    assert row("a", 8) == ledger.block_row(digest("a"))
    assert ledger.block_row(digest("b")) is None
    assert {digest("a")} == ledger.block_rows([digest("a"), digest("b")])


def test_dropped_row_leaves_its_ref(ledger: Ledger) -> None:
    """An evicted block has no row and no bytes, and is still referred to; a new block is not."""
    add(ledger, "one", "a", "b")
    ledger.drop_blocks([digest("a")])
    assert {digest("b")} == ledger.block_rows([digest("a"), digest("b")])
    assert [True, False] == [ledger.was_referenced(digest(name)) for name in ("a", "new")]
    assert {digest("a"), digest("b")} == ledger.referenced(map(digest, ["a", "b", "new"]))
    assert [(0, digest("a"), 0), (0, digest("b"), 10)] == ledger.session_blocks(TENANT, SessionId("one"))


def test_block_that_comes_back_has_a_row_again(ledger: Ledger) -> None:
    """A block that was evicted and stored again is promised again."""
    add(ledger, "one", "a")
    ledger.drop_blocks([digest("a")])
    ledger.put_turn(TENANT, SessionId("one"), 1, turn(0), [row("a", n_bytes=30)])
    assert 30 == ledger.session_bytes(TENANT, SessionId("one"))


def test_bytes_of_a_session(ledger: Ledger) -> None:
    """Blocks that a session shares with others count in full."""
    add(ledger, "one", "a", "b")
    add(ledger, "two", "a", "c")
    assert 20 == ledger.session_bytes(TENANT, SessionId("two"))


def test_order_of_eviction(ledger: Ledger) -> None:
    """The session that was not used for longest goes first, its deepest block before its first; a pinned one last."""
    add(ledger, "pinned", "p0", "p1", pinned=True)
    add(ledger, "old", "o0", "o1")
    add(ledger, "new", "n0", "n1")
    order = [digest(name) for name in ("o1", "o0", "n1", "n0", "p1", "p0")]
    assert order == ledger.lru_blocks(10, ())
    assert order[:3] == ledger.lru_blocks(3, ())
    assert order[2:5] == ledger.lru_blocks(3, order[:2])
    assert [] == ledger.lru_blocks(0, ())


def test_block_that_a_pinned_session_shares_goes_late(ledger: Ledger) -> None:
    """A block is as safe as the safest session that refers to it."""
    add(ledger, "pinned", "shared", pinned=True)
    add(ledger, "other", "shared", "own")
    assert [digest("own"), digest("shared")] == ledger.lru_blocks(10, ())


def test_new_turn_renews_the_whole_session(ledger: Ledger) -> None:
    """A write counts as use of all blocks before it: without them the new ones are worth nothing."""
    add(ledger, "one", "a0", "a1")
    add(ledger, "two", "b0")
    ledger.put_turn(TENANT, SessionId("one"), 1, turn(1), [])
    assert [digest(name) for name in ("b0", "a1", "a0")] == ledger.lru_blocks(10, ())


def test_touched_block_goes_later(ledger: Ledger) -> None:
    """Use moves a block to the end; a late message about earlier use does not move it back."""
    add(ledger, "one", "a")
    add(ledger, "two", "b")
    ledger.touch_blocks([digest("a")], 50.0)
    ledger.touch_blocks([digest("a"), digest("unknown")], 0.5)
    assert [digest("b"), digest("a")] == ledger.lru_blocks(10, ())


def test_eviction_order_is_read_along_an_index() -> None:
    """Finding victims neither sorts nor scans all blocks."""
    connection = connect(Path(":memory:"))
    found = connection.execute("EXPLAIN QUERY PLAN " + block_rows._IN_EVICTION_ORDER, {"pinned": 0}).fetchall()
    connection.close()
    plan = "; ".join(detail["detail"] for detail in found)
    assert "SCAN b USING COVERING INDEX blocks_by_use" in plan
    assert "TEMP B-TREE" not in plan
