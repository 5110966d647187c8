from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.replica import BLOCK, MAX_CONTEXT, OTHER, TENANT, Replica, chunks_of, gather_bytes, running, user
from support.sealing import result_files

from agentmem import faults
from agentmem.errors import AlreadyExists, InvalidInput, NotFound, SessionBusy, StorageFailed
from agentmem.events import TokenEvent
from agentmem.types import Fidelity, Policy, SessionFormat, ToolSpec, TurnState
from agentmem.units import MIB
from agentmem.views import SessionPatch, SessionSpec

CALLS: dict[str, Callable[[Replica], Awaitable[Any]]] = {
    "get": lambda r: r.manager.get(OTHER, "a"),
    "update": lambda r: r.manager.update(OTHER, "a", SessionPatch(pinned=True)),
    "delete": lambda r: r.manager.delete(OTHER, "a"),
    "fork": lambda r: r.manager.fork(OTHER, "a", at_turn=None, new_id="b", labels=None),
    "rollback": lambda r: r.manager.rollback(OTHER, "a", to_turn=0),
    "export": lambda r: gather_bytes(r.manager.export(OTHER, "a")),
    "watch": lambda r: anext(r.manager.watch(OTHER, "a")),
    "append": lambda r: r.manager.append(OTHER, "a", user("x"), request_id=None),
    "generate": lambda r: r.ask("a", "x", tenant=OTHER),
    "end_turn": lambda r: r.manager.end_turn(OTHER, "a", waiting_on_tool=False, eta_seconds=0.0),
    "seal": lambda r: r.manager.seal(OTHER, "a"),
    "cancel": lambda r: r.manager.cancel(OTHER, "a", "r"),
    "inspect": lambda r: r.manager.inspect(OTHER, "a"),
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("name", CALLS)
async def test_another_tenants_session_is_not_found(replica: Replica, name: str, live: bool) -> None:
    """Every method answers NotFound for a session of another tenant, in memory or not, in the words for one that never was."""
    await replica.create()
    if not live:
        await replica.restart()

    with pytest.raises(NotFound, match="session 'a' does not exist"):
        await CALLS[name](replica)
    assert 1 == (await replica.manager.get(TENANT, "a")).n_turns


async def test_one_id_in_two_tenants_is_two_sessions(replica: Replica) -> None:
    """Tenants may use the same id; neither sees nor deletes the other's session."""
    await replica.create(system="one")
    await replica.create(system="two", tenant=OTHER)
    await replica.manager.delete(OTHER, "a")

    assert "one" == (await replica.manager.get(TENANT, "a")).record.system
    assert ([], "") == await replica.manager.list(OTHER, labels={}, page_size=10, page_token="")


async def test_equal_prompts_of_two_tenants_share_nothing(replica: Replica) -> None:
    """Two tenants with one prompt have no block hash in common, and the second computes every token (invariant 9)."""
    await replica.create(system="x" * 100)
    await replica.create(system="x" * 100, tenant=OTHER)
    await replica.ask("a", "hello")
    answer = await replica.ask("a", "hello", tenant=OTHER)

    mine, theirs = replica.session().chain, replica.session(tenant=OTHER).chain
    assert mine.tokens[:100] == theirs.tokens[:100]
    assert not set(mine.hashes) & set(theirs.hashes)
    assert answer.start.context_tokens == answer.start.reuse.computed
    assert [] == await replica.manager.prefixes(TENANT, 10)


async def test_create_renders_the_prelude_as_turn_0(replica: Replica) -> None:
    """A session starts with one sealed turn that holds the system prompt; the answer says what was stored."""
    spec = SessionSpec("a", system="Be brief.", labels={"k": "v"}, ttl_seconds=60.0, pinned=True, policy=Policy(Fidelity.EXACT))
    info = await replica.manager.create(TENANT, spec)

    assert (1, True, False, False) == (info.n_turns, info.durable, info.busy, info.open_turn)
    assert info.n_tokens == len(replica.tokens()) > 0
    assert TurnState.SEALED == replica.session().turns[0].state
    assert info.record.expires_at == info.record.created_at + 60.0
    assert info.record == (await replica.manager.get(TENANT, "a")).record


async def test_create_makes_up_an_id(replica: Replica) -> None:
    """Without an id each session gets its own."""
    names = {(await replica.manager.create(TENANT, SessionSpec())).record.id for _ in range(3)}
    assert 3 == len(names)


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        (SessionSpec("a"), AlreadyExists),
        (SessionSpec("b", system="x" * MAX_CONTEXT), InvalidInput),
        (SessionSpec("b", format=SessionFormat.RAW, system="x"), InvalidInput),
        (SessionSpec("b", format=SessionFormat.RAW, tools=(ToolSpec("t", "", ""),)), InvalidInput),
        (SessionSpec("b", policy=Policy(compressor="nonsense")), InvalidInput),
        (SessionSpec("b", policy=Policy(recall="nonsense")), InvalidInput),
    ],
)
async def test_create_refuses(replica: Replica, spec: SessionSpec, error: type[Exception]) -> None:
    """A taken id, a prelude longer than the context, a prelude in a RAW session and methods that there are not are refused."""
    await replica.create()
    with pytest.raises(error):
        await replica.manager.create(TENANT, spec)
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "b")


