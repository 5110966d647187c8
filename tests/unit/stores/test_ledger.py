"""Sessions and turns in the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.stores import OTHER, SESSION, TENANT, digest, row, session, turn

from agentmem import faults
from agentmem.errors import AlreadyExists, InvalidInput, NotFound, StaleOwner, StorageFailed
from agentmem.stores import Ledger, LedgerStats
from agentmem.stores.records import SessionSize
from agentmem.types import Fingerprint, SessionId, ToolSpec

NOW = 1000.0


class Clock:
    """A clock that stands still until it is set."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock at NOW."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """Return a ledger that must be sound when the test ends."""
    ledger = Ledger(tmp_path / "meta.sqlite", clock=clock)
    yield ledger
    assert [] == ledger.integrity()
    ledger.close()


def test_created_session_is_found(ledger: Ledger) -> None:
    """A session comes back as it was created, with its turns."""
    record = session(system="be brief", tools=(ToolSpec("ls", "", "{}"),), labels={"team": "a"}, created_at=3.5)
    ledger.create_session(record, [turn(0), turn(1)])
    assert record == ledger.get_session(TENANT, SESSION)
    assert [turn(0), turn(1)] == ledger.turns(TENANT, SESSION)


def test_id_is_taken_once_per_tenant(ledger: Ledger) -> None:
    """The same id again is AlreadyExists; another tenant may use it and sees its own session."""
    ledger.create_session(session(system="ours"), [turn(0)])
    with pytest.raises(AlreadyExists, match="'s1' exists"):
        ledger.create_session(session(), [])
    ledger.create_session(session(tenant=OTHER, system="theirs"), [])
    assert ["ours", "theirs"] == [ledger.get_session(tenant, SESSION).system for tenant in (TENANT, OTHER)]
    assert [] == ledger.turns(OTHER, SESSION)


def test_first_turns_are_numbered_from_zero(ledger: Ledger) -> None:
    """Turns with gaps are refused and nothing is created."""
    with pytest.raises(InvalidInput, match=r"numbered \[1\]"):
        ledger.create_session(session(), [turn(1)])
    assert 0 == ledger.stats().sessions


def test_lone_surrogate_creates_nothing(ledger: Ledger) -> None:
    """A system prompt that UTF-8 cannot hold is refused."""
    with pytest.raises(InvalidInput, match="surrogate"):
        ledger.create_session(session(system="\ud800"), [])
    assert 0 == ledger.stats().sessions


def test_another_tenant_finds_nothing(ledger: Ledger) -> None:
    """Every call that names another tenant's session is NotFound with the same words as for one that never was."""
    ledger.create_session(session(), [turn(0)])
    calls = [
        lambda name: ledger.get_session(OTHER, name),
        lambda name: ledger.update_session(session(name, tenant=OTHER)),
        lambda name: ledger.delete_session(OTHER, name),
        lambda name: ledger.turns(OTHER, name),
        lambda name: ledger.put_turn(OTHER, name, 1, turn(1), []),
        lambda name: ledger.fork_session(name, session("fork", tenant=OTHER), 0),
        lambda name: ledger.truncate(OTHER, name, 1, 0),
        lambda name: ledger.session_blocks(OTHER, name),
        lambda name: ledger.session_bytes(OTHER, name),
    ]
    for call in calls:
        for name in (SESSION, SessionId("never")):
            with pytest.raises(NotFound, match=f"^session '{name}' does not exist$"):
                call(name)
    assert [turn(0)] == ledger.turns(TENANT, SESSION)


def test_expired_session_is_not_found(ledger: Ledger, clock: Clock) -> None:
    """At its end a session is NotFound and not listed; pinned, it stays."""
    ledger.create_session(session("short", expires_at=NOW + 1), [])
    ledger.create_session(session("pinned", expires_at=NOW + 1, pinned=True), [])
    ledger.create_session(session("endless"), [])
    assert [] == ledger.expired(NOW, 10)
    clock.now = NOW + 1
    with pytest.raises(NotFound):
        ledger.get_session(TENANT, SessionId("short"))
    listed = ledger.list_sessions(TENANT, labels={}, page_size=10, page_token="").records
    assert ["endless", "pinned"] == [record.id for record in listed]
    assert [(TENANT, "short")] == ledger.expired(NOW + 1, 10)
    assert [] == ledger.delete_session(TENANT, SessionId("short"))


