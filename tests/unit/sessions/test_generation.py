from __future__ import annotations

import asyncio
import time

import pytest
from support.generating import LONG, exact_next, first_token, settled, slow_prefill
from support.replica import MAX_CONTEXT, TENANT, Answer, Replica, greedy, until, user

from agentmem.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
)
from agentmem.sessions import generation
from agentmem.types import FinishReason, TurnInput

# -- request ids


async def test_the_same_request_attaches_while_it_runs(replica: Replica) -> None:
    """A second call with the request id of a running reply follows the same reply from wherever it says."""
    await replica.create()
    first = replica.events("a", user("x"), 60, request_id="r", ignore_eos=True)
    await first_token(first)
    second, third = await asyncio.gather(
        replica.ask("a", "x", 60, request_id="r", ignore_eos=True),
        replica.ask("a", "x", 60, request_id="r", ignore_eos=True, resume_after=10),
    )
    rest = [event async for event in first]

    assert 60 == len(second.token_ids)
    assert second.token_ids[10:] == third.token_ids
    assert second.finish == third.finish == rest[-1]
    assert 2 == len(replica.session().turns)
    assert 60 == replica.manager.stats().tokens_generated


@pytest.mark.parametrize("given", ["chat", "raw"])
@pytest.mark.parametrize("sampling", [{}, {"stop_token_ids": (50, 60, 70, 80, 90, 100)}, {"stop": ("a", "e", "1", "x", "r", "k")}])
async def test_a_finished_request_is_replayed(replica: Replica, given: str, sampling: dict[str, object]) -> None:
    """The same request again gives the same events from memory, and the same tokens and text from the ledger after a restart."""
    if given == "raw":
        await replica.raw("a")
    else:
        await replica.create()
    asked = TurnInput(text="hello") if given == "raw" else user("hello")
    options = {"request_id": "r", "temperature": 1.0, "seed": 7, **sampling}
    live = await replica.ask("a", asked, 40, **options)
    memory = await replica.ask("a", asked, 40, **options)
    await replica.restart()
    ledger = await replica.ask("a", asked, 40, **options)

    for again in (memory, ledger):
        assert live.token_ids == again.token_ids
        assert live.text == again.text == live.finish.text
        assert live.finish == again.finish
        assert live.start == again.start
    for after in range(len(live.token_ids) + 1):
        resumed = await replica.ask("a", asked, 40, **options, resume_after=after)
        assert live.token_ids[after:] == resumed.token_ids
        assert live.text.endswith(resumed.text)
    assert 2 == len(replica.session().turns)
    assert 0 == replica.manager.stats().tokens_generated


@pytest.mark.parametrize("restart", [False, True])
async def test_a_request_id_names_one_request(replica: Replica, restart: bool) -> None:
    """Other input or other sampling under a known request id is refused, running, finished or in the ledger."""
    await replica.create()
    await replica.ask("a", "x", request_id="r")
    if restart:
        await replica.restart()
    for call in (replica.ask("a", "y", request_id="r"), replica.ask("a", "x", 9, request_id="r")):
        with pytest.raises(InvalidInput, match="request_id") as caught:
            await call
        assert "REQUEST_ID_REUSED" == caught.value.reason


@pytest.mark.parametrize("restart", [False, True])
async def test_resume_after_more_than_there_is(replica: Replica, restart: bool) -> None:
    """A client cannot have more tokens than were generated: both numbers are named."""
    await replica.create()
    count = len((await replica.ask("a", "x", request_id="r")).token_ids)
    if restart:
        await replica.restart()
    with pytest.raises(InvalidInput, match=f"resume_after is 99, but the reply has {count} tokens"):
        await replica.ask("a", "x", request_id="r", resume_after=99)


@pytest.mark.parametrize("restart", [False, True])
async def test_append_again_adds_nothing(replica: Replica, restart: bool) -> None:
    """An Append that is retried answers as the first time; other content under its id is refused."""
    await replica.create()
    first = await replica.manager.append(TENANT, "a", user("x"), request_id="r")
    if restart:
        await replica.restart()
    again = await replica.manager.append(TENANT, "a", user("x"), request_id="r")

    assert first == again
    with pytest.raises(InvalidInput, match="request_id"):
        await replica.manager.append(TENANT, "a", user("y"), request_id="r")
    assert 1 == len(replica.session().turns[1].messages)


async def test_a_sampled_request_without_seed_is_repeatable(replica: Replica) -> None:
    """After a failure before the first token the same request id draws the same noise, so a retry gives the same reply."""
    await replica.create()
    await replica.ask("a", "x", 20, request_id="r", temperature=1.0)
    first = replica.session().turns[1].token_ids
    await replica.manager.rollback(TENANT, "a", to_turn=0)
    await replica.ask("a", "x", 20, request_id="r", temperature=1.0)
    assert first == replica.session().turns[1].token_ids
    await replica.manager.rollback(TENANT, "a", to_turn=0)
    await replica.ask("a", "x", 20, temperature=1.0)
    assert first != replica.session().turns[1].token_ids


