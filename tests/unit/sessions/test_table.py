from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.replica import OTHER, TENANT, Replica, user

from agentmem import faults
from agentmem.errors import AlreadyExists, Cancelled, NotFound, SessionBusy
from agentmem.sessions import table as table_module


async def test_loading_at_once_gives_one_session(replica: Replica) -> None:
    """Calls that open a stored session at the same time get the same object."""
    await replica.create()
    await replica.restart()
    table = replica.manager.table
    opened = await asyncio.gather(*(table.open(TENANT, "a") for _ in range(5)))
    assert 1 == len({id(session) for session in opened})
    assert 0 == len(table._locks)


async def test_roots_belong_to_tenant_and_secret(replica: Replica) -> None:
    """The chain root depends on the tenant and on the server's secret, so nobody can make another tenant's hashes."""
    table = replica.manager.table
    first = table.root_of(TENANT)
    assert first == table.root_of(TENANT)
    assert first != table.root_of(OTHER)
    table._secret = b"another"
    assert first != table.root_of(TENANT)


async def test_idle_sessions_are_forgotten(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit the longest unused leave memory, but none that is written to, watched or not durable; all come back."""
    monkeypatch.setattr(table_module, "MAX_LIVE", 1)
    for name in "abcd":
        await replica.create(name)
    await replica.ask("a", "x")
    await replica.create("watched")
    changes = replica.manager.watch(TENANT, "watched")
    await anext(changes)
    await replica.create("busy")
    events = replica.events("busy", user("x"), 300, ignore_eos=True)
    await anext(events)
    faults.arm("ledger.before_commit", "enospc")
    await replica.create("unsaved")
    await replica.ask("unsaved", "x")
    faults.disarm()
    for name in "abcd":
        await replica.manager.get(TENANT, name)
        assert replica.manager.table.live(TENANT, name) is not None

    live = {session.record.id for session in replica.manager.table}
    assert {"watched", "busy", "unsaved"} <= live
    assert len(live) < 7
    assert 2 == (await replica.manager.get(TENANT, "a")).n_turns
    assert (await replica.ask("a", "y")).finish.durable
    await changes.aclose()
    await events.aclose()
    await replica.manager.generator.tasks.wait(None)
    await replica.manager.sealer.heal()


async def test_a_session_deleted_while_it_is_opened(replica: Replica) -> None:
    """Opening, using and deleting one session at once gives the documented errors only, and ends with what the ledger has."""
    for _ in range(10):
        with contextlib.suppress(AlreadyExists):  # a reply that was just being accepted may have kept it from being deleted
            await replica.create()
        results = await asyncio.gather(
            replica.manager.delete(TENANT, "a"),
            replica.manager.get(TENANT, "a"),
            replica.ask("a", "x", 1),
            replica.manager.delete(TENANT, "a"),
            return_exceptions=True,
        )
        problems = {type(each) for each in results if isinstance(each, Exception)}
        assert problems <= {NotFound, SessionBusy, Cancelled}
        await replica.manager.generator.tasks.wait(None)
        await replica.check()
    with contextlib.suppress(NotFound):
        await replica.manager.delete(TENANT, "a")
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")
