from __future__ import annotations

import asyncio

import pytest
from support.replica import OTHER, TENANT, Answer, Replica, greedy, user

from agentmem.errors import AlreadyExists, Draining, InvalidInput, NotFound
from agentmem.sessions.branching import divergence
from agentmem.types import Message, TurnInput
from agentmem.views import SessionPatch

SYSTEM = "s" * 60


async def three_turns(replica: Replica) -> None:
    await replica.create(system=SYSTEM, labels={"k": "v"}, ttl_seconds=600.0)
    for text in ("one", "two", "three"):
        await replica.ask("a", text)


async def exact(replica: Replica, name: str) -> Answer:
    answer = await replica.ask(name, "next", 6)
    assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 6) == answer.token_ids
    return answer


def resent(replica: Replica, *more: Message, upto: int | None = None) -> TurnInput:
    """Return the session's conversation, as a client without a memory sends it, and ``more``."""
    return TurnInput(messages=(*replica.session().messages[:upto], *more), full_history=True)


@pytest.mark.parametrize("at_turn", [0, 1, 2, 3, None])
async def test_fork_at_any_turn(replica: Replica, at_turn: int | None) -> None:
    """A fork has the turns up to the one named, copies no K and V, and goes on exactly; so does its source."""
    await three_turns(replica)
    used = replica.core.engine.pool.used_bytes
    info = await replica.manager.fork(TENANT, "a", at_turn=at_turn, new_id="b", labels=None)

    last = 3 if at_turn is None else at_turn
    assert (last + 1, "a", last) == (info.n_turns, info.record.parent, info.record.parent_turn)
    assert ({"k": "v"}, 600.0) == (info.record.labels, info.record.ttl_seconds)
    assert used == replica.core.engine.pool.used_bytes
    assert info.n_tokens == replica.session().length_at(last)
    assert info.device_tokens in (info.n_tokens, info.n_tokens - 1)
    assert (await exact(replica, "b")).start.reuse.device == info.device_tokens
    await exact(replica, "a")


async def test_fork_leaves_an_open_turn_behind(replica: Replica) -> None:
    """Without a turn named, a fork has the turns that have ended; what was appended since belongs to the source alone."""
    await three_turns(replica)
    await replica.manager.append(TENANT, "a", user("pending"), request_id=None)
    info = await replica.manager.fork(TENANT, "a", at_turn=None, new_id="b", labels=None)

    assert (4, False) == (info.n_turns, info.open_turn)
    assert 5 == len(replica.session().turns)
    await exact(replica, "b")


async def test_fork_with_labels_and_a_made_up_id(replica: Replica) -> None:
    """Labels given replace the source's; without an id the server makes one up."""
    await three_turns(replica)
    info = await replica.manager.fork(TENANT, "a", at_turn=0, new_id=None, labels={})
    assert {} == info.record.labels
    assert info.record.id not in ("a", "")


async def test_fork_refuses(replica: Replica) -> None:
    """A turn that does not exist and a taken id are named; nothing is left behind."""
    await three_turns(replica)
    for turn in (-1, 4):
        with pytest.raises(NotFound, match=f"no turn {turn}; it has turns 0 to 3") as caught:
            await replica.manager.fork(TENANT, "a", at_turn=turn, new_id="b", labels=None)
        assert "TURN_NOT_FOUND" == caught.value.reason
    with pytest.raises(AlreadyExists):
        await replica.manager.fork(TENANT, "a", at_turn=1, new_id="a", labels=None)
    assert 1 == replica.manager.stats().sessions


async def test_fork_of_a_busy_session(replica: Replica) -> None:
    """A session can be forked while it replies: the fork has the committed turns and is exact."""
    await three_turns(replica)
    events = replica.events("a", user("more"), 300, ignore_eos=True)
    await anext(events)
    info = await replica.manager.fork(TENANT, "a", at_turn=None, new_id="b", labels=None)
    assert 4 == info.n_turns
    await exact(replica, "b")
    await events.aclose()
    await replica.manager.generator.tasks.wait(None)