async def test_create_and_first_use_at_once_give_one_session(replica: Replica) -> None:
    """Whoever opens a session while it is created gets the very session that create makes live, so there is one writer."""

    async def first_use() -> object:
        while True:
            try:
                return await replica.manager.table.open(TENANT, "a")
            except NotFound:
                await asyncio.sleep(0)

    _, opened = await asyncio.gather(replica.create(), first_use())
    assert replica.session() is opened


async def test_an_unknown_id_leaves_nothing_behind(replica: Replica) -> None:
    """Asking for sessions that do not exist costs no memory."""
    for i in range(5):
        with pytest.raises(NotFound):
            await replica.manager.get(TENANT, f"none-{i}")
    assert 0 == len(replica.manager.table._locks)


async def test_list_pages_live_and_stored_sessions(replica: Replica) -> None:
    """Pages cover every session once, newest first; live and stored sessions give the same numbers; labels filter."""
    for i in range(5):
        await replica.create(f"s{i}", labels={"parity": str(i % 2)})
        await replica.ask(f"s{i}", "x" * 30)
    await replica.manager.append(TENANT, "s4", user("more"), request_id=None)
    live, _ = await replica.manager.list(TENANT, labels={}, page_size=10, page_token="")
    await replica.restart()
    await replica.manager.get(TENANT, "s2")

    found, token = [], ""
    while True:
        page, token = await replica.manager.list(TENANT, labels={}, page_size=2, page_token=token)
        found += page
        if not token:
            break
    assert ["s4", "s3", "s2", "s1", "s0"] == [info.record.id for info in found]
    assert [(i.n_turns, i.n_tokens, i.disk_bytes, i.open_turn) for i in live] == [
        (i.n_turns, i.n_tokens, i.disk_bytes, i.open_turn) for i in found
    ]
    assert found[0].open_turn
    assert found[0].disk_bytes > 0
    odd, _ = await replica.manager.list(TENANT, labels={"parity": "1"}, page_size=10, page_token="")
    assert ["s3", "s1"] == [info.record.id for info in odd]
    with pytest.raises(InvalidInput):
        await replica.manager.list(TENANT, labels={}, page_size=10, page_token="forged")