def test_expired_gives_the_longest_expired_first(ledger: Ledger) -> None:
    """The reaper's batch is bounded and starts with the oldest."""
    for n in (3, 1, 2):
        ledger.create_session(session(str(n), expires_at=float(n)), [])
    assert [(TENANT, "1"), (TENANT, "2")] == ledger.expired(NOW, 2)


def test_update_replaces_what_may_change(ledger: Ledger) -> None:
    """TTL, pin, policy, labels, fingerprint, epoch and times change; id, system and creation stay."""
    ledger.create_session(session(system="old", created_at=1.0, labels={"a": "1"}), [])
    changes = {"ttl_seconds": 5.0, "pinned": True, "labels": {"b": "2"}, "epoch": 2, "updated_at": 7.0, "expires_at": 2000.0}
    changed = replace(session(system="new", created_at=9.0, **changes), fingerprint=Fingerprint("model-2"))
    ledger.update_session(changed)
    assert replace(changed, system="old", created_at=1.0) == ledger.get_session(TENANT, SESSION)


def test_stale_owner_is_refused(ledger: Ledger) -> None:
    """Once a newer epoch has written, every write of an older one is StaleOwner and changes nothing."""
    ledger.create_session(session(), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 3, turn(1), [])
    writes = [
        lambda: ledger.update_session(session(epoch=2)),
        lambda: ledger.put_turn(TENANT, SESSION, 2, turn(2), []),
        lambda: ledger.truncate(TENANT, SESSION, 2, 0),
    ]
    for write in writes:
        with pytest.raises(StaleOwner, match=r"epoch 3; this write carries epoch 2"):
            write()
    assert [turn(0), turn(1)] == ledger.turns(TENANT, SESSION)


def test_put_turn_adds_and_replaces(ledger: Ledger) -> None:
    """A turn is added after the last one or replaces the one with its index; its blocks stay with it."""
    ledger.create_session(session(), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 1, turn(1, "first"), [row("a")])
    ledger.put_turn(TENANT, SESSION, 1, turn(1, "second"), [row("b", 4)])
    assert [turn(0), turn(1, "second")] == ledger.turns(TENANT, SESSION)
    assert [(1, digest("a"), 10), (1, digest("b"), 10)] == ledger.session_blocks(TENANT, SESSION)


@pytest.mark.parametrize("index", [-1, 2])
def test_put_turn_leaves_no_gap(ledger: Ledger, index: int) -> None:
    """A turn beyond the next one, or a negative one, is refused with the range."""
    ledger.create_session(session(), [turn(0)])
    with pytest.raises(InvalidInput, match="takes turns 0 to 1"):
        ledger.put_turn(TENANT, SESSION, 1, turn(index), [])


def test_put_turn_extends_the_life(ledger: Ledger) -> None:
    """A write sets updated_at, and the end to now plus the TTL; without a TTL there is no end."""
    ledger.create_session(session(ttl_seconds=60.0, expires_at=NOW + 1), [])
    ledger.create_session(session("endless"), [])
    for name in (SESSION, SessionId("endless")):
        ledger.put_turn(TENANT, name, 1, turn(0), [])
    found = [ledger.get_session(TENANT, name) for name in (SESSION, SessionId("endless"))]
    assert [(NOW, NOW + 60), (NOW, 0)] == [(record.updated_at, record.expires_at) for record in found]


def test_put_turn_takes_no_foreign_block(ledger: Ledger) -> None:
    """A block row of another tenant is refused."""
    ledger.create_session(session(), [])
    with pytest.raises(InvalidInput, match="another tenant"):
        ledger.put_turn(TENANT, SESSION, 1, turn(0), [row("a", tenant=OTHER)])


def test_failure_before_commit_changes_nothing(ledger: Ledger) -> None:
    """A disk that is full at the commit is StorageFailed; neither turn nor rows are there, and the next try works."""
    ledger.create_session(session(), [turn(0)])
    faults.arm("ledger.before_commit", "enospc", 1)
    with pytest.raises(StorageFailed, match=r"meta\.sqlite refused: .*No space left.*bytes free"):
        ledger.put_turn(TENANT, SESSION, 1, turn(1), [row("a")])
    assert LedgerStats(1, 1, 0, 0) == ledger.stats()
    ledger.put_turn(TENANT, SESSION, 1, turn(1), [row("a")])
    assert LedgerStats(1, 2, 1, 10) == ledger.stats()