async def test_old_replies_are_forgotten_and_replayed_from_the_ledger(replica: Replica) -> None:
    """A session keeps a bounded number of finished replies; older ones come from the ledger."""
    await replica.create()
    for i in range(generation.MAX_REPLIES + 2):
        await replica.ask("a", "x", 1, request_id=f"r{i}")
    assert generation.MAX_REPLIES == len(replica.session().replies)
    assert 1 == (await replica.ask("a", "x", 1, request_id="r0")).finish.turn_index


async def test_forget_replies(replica: Replica) -> None:
    """Finished replies go when nobody came back in time, running ones that nobody follows are ended then."""
    generator, now = replica.manager.generator, asyncio.get_running_loop().time()
    await replica.create()
    await replica.ask("a", "x", request_id="old")
    events = replica.events("a", user("x"), LONG, request_id="left", ignore_eos=True)
    await first_token(events)
    session = replica.session()

    generator.forget_replies(session, now + generator.resume_seconds - 1)
    assert ["old", "left"] == list(session.replies)
    generator.forget_replies(session, now + generator.resume_seconds + 60)
    assert ["left"] == list(session.replies)  # it has a reader
    await events.aclose()
    generator.forget_replies(session, now + generator.resume_seconds + 60)
    await settled(replica)
    assert FinishReason.CANCELLED == session.turns[-1].finish_reason
    generator.forget_replies(session, now + 2 * generator.resume_seconds + 60)
    assert [] == list(session.replies)


# -- ending early


async def test_a_reader_that_leaves_cancels_an_unnamed_reply(replica: Replica) -> None:
    """Without a request id nobody can come back, so the reply ends; what it has is committed as cancelled."""
    await replica.create()
    events = replica.events("a", user("x"), LONG, ignore_eos=True)
    await first_token(events)
    await events.aclose()
    await settled(replica)

    turn = replica.session().turns[1]
    assert FinishReason.CANCELLED == turn.finish_reason
    assert 0 < len(turn.token_ids) - turn.reply_start < LONG
    await exact_next(replica)


async def test_a_named_reply_goes_on_without_readers(replica: Replica) -> None:
    """With a request id the reply is finished for whoever comes back."""
    await replica.create()
    events = replica.events("a", user("x"), 80, request_id="r", ignore_eos=True)
    await first_token(events)
    await events.aclose()
    await settled(replica)

    assert FinishReason.LENGTH == replica.session().turns[1].finish_reason
    assert 80 == len((await replica.ask("a", "x", 80, request_id="r", ignore_eos=True)).token_ids)


async def test_cancel_commits_what_there_is(replica: Replica) -> None:
    """Cancel ends the reply that its request id names; its tokens are a turn, and the next turn is exact."""
    await replica.create()
    events = replica.events("a", user("x"), LONG, request_id="r", ignore_eos=True)
    await first_token(events)
    assert await replica.manager.cancel(TENANT, "a", "r")
    rest = Answer(tuple([event async for event in events]))

    assert FinishReason.CANCELLED == rest.finish.finish_reason
    assert rest.finish.durable
    assert not await replica.manager.cancel(TENANT, "a", "r")
    assert not await replica.manager.cancel(TENANT, "a", "unknown")
    turn = replica.session().turns[1]
    prompt = tuple(turn.token_ids[: turn.reply_start])
    assert greedy_ignoring_eos(prompt, rest.finish.usage.output_tokens) == turn.token_ids[turn.reply_start :]
    await exact_next(replica)


def greedy_ignoring_eos(ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return ``count`` greedy tokens after ``ids``, going on after the end token."""
    found: tuple[int, ...] = ()
    while len(found) < count:
        found += greedy(ids + found, count - len(found))
    return found


async def test_deadline_in_the_middle(replica: Replica) -> None:
    """A reply whose deadline passes ends with that reason and keeps its tokens."""
    await replica.create()
    answer = await replica.ask("a", "x", MAX_CONTEXT, deadline=time.monotonic() + 0.15, ignore_eos=True)
    assert FinishReason.DEADLINE == answer.finish.finish_reason
    await exact_next(replica)


async def test_deadline_before_the_first_token(replica: Replica) -> None:
    """A deadline that has passed leaves the session as it was, also for the same request again."""
    await replica.create()
    await replica.ask("a", "one")
    before = replica.tokens()
    with pytest.raises(DeadlineExceeded, match="unchanged"):
        await replica.ask("a", "two", deadline=time.monotonic() - 1.0, request_id="r")

    assert before == replica.tokens()
    assert (await replica.ask("a", "two", request_id="r")).finish.durable
    await exact_next(replica)


async def test_cancel_before_the_first_token(replica: Replica) -> None:
    """A reply that is cancelled while it waits or is prefilled leaves the session as it was; the next turn is exact."""
    await replica.create()
    await replica.ask("a", "one")
    before = replica.tokens()
    with slow_prefill(replica) as gate:
        asked = asyncio.ensure_future(replica.ask("a", "y" * 500, request_id="r"))
        await until(lambda: "r" in replica.session().replies)
        assert await replica.manager.cancel(TENANT, "a", "r")
        gate.set()
        with pytest.raises(Cancelled, match="unchanged"):
            await asked

    assert before == replica.tokens()
    await replica.check()
    await exact_next(replica)
