from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support.replica import MAX_CONTEXT, PROMPT, TENANT, Answer, Replica, encode, greedy, rendered, until, user
from torch import Tensor

from agentmem import faults
from agentmem.engine.batch import StepBatch
from agentmem.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidInput,
    Overloaded,
    SessionBusy,
    StaleOwner,
)
from agentmem.sessions import generation
from agentmem.types import FinishReason, GenerationEvent, Message, SamplingParams, TokenEvent, TurnInput

LONG = 400


async def first_token(events: AsyncIterator[GenerationEvent]) -> None:
    """Read until the first token."""
    async for event in events:
        if isinstance(event, TokenEvent):
            return


@contextmanager
def slow_prefill(replica: Replica) -> Iterator[threading.Event]:
    """Let prompts be computed 64 tokens a step, and no step until the event is set."""
    engine, gate = replica.core.engine, threading.Event()
    limits, forward = engine.scheduler.limits, engine.runner.forward

    def gated(batch: StepBatch) -> Tensor:
        gate.wait()
        return forward(batch)

    engine.scheduler.limits, engine.runner.forward = replace(limits, idle_batch_tokens=64), gated
    try:
        yield gate
    finally:
        gate.set()
        engine.scheduler.limits, engine.runner.forward = limits, forward


async def settled(replica: Replica) -> None:
    """Wait until everything that outlives its caller has ended."""
    await replica.manager.generator.tasks.wait(None)


async def exact_next(replica: Replica, name: str = "a") -> None:
    """Ask once more and compare with transformers on the same ids."""
    answer = await replica.ask(name, "next", 6)
    assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 6) == answer.token_ids


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


# -- refusals


async def test_context_too_long_names_both_numbers(replica: Replica) -> None:
    """What does not fit is refused with the tokens asked for and the limit; the session goes on."""
    await replica.create()
    await replica.ask("a", "one")
    before = replica.tokens()
    added = len(encode(rendered([("user", "x" * MAX_CONTEXT)])))
    for call in (replica.ask("a", "x" * MAX_CONTEXT), replica.manager.append(TENANT, "a", user("x" * MAX_CONTEXT), request_id=None)):
        with pytest.raises(ContextTooLong) as caught:
            await call
        assert str(MAX_CONTEXT) == caught.value.metadata["limit"]
        assert int(caught.value.metadata["tokens"]) > len(before) + added
        assert caught.value.metadata["tokens"] in caught.value.message
        assert caught.value.metadata["limit"] in caught.value.message
    assert before == replica.tokens()
    await exact_next(replica)


async def test_a_context_may_be_filled_to_the_last_token(replica: Replica) -> None:
    """Append may fill the context; a reply then has no room, and one that reaches the limit ends as CONTEXT_FULL."""
    await replica.raw("a")
    answer = await replica.ask("a", TurnInput(token_ids=(1,) * (MAX_CONTEXT - 3)), 10, ignore_eos=True)
    assert (FinishReason.CONTEXT_FULL, 3) == (answer.finish.finish_reason, len(answer.token_ids))
    with pytest.raises(ContextTooLong):
        await replica.ask("a", TurnInput())

    await replica.raw("b")
    result = await replica.manager.append(TENANT, "b", TurnInput(token_ids=(1,) * MAX_CONTEXT), request_id=None)
    assert MAX_CONTEXT == result.context_tokens
    with pytest.raises(ContextTooLong):
        await replica.manager.append(TENANT, "b", TurnInput(token_ids=(1,)), request_id=None)


async def test_append_refuses_nothing(replica: Replica) -> None:
    """An Append has to add something."""
    await replica.create()
    with pytest.raises(InvalidInput, match="nothing to append"):
        await replica.manager.append(TENANT, "a", TurnInput(), request_id=None)


async def test_a_stale_owner_is_refused_and_reads_the_ledger_anew(replica: Replica) -> None:
    """A writer whose epoch is old is refused in every kind of write; its copy of the session is dropped (invariant 10)."""
    ledger = replica.core.ledger
    await replica.create()
    await replica.ask("a", "one")
    calls = (
        lambda: replica.ask("a", "two"),
        lambda: replica.manager.append(TENANT, "a", user("two"), request_id=None),
        lambda: replica.manager.rollback(TENANT, "a", to_turn=0),
    )
    for call in calls:
        stolen = replica.session()
        ledger.update_session(replace(stolen.record, epoch=stolen.record.epoch + 1))
        with pytest.raises(StaleOwner, match="epoch"):
            await call()
        info = await replica.manager.get(TENANT, "a")
        assert (2, stolen.record.epoch + 1) == (info.n_turns, info.record.epoch)
        assert stolen is not replica.session()
        await replica.check()
    await exact_next(replica)


async def test_the_engine_may_refuse(replica: Replica) -> None:
    """When the queue is full the call is told when to come back, and the session is free and unchanged."""
    await replica.create()
    limits = replica.core.engine.scheduler.limits
    replica.core.engine.scheduler.limits = replace(limits, max_queue=0)
    for call in (replica.ask("a", "x"), replica.manager.append(TENANT, "a", user("x"), request_id=None)):
        with pytest.raises(Overloaded):
            await call
    replica.core.engine.scheduler.limits = limits
    assert 1 == (await replica.ask("a", "x")).finish.turn_index