async def test_update_changes_what_is_named_and_survives(replica: Replica) -> None:
    """None leaves a field; the rest is changed in memory and in the ledger; ttl 0 lifts the time to live."""
    await replica.create(labels={"a": "1"}, ttl_seconds=50.0)
    await replica.ask("a", "x" * 20)
    pinned = await replica.manager.update(TENANT, "a", SessionPatch(pinned=True, policy=Policy(Fidelity.EXACT)))
    changed = await replica.manager.update(TENANT, "a", SessionPatch(labels={"b": "2"}, ttl_seconds=0.0))

    assert ({"a": "1"}, 50.0, True) == (pinned.record.labels, pinned.record.ttl_seconds, pinned.record.pinned)
    assert ({"b": "2"}, 0.0, 0.0, True) == (
        changed.record.labels,
        changed.record.ttl_seconds,
        changed.record.expires_at,
        changed.record.pinned,
    )
    assert changed.disk_bytes > 0
    assert changed.device_bytes == changed.device_tokens * replica.core.engine.pool.shape.row_bytes > 0
    await replica.restart()
    assert changed.record == (await replica.manager.get(TENANT, "a")).record


@pytest.mark.parametrize("policy", [Policy(compressor="keydif"), Policy(recall="lhs")])
async def test_update_refuses_an_unknown_method(replica: Replica, policy: Policy) -> None:
    """The message names the methods there are and the nearest, and nothing changes."""
    before = await replica.create()
    with pytest.raises(InvalidInput, match=r"known: .*did you mean '(keydiff|lsh)'"):
        await replica.manager.update(TENANT, "a", SessionPatch(policy=policy, pinned=True))
    assert before.record == (await replica.manager.get(TENANT, "a")).record


async def test_delete_removes_all_but_what_is_shared(replica: Replica) -> None:
    """The report counts turns and blocks; a fork keeps the shared blocks; after the last session no file is left."""
    await replica.create(system="x" * 60)
    await replica.ask("a", "y" * 60)
    await replica.manager.fork(TENANT, "a", at_turn=0, new_id="b", labels=None)
    n_blocks, shared = len(replica.session().chain.hashes), len(replica.session("b").chain.hashes)
    for name in "ab":
        await replica.settle(name)  # no seal job holds a block
    report = await replica.manager.delete(TENANT, "a")

    assert (2, n_blocks - shared, shared) == (report.turns, report.blocks_erased, report.blocks_shared)
    assert report.bytes_erased > 0
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")
    assert {replica.block_file("b", index) for index in range(shared)} == {*replica.state.rglob("*.safetensors")} - {*result_files(replica)}
    await replica.manager.delete(TENANT, "b")
    assert [] == list(replica.state.rglob("*.safetensors"))
    stats = replica.manager.stats()
    assert (0, 0, 0) == (stats.sessions, stats.blocks, stats.sessions_live)
    await replica.spill()
    assert 0 == replica.manager.stats().kv_bytes_used


async def test_delete_of_a_stored_session_counts_the_same(replica: Replica) -> None:
    """A session that is not in memory is deleted without being loaded."""
    await replica.create(system="x" * 60)
    await replica.ask("a", "y" * 60)
    n_blocks = len(replica.session().chain.hashes)
    await replica.restart()
    report = await replica.manager.delete(TENANT, "a")

    assert (2, n_blocks, 0) == (report.turns, report.blocks_erased, report.blocks_shared)
    await replica.create()


async def test_delete_ends_a_running_reply(replica: Replica) -> None:
    """The reply of a session that is deleted ends as cancelled; the session is gone."""
    await replica.create()
    events = replica.events("a", user("x"), 600, request_id="r", ignore_eos=True)
    while not isinstance(await anext(events), TokenEvent):  # a reply without a token would be undone, not ended
        pass
    report = await replica.manager.delete(TENANT, "a")
    rest = [event async for event in events]

    assert 2 == report.turns
    assert "cancelled" == rest[-1].finish_reason
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")


async def test_a_delete_that_the_disk_refuses_changes_nothing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger refuses, the session stays usable: its writer's place is free again."""
    await replica.create()

    def refuse(*_: object) -> None:
        raise StorageFailed("full")

    with monkeypatch.context() as patched:
        patched.setattr(replica.core.ledger, "delete_session", refuse)
        with pytest.raises(StorageFailed):
            await replica.manager.delete(TENANT, "a")
    assert (await replica.ask("a", "x")).finish.durable


