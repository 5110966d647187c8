from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.generating import LONG, exact_next, first_token
from support.replica import MAX_CONTEXT, PROMPT, TENANT, Answer, Replica, encode, greedy, rendered, until, user

from agentmem import faults
from agentmem.errors import (
    ContextTooLong,
    Draining,
    InternalError,
    InvalidInput,
    Overloaded,
    SessionBusy,
    StaleOwner,
)
from agentmem.types import FinishReason, Message, SamplingParams, TurnInput

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
