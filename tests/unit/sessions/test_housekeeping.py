from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.replica import OTHER, TENANT, Replica, running, until, user

from agentmem import faults
from agentmem.errors import NotFound, StorageFailed
from agentmem.sessions import housekeeping
from agentmem.views import ChangeKind, SessionPatch

HOUR = 3600.0


async def reap(replica: Replica, later: float) -> int:
    return await replica.core.housekeeper.reap(time.time() + later)


@pytest.mark.parametrize("live", [True, False])
async def test_expired_sessions_go(replica: Replica, live: bool) -> None:
    """A session whose time has passed is deleted with its blocks, in memory or not; others stay."""
    await replica.create(system="x" * 60, ttl_seconds=HOUR)
    await replica.ask("a", "one")
    await replica.create("later", ttl_seconds=3 * HOUR)
    await replica.create("never", tenant=OTHER)
    if not live:
        await replica.restart()

    assert 0 == await reap(replica, HOUR / 2)
    assert 1 == await reap(replica, 2 * HOUR)
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")
    assert 2 == replica.manager.stats().sessions
    await replica.manager.sealing.under_way.wait(None)  # a job keeps what it reads until it ends
    assert [] == list(replica.state.rglob("*.safetensors"))


async def test_an_expired_session_is_not_found_before_it_is_reaped(replica: Replica) -> None:
    """Nothing can be done with a session after its time, though nobody has deleted it yet."""
    await replica.create(ttl_seconds=0.01)
    session = replica.session()
    await until(lambda: time.time() > session.record.expires_at)
    with pytest.raises(NotFound):
        await replica.ask("a", "x")
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")
    assert 1 == await reap(replica, 0.0)


async def test_pinned_sessions_never_expire(replica: Replica) -> None:
    """A pin outlives the time to live; without it the session goes."""
    await replica.create(ttl_seconds=HOUR, pinned=True)
    assert 0 == await reap(replica, 2 * HOUR)
    await replica.manager.update(TENANT, "a", SessionPatch(pinned=False))
    assert 1 == await reap(replica, 2 * HOUR)


async def test_use_extends_the_time_to_live(replica: Replica) -> None:
    """A turn counts from its end, in memory as in the ledger."""
    created = (await replica.create(ttl_seconds=HOUR)).record.expires_at
    await replica.ask("a", "one")
    extended = (await replica.manager.get(TENANT, "a")).record.expires_at
    assert extended > created
    assert abs(extended - replica.core.ledger.get_session(TENANT, "a").expires_at) < 1.0


async def test_busy_sessions_are_not_reaped(replica: Replica) -> None:
    """A session that is being written to lives, whatever its time."""
    await replica.create(ttl_seconds=HOUR)
    events = replica.events("a", user("x"), 300, ignore_eos=True)
    await anext(events)
    assert 0 == await reap(replica, 2 * HOUR)
    await events.aclose()
    await replica.manager.generator.tasks.wait(None)
    assert 1 == await reap(replica, 2 * HOUR)


async def test_a_session_used_while_it_is_looked_up_lives(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a session's time was extended after the reaper saw it, it is spared."""
    await replica.create(ttl_seconds=HOUR)
    monkeypatch.setattr(replica.core.ledger, "expired", lambda *_: [(TENANT, "a")])
    assert 0 == await reap(replica, HOUR / 2)
    assert 1 == (await replica.manager.get(TENANT, "a")).n_turns


async def test_watchers_hear_that_a_session_expired(replica: Replica) -> None:
    """The last change of an expired session is EXPIRED."""
    await replica.create(ttl_seconds=HOUR)
    changes = replica.manager.watch(TENANT, "a")
    await anext(changes)
    await reap(replica, 2 * HOUR)
    assert [ChangeKind.EXPIRED] == [change.kind async for change in changes]


async def test_a_ledger_that_refuses_does_not_stop_the_reaper(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a failed look-up nor a failed deletion raises; the next round succeeds."""
    await replica.create(ttl_seconds=HOUR)

    def refuse(*_: object) -> None:
        raise StorageFailed("disk")

    for method in ("expired", "delete_session"):
        with monkeypatch.context() as patched:
            patched.setattr(replica.core.ledger, method, refuse)
            assert 0 == await reap(replica, 2 * HOUR)
    assert 1 == await reap(replica, 2 * HOUR)


async def test_reaping_forgets_old_replies(replica: Replica) -> None:
    """Replies that nobody came back for leave memory with the reaper's rounds."""
    await replica.create()
    await replica.ask("a", "one", request_id="r")
    replica.manager.generator.resume_seconds = -1.0
    await reap(replica, 0.0)
    assert [] == list(replica.session().replies)


async def test_the_clock_reaps_heals_and_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left alone, a replica deletes expired sessions, makes durable what was not, removes orphans, and survives errors."""
    monkeypatch.setattr(housekeeping, "HEAL_SECONDS", 0.01)
    orphan = tmp_path / "state" / "blocks" / "ab" / f"{'ab' * 32}.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x")
    async with running(tmp_path / "state", storage__reap_seconds=0.01) as replica:
        await replica.create()
        faults.arm("ledger.before_commit", "enospc")
        await replica.ask("a", "one")
        await replica.create("b", ttl_seconds=0.02)
        monkeypatch.setattr(replica.core.housekeeper, "reap", _broken_once(replica))
        faults.disarm()
        await until(lambda: not replica.session().unsaved)
        await until(lambda: replica.manager.table.live(TENANT, "b") is None)
        await until(lambda: not orphan.exists())


def _broken_once(replica: Replica) -> object:
    reap, broken = replica.core.housekeeper.reap, [ZeroDivisionError]

    async def first_broken(now: float) -> int:
        if broken:
            raise broken.pop()
        return await reap(now)

    return first_broken
