from __future__ import annotations

import asyncio

import pytest
from support.replica import BLOCK, TENANT, Replica, user

from agentmem import faults
from agentmem.errors import SessionBusy, StaleOwner, StorageFailed
from agentmem.types import MissReason
from agentmem.views import ChangeKind

SYSTEM = "s" * 60
POINTS = ("blocks.write", "ledger.before_commit")


@pytest.mark.parametrize("point", POINTS)
async def test_a_full_disk_delays_durability_only(replica: Replica, point: str) -> None:
    """With no room the reply comes with durable False and why; when there is room the turn becomes durable and survives."""
    await replica.create(system=SYSTEM)
    faults.arm(point, "enospc")
    first = await replica.ask("a", "first")
    second = await replica.ask("a", "second")

    assert (False, False) == (first.finish.durable, second.finish.durable)
    assert "No space left" in first.finish.detail
    assert not (await replica.manager.get(TENANT, "a")).durable
    assert [True, False, False] == [turn.durable for turn in (await replica.manager.inspect(TENANT, "a"))[1]]
    await replica.manager.sealer.heal()
    assert not (await replica.manager.get(TENANT, "a")).durable
    faults.disarm()
    await replica.manager.sealer.heal()

    assert (await replica.manager.get(TENANT, "a")).durable
    assert {} == replica.manager.sealer.unsaved
    await replica.check()
    tokens = replica.tokens()
    await replica.restart()
    answer = await replica.ask("a", "third")
    assert tokens == replica.tokens()[: len(tokens)]
    assert len(tokens) // BLOCK * BLOCK == answer.start.reuse.disk
    assert MissReason.PARTIAL_BLOCK == answer.start.reuse.reason


async def test_turns_survive_when_only_blocks_do_not_fit(replica: Replica) -> None:
    """Without room for blocks the ledger still gets the turns, so that a crash costs time, not content."""
    await replica.create(system=SYSTEM)
    faults.arm("blocks.write", "enospc")
    await replica.ask("a", "first")
    await replica.ask("a", "second")
    tokens = replica.tokens()
    await replica.restart()
    faults.disarm()

    assert 3 == (await replica.manager.get(TENANT, "a")).n_turns
    assert tokens == replica.tokens()


async def test_what_is_not_durable_is_not_forked_or_rolled_back(replica: Replica) -> None:
    """A fork or rollback of turns that are not durable is refused with StorageFailed; a fork of the durable ones works."""
    await replica.create()
    await replica.ask("a", "first")
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "second")
    with pytest.raises(StorageFailed, match="not durable"):
        await replica.manager.fork(TENANT, "a", at_turn=2, new_id="b", labels=None)
    with pytest.raises(StorageFailed, match="not durable"):
        await replica.manager.rollback(TENANT, "a", to_turn=1)
    assert 3 == (await replica.manager.get(TENANT, "a")).n_turns
    faults.disarm()

    fork = await replica.manager.fork(TENANT, "a", at_turn=None, new_id="b", labels=None)
    assert (1, 2) == (fork.record.parent_turn, fork.n_turns)
    assert 2 == (await replica.manager.rollback(TENANT, "a", to_turn=1)).n_turns
    assert (await replica.manager.get(TENANT, "a")).durable


async def test_watchers_hear_of_durability(replica: Replica) -> None:
    """When a turn becomes durable after all, watchers are told once, with a durable session."""
    await replica.create()
    changes = replica.manager.watch(TENANT, "a")
    await anext(changes)
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "first")
    faults.disarm()
    await replica.manager.sealer.heal()
    seen = [await anext(changes) for _ in range(3)]

    assert [ChangeKind.GENERATING, ChangeKind.GENERATED, ChangeKind.DURABLE] == [change.kind for change in seen]
    assert [False, True] == [change.info.durable for change in seen[1:]]
    await changes.aclose()


async def test_healing_leaves_writers_alone(replica: Replica) -> None:
    """A session with a running reply is not healed now: its reply commits what is missing when it ends."""
    await replica.create()
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "first")
    faults.disarm()
    events = replica.events("a", user("second"), 300, ignore_eos=True)
    await anext(events)
    await replica.manager.sealer.heal()
    assert not (await replica.manager.get(TENANT, "a")).durable
    await events.aclose()
    await replica.manager.generator.tasks.wait(None)

    assert (await replica.manager.get(TENANT, "a")).durable


async def test_healing_forgets_deleted_sessions(replica: Replica) -> None:
    """A session that is deleted before it became durable needs no healing."""
    await replica.create()
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "first")
    faults.disarm()
    await replica.manager.delete(TENANT, "a")
    await replica.manager.sealer.heal()
    assert {} == replica.manager.sealer.unsaved


async def test_healing_survives_a_stale_owner(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that somebody else has written to is given up, and the others are healed all the same."""
    await replica.create()
    await replica.create("b")
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "first")
    await replica.ask("b", "first")
    faults.disarm()
    commit = replica.core.archive.commit

    def stale_for_a(tenant: object, name: str, *rest: object) -> object:
        if name == "a":
            raise StaleOwner("a newer epoch")
        return commit(tenant, name, *rest)

    monkeypatch.setattr(replica.core.archive, "commit", stale_for_a)
    await replica.manager.sealer.heal()
    await replica.manager.sealer.heal()
    assert {} == replica.manager.sealer.unsaved
    assert (await replica.manager.get(TENANT, "b")).durable
    assert 1 == (await replica.manager.get(TENANT, "a")).n_turns


async def test_blocks_spilled_before_they_were_written_are_written_when_computed_again(replica: Replica) -> None:
    """When K and V leave the device before the disk had room, the turns heal alone and the blocks follow with the next reply."""
    await replica.create(system=SYSTEM)
    faults.arm("blocks.write", "enospc")
    await replica.ask("a", "first")
    await replica.settle()  # what works in the background has tried too
    await replica.spill()
    faults.disarm()
    await replica.manager.sealer.heal()
    info = await replica.manager.get(TENANT, "a")
    assert (True, 0) == (info.durable, info.disk_bytes)

    await replica.ask("a", "second")
    turns = (await replica.manager.inspect(TENANT, "a"))[1]
    assert [turn.n_blocks for turn in turns] == [turn.blocks_on_disk for turn in turns]


async def test_a_session_is_busy_while_it_heals(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Healing is a writer like any other."""
    await replica.create()
    faults.arm("ledger.before_commit", "enospc")
    await replica.ask("a", "first")
    faults.disarm()
    go = asyncio.Event()
    run = replica.core.executor.run

    async def gated(job: object) -> object:
        await go.wait()
        return await run(job)

    monkeypatch.setattr(replica.core.executor, "run", gated)
    healing = asyncio.ensure_future(replica.manager.sealer.heal())
    await asyncio.sleep(0)
    with pytest.raises(SessionBusy, match="healing is writing"):
        await replica.ask("a", "second")
    go.set()
    await healing
    assert (await replica.ask("a", "second")).finish.durable