async def test_a_fork_that_a_writer_overtakes_is_what_the_ledger_copied(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the source's open turn grows while it is forked, memory and ledger of the fork agree."""
    await replica.create()
    await replica.manager.append(TENANT, "a", user("one"), request_id=None)
    copy = replica.core.ledger.fork_session
    loop = asyncio.get_running_loop()

    def late(*args: object) -> None:
        append = replica.manager.append(TENANT, "a", user("two"), request_id=None)
        asyncio.run_coroutine_threadsafe(append, loop).result()
        copy(*args)

    monkeypatch.setattr(replica.core.ledger, "fork_session", late)
    info = await replica.manager.fork(TENANT, "a", at_turn=1, new_id="b", labels=None)

    assert replica.tokens() == replica.tokens("b")
    assert 2 == info.n_turns
    await replica.check()
    await replica.ask("b", TurnInput())


@pytest.mark.parametrize("to_turn", [0, 1, 2, 3])
async def test_rollback_to_any_turn(replica: Replica, to_turn: int) -> None:
    """A rollback drops the later turns, here and after a restart, and what comes then is exact."""
    await three_turns(replica)
    kept = replica.session().length_at(to_turn)
    info = await replica.manager.rollback(TENANT, "a", to_turn=to_turn)

    assert (to_turn + 1, kept) == (info.n_turns, info.n_tokens)
    await exact(replica, "a")
    await replica.manager.rollback(TENANT, "a", to_turn=to_turn)
    await replica.restart()
    assert to_turn + 1 == (await replica.manager.get(TENANT, "a")).n_turns
    await exact(replica, "a")


async def test_rollback_refuses_unknown_turns(replica: Replica) -> None:
    """The error names the turns there are; the session is free afterwards."""
    await three_turns(replica)
    with pytest.raises(NotFound, match="no turn 4; it has turns 0 to 3"):
        await replica.manager.rollback(TENANT, "a", to_turn=4)
    await exact(replica, "a")


async def test_a_rolled_back_request_may_be_made_again(replica: Replica) -> None:
    """The request id of a turn that is gone names nothing any more."""
    await replica.create()
    first = await replica.ask("a", "x", request_id="r")
    await replica.manager.rollback(TENANT, "a", to_turn=0)
    again = await replica.ask("a", "y", request_id="r")
    assert first.finish.turn_index == again.finish.turn_index


async def test_rolling_a_fork_back_leaves_the_source(replica: Replica) -> None:
    """Forks are independent: rollback, deletion and new turns of one do not show in the other."""
    await three_turns(replica)
    await replica.manager.fork(TENANT, "a", at_turn=3, new_id="b", labels=None)
    tokens = replica.tokens()
    await replica.manager.rollback(TENANT, "b", to_turn=1)
    await replica.ask("b", "else")
    await replica.manager.delete(TENANT, "b")
    assert tokens == replica.tokens()
    await replica.check()
    await exact(replica, "a")


# -- resent histories


async def test_a_resent_history_that_goes_on_appends(replica: Replica) -> None:
    """A conversation that repeats the ledger adds only what is new, with or without the system prompt."""
    await three_turns(replica)
    more = Message("user", "four")
    answer = await replica.ask("a", resent(replica, more))
    assert ("a", 4) == (answer.start.session_id, answer.finish.turn_index)
    system = Message("system", SYSTEM)
    given = TurnInput(messages=(system, *replica.session().messages, more), full_history=True)
    assert 5 == (await replica.ask("a", given)).finish.turn_index


@pytest.mark.parametrize("upto", [0, 1, 2, 3, 5])
async def test_a_changed_history_forks_at_the_last_equal_turn(replica: Replica, upto: int) -> None:
    """What differs goes on in a fork that is a session of its own, exact and durable."""
    await three_turns(replica)
    answer = await replica.ask("a", resent(replica, Message("user", "else"), upto=upto), 6)
    fork = answer.start.session_id

    assert "a" != fork
    assert greedy(tuple(replica.tokens(fork)[: -len(answer.token_ids)]), 6) == answer.token_ids
    assert [*replica.session().messages[:upto], Message("user", "else")] == replica.session(fork).messages[:-1]
    await exact(replica, fork)


async def test_a_retried_divergence_finds_its_fork(replica: Replica) -> None:
    """The same request again answers from the fork that the first try made, also after a restart."""
    await three_turns(replica)
    given = resent(replica, Message("user", "else"), upto=2)
    first = await replica.ask("a", given, request_id="r")
    again = await replica.ask("a", given, request_id="r")
    await replica.restart()
    later = await replica.ask("a", given, request_id="r")

    assert first.token_ids == again.token_ids == later.token_ids
    assert first.start.session_id == again.start.session_id == later.start.session_id
    assert 2 == replica.manager.stats().sessions


async def test_a_resent_history_under_a_known_request_replays(replica: Replica) -> None:
    """A retry of a full-history request finds the turn that it made and adds nothing."""
    await replica.create()
    given = TurnInput(messages=(Message("user", "one"),), full_history=True)
    first = await replica.ask("a", given, request_id="r")
    assert first.token_ids == (await replica.ask("a", given, request_id="r")).token_ids
    assert 2 == len(replica.session().turns)


async def test_another_system_prompt_is_refused(replica: Replica) -> None:
    """The system prompt belongs to the session: another one needs another session."""
    await replica.create(system=SYSTEM)
    given = TurnInput(messages=(Message("system", "other"), Message("user", "x")), full_history=True)
    with pytest.raises(InvalidInput, match=r"messages\[0\]"):
        await replica.ask("a", given)


async def test_divergence_counts_known_messages(replica: Replica) -> None:
    """Leading messages of equal whole turns are known; an open turn that differs is left with its whole turn."""
    await three_turns(replica)
    session = replica.session()
    assert 6 == divergence(session, session.messages).num_known
    shorter = divergence(session, session.messages[:3])
    assert (2, 1, "message 3 was left out") == (shorter.num_known, shorter.at_turn, shorter.detail)


async def test_wrong_input_makes_no_fork(replica: Replica) -> None:
    """What would be refused anyway is refused before anything is forked: text with messages, a RAW session, a drain."""
    await three_turns(replica)
    await replica.raw()
    changed = resent(replica, Message("user", "else"), upto=0)
    with pytest.raises(InvalidInput):
        await replica.ask("a", TurnInput(messages=changed.messages, text="x", full_history=True))
    with pytest.raises(InvalidInput):
        await replica.ask("r", TurnInput(full_history=True))
    await replica.manager.drain(0.0)
    with pytest.raises(Draining):
        await replica.ask("a", changed)
    assert 2 == replica.manager.stats().sessions


async def test_forks_belong_to_their_tenant(replica: Replica) -> None:
    """A fork may have an id that another tenant uses; it is the forking tenant's."""
    await three_turns(replica)
    await replica.create("b", tenant=OTHER)
    await replica.manager.fork(TENANT, "a", at_turn=1, new_id="b", labels=None)
    assert 1 == (await replica.manager.get(OTHER, "b")).n_turns
    assert 2 == (await replica.manager.update(TENANT, "b", SessionPatch(pinned=True))).n_turns
