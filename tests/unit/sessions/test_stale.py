"""The old memory with holes: spilled, compact, cut twice, in the way of nobody."""

from __future__ import annotations

import pytest
from support.forgetting import SECRET, assert_exact, forget, told, unread
from support.replica import TENANT, Replica, user

from agentmem.sessions.requests import engine_request
from agentmem.types import Fidelity, MissReason, Policy
from agentmem.views import ForgetTarget, SealState


async def test_replies_go_on_at_once(replica: Replica) -> None:
    """Without a wish for EXACT the old memory serves, labelled, computing nothing again; what it says goes into the session's tokens."""
    await told(replica)
    await replica.settle()
    async with replica.session().background.resting():  # type: ignore[union-attr] # the background does not get to work
        await forget(replica)
        info = await replica.manager.get(TENANT, "a")
        assert (False, Fidelity.RECALL) == (info.exact, info.fidelity)
        for _ in range(2):
            answer = await unread(replica, "a")
            assert Fidelity.RECALL is answer.start.fidelity is answer.finish.fidelity
            assert answer.start.reuse.computed < 40
            assert MissReason.FORGOTTEN is answer.start.reuse.reason
            assert len(replica.tokens()) == answer.start.context_tokens + len(answer.token_ids)
        assert replica.session().turns[4].report is None
    await replica.settle()
    session = replica.session()
    assert (None, True) == (session.stale, (await replica.manager.get(TENANT, "a")).exact)
    assert session.turns[4].report is not None
    answer = await replica.ask("a", "now")
    assert MissReason.NONE is answer.start.reuse.reason
    assert_exact(replica, answer)
    assert SealState.QUEUED not in [turn.sealed for turn in (await replica.manager.inspect(TENANT, "a"))[1]][:2]


async def test_a_spilled_old_memory_is_no_obstacle(replica: Replica) -> None:
    """When the old memory is taken away, the next reply computes again, exactly."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        await replica.spill()
        assert (await replica.manager.get(TENANT, "a")).exact
        assert_exact(replica, await unread(replica, "a"))


async def test_what_loses_its_memory_while_it_waits(replica: Replica) -> None:
    """A reply whose old memory is spilled between its check and its start is exact, and says so."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        engine = replica.core.engine
        submit = engine.submit

        async def late(request: object) -> object:
            await engine.call(engine.pool.spill_idle)
            return await submit(request)  # type: ignore[arg-type]

        engine.submit = late  # type: ignore[method-assign,assignment]
        assert_exact(replica, await unread(replica, "a"))
        assert replica.session().stale is None


async def test_the_background_gives_way(replica: Replica) -> None:
    """Reading again is cut short by a turn that comes in and goes on after it, to the end."""
    await told(replica)
    for _ in range(4):
        await replica.ask("a", "more words " * 8)
    await forget(replica)
    answer = await unread(replica, "a", max_tokens=3)
    assert 3 >= len(answer.token_ids)
    await replica.settle()
    assert replica.session().stale is None
    assert_exact(replica, await replica.ask("a", "now"))


@pytest.mark.parametrize("fidelity", [Fidelity.RECALL, Fidelity.COMPACT])
async def test_compressed_memory_forgets_too(replica: Replica, fidelity: Fidelity) -> None:
    """Over a compact branch the hole is skipped in the archive's rows; then units are made anew, and EXACT is exact."""
    policy = Policy(fidelity=fidelity, keep=0.2, recall_tokens=8)
    await told(replica, policy=policy)
    for _ in range(3):
        await replica.ask("a", "more words " * 8)
    await replica.settle()
    session = replica.session()
    assert session.branch is not None
    assert session.branch.covers > session.length_at(1)
    async with session.background.resting():  # type: ignore[union-attr]
        await forget(replica)
        answer = await unread(replica, "a")
        assert answer.start.reuse.computed < 40
        assert Fidelity.RECALL is answer.start.fidelity
    await replica.settle()
    assert session.stale is None
    assert session.sealed is not None
    assert session.sealed.length > session.length_at(1)
    assert fidelity is (await replica.ask("a", "again")).start.fidelity
    assert_exact(replica, await unread(replica, "a", fidelity=Fidelity.EXACT))


async def test_forgetting_twice(replica: Replica) -> None:
    """More can be forgotten while the first is not over: holes add up; what is forgotten already is no error."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        await unread(replica, "a")
        await forget(replica, targets=[ForgetTarget(2, 0), ForgetTarget(1, 1), ForgetTarget(2, 0)])
        stale = replica.session().stale
        assert stale is not None
        assert 2 == len(stale.holes)
        left = [token for place, token in enumerate(stale.tokens) if all(place not in hole for hole in stale.holes)]
        assert left == replica.tokens()
        await unread(replica, "a")
    await replica.settle()
    assert [0, 1, 1, 0, 0, 0] == [len(turn.forgotten) for turn in replica.session().turns]
    assert_exact(replica, await replica.ask("a", "now"))
    await forget(replica)
    assert replica.session().stale is None


async def test_the_last_message_leaves_no_hole(replica: Replica) -> None:
    """What nothing was read after is cut off: the session stays exact, and the turn takes other messages."""
    await told(replica)
    await replica.manager.append(TENANT, "a", user(SECRET), request_id=None)
    before = replica.session().length_at(3)
    await forget(replica, targets=[ForgetTarget(4, 0)])

    assert (None, before, True) == (replica.session().stale, len(replica.tokens()), (await replica.manager.get(TENANT, "a")).open_turn)
    answer = await unread(replica, "a")
    assert_exact(replica, answer)
    assert MissReason.NONE is answer.start.reuse.reason


async def test_recall_finds_nothing_forgotten(replica: Replica) -> None:
    """A recall sees the session without the message, also while the old memory serves replies."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        spans = await replica.manager.recall(TENANT, "a", "the code", 100)
        assert spans
        assert not [span for span in spans if "80731" in span.text or "nobody" in span.text]
        assert replica.session().stale is not None


async def test_rollback_ends_the_old_memory(replica: Replica) -> None:
    """After a rollback the session has one memory, and is exact."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        await replica.manager.rollback(TENANT, "a", to_turn=2)
        assert replica.session().stale is None
    assert_exact(replica, await replica.ask("a", "next"))


async def test_what_is_computed_around_a_hole_has_no_name(replica: Replica) -> None:
    """No block of it can be found, archived or waited for by anybody: its K and V are not those of its tokens."""
    await told(replica)
    async with replica.session().background.resting():  # type: ignore[union-attr]
        await forget(replica)
        session = replica.session()
        before = set(replica.core.engine.pool._index)
        await unread(replica, "a", max_tokens=40, ignore_eos=True)
        stale = session.stale
        assert stale is not None
        assert len(stale.tokens) > stale.branch.length - 40
        assert set(replica.core.engine.pool._index) <= before
        asked = stale.request(engine_request(session, session.chain.copy(), Fidelity.EXACT), [1] * 40)
        assert ([], stale.holes) == (asked.chain.hashes, asked.holes)


async def test_no_report_before_it_is_exact(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is too short to read again, replies go on approximately, and no report says that they were re-encoded."""
    await told(replica)
    session = replica.session()
    async with session.background.resting():  # type: ignore[union-attr]
        await forget(replica)
        answer = await unread(replica, "a")
    monkeypatch.setattr(replica.core.engine.pool, "fits", lambda *_, **__: False)
    await replica.settle()
    assert session.stale is not None
    assert session.turns[answer.start.turn_index].report is None

    monkeypatch.undo()
    await replica.settle()
    assert session.stale is None
    assert session.turns[answer.start.turn_index].report is not None
