from __future__ import annotations

import pytest
from support.replica import OTHER, TENANT, Replica

from agentmem.errors import NotFound, SessionBusy, StaleOwner
from agentmem.memory.hashing import Chain
from agentmem.sessions.session import WATCH_BUFFER, Session
from agentmem.types import BlockHash, Fingerprint, Message, SessionId, SessionRecord, Tail, TenantId, Turn
from agentmem.views import ChangeKind, SessionPatch


def session(*turns: Turn) -> Session:
    record = SessionRecord(SessionId("a"), TenantId("t"), Fingerprint("f"), "tok", ttl_seconds=10.0)
    tokens = [token for turn in turns for token in turn.token_ids]
    return Session(record, list(turns), Chain(BlockHash(b"r" * 32), 4, tokens), row_bytes=100)


def test_tail_follows_the_last_turn() -> None:
    """Empty without tokens, closed after a prelude or messages, a reply after generated tokens."""
    prelude, asked = Turn(0, token_ids=(1,)), Turn(1, token_ids=(2, 3))
    assert Tail.EMPTY == session(Turn(0)).tail
    assert Tail.CLOSED == session(prelude).tail
    assert Tail.CLOSED == session(prelude, asked).tail
    assert Tail.REPLY == session(prelude, Turn(1, token_ids=(2, 3), reply_start=1)).tail


def test_length_at() -> None:
    """Lengths add up turns; an unknown turn is NotFound and names those there are."""
    made = session(Turn(0, token_ids=(1, 2)), Turn(1, token_ids=(3,)))
    assert [2, 3] == [made.length_at(index) for index in (0, 1)]
    for index in (-1, 2):
        with pytest.raises(NotFound, match="turns 0 to 1"):
            made.length_at(index)


def test_messages_leave_the_prelude_out() -> None:
    """The system prompt is the session's, not a message."""
    made = session(Turn(0), Turn(1, (Message("user", "x"),)))
    assert ["x"] == [message.content for message in made.messages]
    assert made.open_turn is made.turns[1]
    assert session(Turn(0)).open_turn is None


async def test_one_writer() -> None:
    """A second writer is told who writes; afterwards, also after an error, the place is free."""
    made = session(Turn(0))
    async with made.writing("Append"):
        assert made.info().busy
        with pytest.raises(SessionBusy, match="Append is writing") as caught:
            await made.claim("Generate")
    assert caught.value.retry_after is not None
    with pytest.raises(ZeroDivisionError):
        async with made.writing("Append"):
            raise ZeroDivisionError
    async with made.writing("Generate"):
        pass
    assert not made.info().busy


async def test_a_stale_owner_closes_the_session() -> None:
    """After somebody else has written, what is in memory is history: no writer gets in."""
    made = session(Turn(0))
    with pytest.raises(StaleOwner):
        async with made.writing("Append"):
            raise StaleOwner("newer epoch")
    with pytest.raises(NotFound):
        await made.claim("Append")


def test_put_turn_renews_the_time_to_live() -> None:
    """A turn that is added or replaced counts as use now, whenever it was begun."""
    made = session(Turn(0))
    made.put_turn(Turn(1, created_at=1.0))
    made.put_turn(Turn(1, token_ids=(5,), created_at=1.0))
    assert [0, 1] == [turn.index for turn in made.turns]
    assert made.record.updated_at > 1.0
    assert made.record.updated_at + 10.0 == made.record.expires_at


# -- watching


async def test_watchers_see_every_change(replica: Replica) -> None:
    """A watch begins with the present state, tells each change with the whole state, and ends with the session."""
    await replica.create()
    changes = replica.manager.watch(TENANT, "a")
    first = await anext(changes)
    await replica.ask("a", "one")
    await replica.manager.update(TENANT, "a", SessionPatch(labels={"k": "v"}))
    await replica.manager.rollback(TENANT, "a", to_turn=0)
    await replica.manager.delete(TENANT, "a")
    rest = [change async for change in changes]

    assert (ChangeKind.SNAPSHOT, None, 1) == (first.kind, first.turn_index, first.info.n_turns)
    assert [
        (ChangeKind.GENERATING, 1),
        (ChangeKind.GENERATED, 1),
        (ChangeKind.UPDATED, None),
        (ChangeKind.ROLLED_BACK, 0),
        (ChangeKind.DELETED, None),
    ] == [(change.kind, change.turn_index) for change in rest]
    assert [1, 2, 2, 1] == [change.info.n_turns for change in rest[:4]]
    assert {"k": "v"} == rest[2].info.record.labels
    row_bytes = replica.core.engine.pool.shape.row_bytes
    assert all(change.info.device_bytes == change.info.device_tokens * row_bytes for change in rest)
    assert rest[1].info.device_tokens > 0


async def test_a_slow_watcher_loses_the_oldest(replica: Replica) -> None:
    """A watcher that does not read keeps a bounded number of changes, the newest."""
    await replica.create()
    changes = replica.manager.watch(TENANT, "a")
    await anext(changes)
    for i in range(WATCH_BUFFER + 10):
        replica.session().notify(ChangeKind.UPDATED, i)
    seen = [(await anext(changes)).turn_index for _ in range(WATCH_BUFFER)]
    assert list(range(10, WATCH_BUFFER + 10)) == seen
    await changes.aclose()
    assert not replica.session().is_watched


async def test_every_watcher_hears_and_only_of_its_session(replica: Replica) -> None:
    """Several watchers hear the same; another tenant's session of that name is another session."""
    await replica.create()
    await replica.create(tenant=OTHER)
    watchers = [replica.manager.watch(TENANT, "a") for _ in range(2)]
    for watcher in watchers:
        await anext(watcher)
    await replica.manager.delete(OTHER, "a")
    await replica.manager.delete(TENANT, "a")
    assert [[ChangeKind.DELETED]] * 2 == [[change.kind async for change in watcher] for watcher in watchers]