async def test_end_turn_seals_the_open_turn(replica: Replica) -> None:
    """Appended messages form one open turn until it is ended; what comes then is the next turn."""
    await replica.create()
    await replica.manager.append(TENANT, "a", user("one"), request_id=None)
    opened = await replica.manager.append(TENANT, "a", user("two"), request_id=None)
    info = await replica.manager.end_turn(TENANT, "a", waiting_on_tool=True, eta_seconds=1.0)
    following = await replica.manager.append(TENANT, "a", user("three"), request_id=None)

    assert (1, False, 2) == (opened.turn_index, info.open_turn, following.turn_index)
    assert ["one", "two"] == [message.content for message in replica.session().turns[1].messages]
    ended = await replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0)
    assert ended == await replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0)


async def test_seal_says_when_the_disk_refuses(replica: Replica) -> None:
    """Seal returns a durable session or raises StorageFailed; later it succeeds."""
    await replica.create()
    faults.arm("ledger.before_commit", "enospc")
    await replica.manager.append(TENANT, "a", user("one"), request_id=None)
    with pytest.raises(StorageFailed):
        await replica.manager.seal(TENANT, "a")
    faults.disarm()

    assert (await replica.manager.seal(TENANT, "a")).durable


async def test_inspect_counts_blocks_where_they_end(replica: Replica) -> None:
    """Each turn shows the blocks that it completes, all on disk once durable, and the session's numbers add up."""
    await replica.create(system="x" * 50)
    await replica.ask("a", "y" * 50)
    await replica.ask("a", "z" * 20)
    info, turns = await replica.manager.inspect(TENANT, "a")

    assert info.n_tokens == sum(turn.n_tokens for turn in turns)
    assert info.n_tokens // BLOCK == sum(turn.n_blocks for turn in turns)
    assert [turn.n_blocks for turn in turns] == [turn.blocks_on_disk for turn in turns]
    assert turns[0].n_blocks > 0
    assert info.disk_bytes == sum(turn.disk_bytes for turn in turns) > 0
    assert all(turn.durable for turn in turns)


async def test_inspect_sees_the_host_tier(tmp_path: Path) -> None:
    """The blocks that host memory holds count for the turn that completes them."""
    async with running(tmp_path / "state", memory__host_bytes=MIB) as replica:
        await replica.create(system="x" * 50)
        await replica.ask("a", "y" * 50)
        _, turns = await replica.manager.inspect(TENANT, "a")
        assert replica.core.archive.stats().host_used == sum(turn.host_bytes for turn in turns) > 0


async def test_writers_exclude_each_other(replica: Replica) -> None:
    """While a reply is under way every other writer is told who writes; afterwards it may (invariant 10)."""
    await replica.create()
    events = replica.events("a", user("x"), 600, ignore_eos=True)
    await anext(events)
    for call in (
        lambda: replica.ask("a", "y"),
        lambda: replica.manager.append(TENANT, "a", user("y"), request_id=None),
        lambda: replica.manager.rollback(TENANT, "a", to_turn=0),
        lambda: replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0),
    ):
        with pytest.raises(SessionBusy, match="Generate is writing"):
            await call()
    assert (await replica.manager.get(TENANT, "a")).busy
    await events.aclose()
    await replica.manager.generator.tasks.wait(None)

    assert (await replica.ask("a", "y")).finish.durable


async def test_import_refuses_a_taken_id(replica: Replica) -> None:
    """An import under an id that exists raises AlreadyExists and leaves that session alone."""
    await replica.create()
    data = await gather_bytes(replica.manager.export(TENANT, "a"))
    with pytest.raises(AlreadyExists):
        await replica.manager.import_session(TENANT, chunks_of(data), new_id=None)
    assert (await replica.manager.import_session(TENANT, chunks_of(data), new_id="b")).record.parent is None