async def test_a_step_that_fails_costs_no_content(replica: Replica) -> None:
    """When the engine breaks, the caller gets the error, the session is unchanged and the next turn is exact."""
    await replica.create()
    await replica.ask("a", "one")
    before = replica.tokens()
    faults.arm("engine.step", "error", 1)
    with pytest.raises(InternalError, match="step failed"):
        await replica.ask("a", "two", request_id="r")
    faults.arm("engine.step", "error", 1)
    with pytest.raises(InternalError, match="step failed"):
        await replica.manager.append(TENANT, "a", user("two"), request_id=None)

    assert before == replica.tokens()
    assert (await replica.ask("a", "two", request_id="r")).finish.durable
    await exact_next(replica)


async def test_a_bug_while_sealing_ends_the_reply(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever breaks, readers get an end and the session its writer's place back."""
    await replica.create()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(replica.manager.generator, "on_reply", broken)
        with pytest.raises(InternalError, match="ZeroDivisionError"):
            await replica.ask("a", "x")
    assert not (await replica.manager.get(TENANT, "a")).busy


# -- draining


async def test_drain_checkpoints_what_runs(replica: Replica) -> None:
    """A drain refuses new work, waits, then commits what a running reply has."""
    await replica.create()
    await replica.create("b")
    events = replica.events("a", user("x"), LONG, ignore_eos=True, request_id="r")
    await first_token(events)
    draining = asyncio.ensure_future(replica.manager.drain(0.05))
    await asyncio.sleep(0)
    for call in (replica.ask("b", "x"), replica.manager.append(TENANT, "b", user("x"), request_id=None)):
        with pytest.raises(Draining):
            await call
    await draining
    rest = Answer(tuple([event async for event in events]))

    assert FinishReason.CANCELLED == rest.finish.finish_reason
    assert rest.finish.durable
    assert rest.finish.usage.output_tokens > 0
    assert replica.manager.stats().draining
    await replica.restart()
    replayed = await replica.ask("a", "x", LONG, ignore_eos=True, request_id="r")
    assert rest.finish.usage.output_tokens == len(replayed.token_ids)


async def test_drain_waits_for_replies_that_end(replica: Replica) -> None:
    """A reply that ends in time is whole, also one that was just being accepted when the drain began."""
    await replica.create()
    asked = asyncio.ensure_future(replica.ask("a", "x", 60, ignore_eos=True, request_id="r"))
    await until(lambda: replica.session().writer is not None)
    await replica.manager.drain(20.0)
    assert FinishReason.LENGTH == (await asked).finish.finish_reason


# -- chat and fairness


async def test_append_then_generate_is_one_turn(replica: Replica) -> None:
    """Messages that were appended, computed and made durable before, then a reply without new ones: as if sent at once."""
    await replica.create()
    first = await replica.manager.append(TENANT, "a", user("one"), request_id=None)
    second = await replica.manager.append(TENANT, "a", TurnInput(messages=(Message("user", "two"),)), request_id=None)
    answer = await replica.ask("a", TurnInput())

    prompt = encode(rendered([("user", "one"), ("user", "two")]) + PROMPT)
    assert greedy(tuple(prompt), 8) == answer.token_ids
    assert (1, 1, 1) == (first.turn_index, second.turn_index, answer.finish.turn_index)
    assert (True, True) == (first.durable, second.durable)
    assert first.context_tokens + second.input_tokens == second.context_tokens
    assert second.context_tokens == answer.start.reuse.device


async def test_nothing_to_reply_to(replica: Replica) -> None:
    """A reply needs a message: in a new session, and after a reply."""
    await replica.create()
    with pytest.raises(InvalidInput, match="nothing to reply to"):
        await replica.ask("a", TurnInput())
    await replica.ask("a", "x")
    with pytest.raises(InvalidInput, match="nothing to reply to"):
        await replica.ask("a", TurnInput())


async def test_concurrent_sessions_are_exact(replica: Replica) -> None:
    """Sessions that run together get what each would get alone."""
    names = [f"s{i}" for i in range(4)]
    for name in names:
        await replica.create(name, system="shared " * 5)
    answers = await asyncio.gather(*(replica.ask(name, name * 5, 16) for name in names))
    for name, answer in zip(names, answers, strict=True):
        assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 16) == answer.token_ids


async def test_two_generates_at_once(replica: Replica) -> None:
    """Of two calls on one session one replies, the other is told that it is busy."""
    await replica.create()
    results = await asyncio.gather(replica.ask("a", "x"), replica.ask("a", "y"), return_exceptions=True)
    assert {Answer, SessionBusy} == {type(result) for result in results}
    assert 2 == len(replica.session().turns)


async def test_long_prompts_report_progress(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long prompt is prefilled its reader hears how far it is, never more than the whole."""
    monkeypatch.setattr("agentmem.sessions.reply.PROGRESS_TOKENS", 100)
    await replica.create()
    answer = await replica.ask("a", "x" * 600)
    progress = [event for event in answer.events if hasattr(event, "prefilled")]
    assert progress
    assert all(0 <= event.prefilled <= event.total == answer.start.context_tokens for event in progress)


async def test_default_sampling_params(replica: Replica) -> None:
    """Usage adds up: input, context, output, and times in order."""
    await replica.create()
    answer = await replica.ask("a", "hello", 5, ignore_eos=True)
    usage = answer.finish.usage
    assert (answer.start.input_tokens, answer.start.context_tokens, 5) == (usage.input_tokens, usage.context_tokens, usage.output_tokens)
    assert 0 <= usage.queue_seconds <= usage.first_token_seconds <= usage.total_seconds
    assert usage.steps >= 5
    assert SamplingParams().max_tokens > 0