def test_committed_turn_is_in_the_file(ledger: Ledger, tmp_path: Path) -> None:
    """Another connection sees a turn as soon as put_turn has returned."""
    ledger.create_session(session(), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 1, turn(1), [])
    other = Ledger(tmp_path / "meta.sqlite")
    assert [turn(0), turn(1)] == other.turns(TENANT, SESSION)
    other.close()


def test_fork_copies_turns_and_refs(ledger: Ledger) -> None:
    """A fork has the turns up to the one named, shares their blocks, and lives on its own."""
    ledger.create_session(session(), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 1, turn(1), [row("a")])
    ledger.put_turn(TENANT, SESSION, 1, turn(2), [row("b", 4)])
    fork = session("fork", parent=SESSION, parent_turn=1)
    ledger.fork_session(SESSION, fork, 1)
    assert fork == ledger.get_session(TENANT, fork.id)
    assert [turn(0), turn(1)] == ledger.turns(TENANT, fork.id)
    assert [digest("b")] == ledger.delete_session(TENANT, SESSION)
    assert [(1, digest("a"), 10)] == ledger.session_blocks(TENANT, fork.id)


@pytest.mark.parametrize("at", [-1, 1])
def test_fork_at_a_turn_that_is_not_there(ledger: Ledger, at: int) -> None:
    """The error names the turns there are; no session is made."""
    ledger.create_session(session(), [turn(0)])
    with pytest.raises(InvalidInput, match=f"turn {at} .* has turns 0 to 0"):
        ledger.fork_session(SESSION, session("fork"), at)
    assert 1 == ledger.stats().sessions


def test_fork_to_an_id_that_is_taken(ledger: Ledger) -> None:
    """A fork does not overwrite a session."""
    ledger.create_session(session(), [turn(0)])
    with pytest.raises(AlreadyExists):
        ledger.fork_session(SESSION, session(), 0)


def test_truncate_drops_turns_and_returns_free_blocks(ledger: Ledger) -> None:
    """Rollback drops the turns above and returns the blocks that no other session refers to."""
    ledger.create_session(session(), [turn(0)])
    for n, name in enumerate("abc", start=1):
        ledger.put_turn(TENANT, SESSION, 1, turn(n), [row(name)])
    ledger.fork_session(SESSION, session("fork"), 2)
    assert [digest("c")] == ledger.truncate(TENANT, SESSION, 1, 1)
    assert [turn(0), turn(1)] == ledger.turns(TENANT, SESSION)
    assert {digest("a"), digest("b")} == ledger.block_rows(map(digest, "abc"))
    assert [] == ledger.truncate(TENANT, SESSION, 1, 1)


@pytest.mark.parametrize("to", [-1, 1])
def test_truncate_to_a_turn_that_is_not_there(ledger: Ledger, to: int) -> None:
    """The error names the turns there are."""
    ledger.create_session(session(), [turn(0)])
    with pytest.raises(InvalidInput, match=f"turn {to} .* has turns 0 to 0"):
        ledger.truncate(TENANT, SESSION, 1, to)


def test_session_sizes(ledger: Ledger) -> None:
    """Sizes count turns, tokens and bytes on disk and tell whether the last turn is open; unknown and foreign sessions are left out."""
    ledger.create_session(session(), [turn(0, "ab")])
    ledger.create_session(session("closed"), [turn(0, "")])
    ledger.create_session(session("foreign", tenant=OTHER), [turn(0)])
    ledger.put_turn(TENANT, SESSION, 1, turn(1, "cde"), [row("a"), row("b")])
    names = [SESSION, SessionId("closed"), SessionId("foreign"), SessionId("never")]
    assert {
        SESSION: SessionSize(2, 5, open_turn=True, bytes=20),
        "closed": SessionSize(1, 0, open_turn=False, bytes=0),
    } == ledger.session_sizes(TENANT, names)


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    """Writers of several threads wait for each other; every turn is there."""
    names = [SessionId(f"s{n}") for n in range(4)]

    def work(name: SessionId) -> None:
        ledger.create_session(session(name), [])
        for n in range(5):
            ledger.put_turn(TENANT, name, 1, turn(n), [row(f"{name} {n}")])

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert LedgerStats(4, 20, 20, 200) == ledger.stats()
