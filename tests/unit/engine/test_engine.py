from __future__ import annotations

import asyncio
import time

import pytest
import torch
from support.engines import (
    LONG,
    PROMPT,
    FakeArchive,
    Oracle,
    WatchedRunner,
    acquire,
    archived,
    done,
    expire,
    finished,
    ids,
    request,
    running,
    until,
)
from support.grammars import Ladder

from agentmem import faults
from agentmem.engine.engine import Engine
from agentmem.engine.run import EngineRequest, Run, RunState
from agentmem.engine.scheduler import Limits
from agentmem.errors import ContextTooLong, Draining, InternalError, Overloaded
from agentmem.memory.pool import PoolFull
from agentmem.types import FinishReason, Policy, Tier


class Words:
    """Text of a word a token; stops at a word."""

    def __init__(self, stop: str = "") -> None:
        self.stop = stop
        self.stopped = False

    def push(self, token_id: int) -> str:
        self.stopped = self.stopped or f"w{token_id}" == self.stop
        return "" if self.stopped else f"w{token_id} "

    def finish(self) -> str:
        return "held"


# -- replies ----------------------------------------------------------------------------------------------------------


async def test_a_reply_streams(engine: Engine, runner: WatchedRunner, oracle: Oracle) -> None:
    """Tokens can be read one by one while the reply is made, and are HF's."""
    runner.hold()
    run = await engine.submit(request(PROMPT, n=4))
    seen = []
    for count in range(1, 5):
        runner.allow()
        await until(run, lambda run, count=count: len(run.outputs) == count)
        seen.append(ids(run))
    await finished(run)

    assert [oracle(PROMPT, 4)[:count] for count in range(1, 5)] == seen
    assert (4, FinishReason.LENGTH, RunState.DONE) == (run.num_steps, run.finish_reason, run.state)
    assert run.created <= run.started <= run.first_token <= run.finished


async def test_finish_reasons(engine: Engine, oracle: Oracle) -> None:
    """End token, stop token, stop string, max_tokens and a full context each end the reply where they should."""
    expected = oracle(PROMPT, 8)
    third = expected[2]
    cut = expected[: expected.index(third) + 1]
    asked = {
        FinishReason.STOP: [request(PROMPT, end_token_ids=frozenset({third})), request(PROMPT, stop_token_ids=(third,))],
        FinishReason.STOP_STRING: [request(PROMPT, reply_text=lambda: Words(f"w{third}"))],
        FinishReason.LENGTH: [request(PROMPT, n=8), request(PROMPT, n=8, end_token_ids=frozenset({third}), ignore_eos=True)],
        FinishReason.CONTEXT_FULL: [request(PROMPT, n=50, max_length=len(PROMPT) + 3)],
    }
    results = {reason: [ids(await done(engine, one)) for one in requests] for reason, requests in asked.items()}
    reasons = {reason: [(await done(engine, one)).finish_reason for one in map(again, requests)] for reason, requests in asked.items()}

    assert {
        FinishReason.STOP: [cut, cut],
        FinishReason.STOP_STRING: [cut],
        FinishReason.LENGTH: [expected, expected],
        FinishReason.CONTEXT_FULL: [expected[:3]],
    } == results
    assert {reason: [reason] * len(requests) for reason, requests in asked.items()} == reasons


def again(asked: EngineRequest) -> EngineRequest:
    """Return the same request with a chain of its own prompt."""
    params = asked.sampling
    assert params is not None
    return request(
        PROMPT,
        n=params.max_tokens,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        end_token_ids=asked.end_token_ids,
        reply_text=asked.reply_text,
        max_length=asked.max_length,
    )


async def test_held_back_text_comes_at_the_end(engine: Engine, oracle: Oracle) -> None:
    """What the text held back is given when the reply ends, but not after a stop string."""
    stop = f"w{oracle(PROMPT, 8)[1]}"
    plain = await done(engine, request(PROMPT, n=2, reply_text=Words))
    stopped = await done(engine, request(PROMPT, n=8, reply_text=lambda: Words(stop)))

    assert "held" == plain.tail_text
    assert "" == stopped.tail_text
    assert "".join(f"w{token} " for token in oracle(PROMPT, 2)) == "".join(output.text for output in plain.outputs)


async def test_prefill_only(engine: Engine) -> None:
    """A request without sampling computes K and V of every token and says STOP, also when nothing is left to compute."""
    first = await done(engine, request(LONG[:40], n=None))
    second = await done(engine, request(LONG[:40], n=None))
    longer = await done(engine, request(LONG[:41], n=None, branch=second.branch))

    assert [FinishReason.STOP] * 3 == [run.finish_reason for run in (first, second, longer)]
    assert [0, 40, 40] == [run.reused[Tier.DEVICE] for run in (first, second, longer)]
    assert [] == first.pending == second.pending == longer.pending
    assert 41 == engine.stats.computed


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "n", "max_length", "message"),
    [
        (30, 1, 30, "the context would be 30 tokens and leave no room for a reply; the limit is 30"),
        (31, 1, 30, "the context would be 31 tokens"),
        (100, 150, 250, "need .* bytes of KV memory; the budget is"),
    ],
)
async def test_what_can_never_fit_is_refused(runner: WatchedRunner, length: int, n: int, max_length: int, message: str) -> None:
    """A context beyond the model's limit, or beyond the whole budget, raises ContextTooLong with both numbers; nothing stays queued."""
    async with running(runner, rows=200) as engine:
        with pytest.raises(ContextTooLong, match=message):
            await engine.submit(request(LONG[:length], n=n, max_length=max_length))

        assert 0 == engine.scheduler.num_waiting


async def test_a_full_queue(runner: WatchedRunner) -> None:
    """Beyond the queue's limit Overloaded is raised at once; what was accepted before is answered."""
    async with running(runner, limits=Limits(max_running=1, max_queue=1)) as engine:
        runner.hold()
        first = await engine.submit(request(PROMPT, n=2))
        await acquire(runner.started)
        submitted = asyncio.gather(*[engine.submit(request(LONG, n=2)) for _ in range(2)], return_exceptions=True)
        await asyncio.sleep(0)  # both are in the inbox
        runner.let_go()
        second, refused = await submitted

        assert isinstance(refused, Overloaded)
        assert isinstance(second, Run)
        assert [2, 2] == [len((await finished(run)).outputs) for run in (first, second)]


async def test_the_queue_moves_without_news(runner: WatchedRunner, oracle: Oracle) -> None:
    """When a run ends, the next that waits for its place or its memory starts by itself."""
    for limits, rows in ((Limits(max_running=1), 2000), (Limits(), 150)):
        async with running(runner, limits=limits, rows=rows) as engine:
            runs = [await engine.submit(request(LONG[i:], n=5)) for i in range(4)]
            replies = [ids(await finished(run)) for run in runs]

        assert [oracle(LONG[i:], 5) for i in range(4)] == replies


async def test_no_more_run_than_allowed(runner: WatchedRunner) -> None:
    """However many are accepted at once, a step never has more sessions than max_running."""
    async with running(runner, limits=Limits(max_running=2)) as engine:
        runner.hold()
        runs = [await engine.submit(request(LONG, n=3))]
        await acquire(runner.started)
        waiting = [asyncio.ensure_future(engine.submit(request(LONG[i:], n=3, tenant=f"t{i}"))) for i in range(1, 6)]
        await asyncio.sleep(0)
        runner.let_go()
        for run in runs + await asyncio.gather(*waiting):
            await finished(run)

        assert 2 == max(map(len, runner.sizes))


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_a_failing_step(engine: Engine, oracle: Oracle, caplog: pytest.LogCaptureFixture) -> None:
    """Every run of the step ends with an error and loses its memory; the engine lives, and the same requests are answered right."""
    faults.arm("engine.step", "error", nth=3)
    failed = await done(engine, request(PROMPT, n=6))

    assert isinstance(failed.error, InternalError)
    assert "the step failed: RuntimeError: fault armed at engine.step" == failed.error.message
    assert failed.branch is not None
    assert not failed.branch.alive
    assert 1 == engine.stats.failed_steps
    assert "step failed for 1 runs" in caplog.text
    assert oracle(PROMPT, 6) == ids(await done(engine, request(PROMPT, n=6)))


async def test_a_failing_step_leaves_others_alone(engine: Engine, runner: WatchedRunner, oracle: Oracle) -> None:
    """Sessions that shared rows with the failed one and were not in the step keep their memory."""
    session = await done(engine, request(LONG, n=3))
    runner.raises.append(ValueError("boom"))
    failed = await done(engine, request([*LONG, 5, 6], n=3))
    kept = await done(engine, request([*session.chain.tokens, 9], n=6, branch=session.branch))

    assert isinstance(failed.error, InternalError)
    assert len(session.chain) - 4 + 3 >= kept.reused[Tier.DEVICE] >= len(LONG)
    assert oracle([*session.chain.tokens[: len(LONG) + 3], 9], 6) == ids(kept)


@pytest.mark.parametrize("broken", [torch.OutOfMemoryError("no"), MemoryError(), PoolFull()])
async def test_running_out_of_memory(engine: Engine, runner: WatchedRunner, broken: Exception) -> None:
    """A device that runs out of memory during a step answers Overloaded, to be tried again."""
    runner.raises.append(broken)
    run = await done(engine, request(PROMPT))

    assert isinstance(run.error, Overloaded)
    assert ("OUT_OF_MEMORY", 1.0) == (run.error.reason, run.error.retry_after)


async def test_own_errors_are_passed_on(engine: Engine, runner: WatchedRunner) -> None:
    """An error of the tree that a step raises reaches the caller as it is."""
    mine = InternalError("logits of row 0")
    runner.raises.append(mine)

    assert mine is (await done(engine, request(PROMPT))).error


async def test_a_bug_in_the_books(engine: Engine, oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error between steps ends the runs under way with InternalError instead of the thread, and the engine goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(engine.scheduler, "plan", lambda: 1 / 0)
        run = await done(engine, request(PROMPT))

    assert isinstance(run.error, InternalError)
    assert "ZeroDivisionError" in run.error.message
    assert oracle(PROMPT) == ids(await done(engine, request(PROMPT)))


async def test_call_hands_back_what_the_function_raises(engine: Engine) -> None:
    """``call`` returns the function's result and raises its error, on the caller's side only."""
    assert 5 == await engine.call(lambda a, b: a + b, 2, 3)
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: 1 / 0)
    assert 0 == engine.stats.failed_steps


# -- the thread -------------------------------------------------------------------------------------------------------


async def test_stop_ends_what_runs(runner: WatchedRunner) -> None:
    """Stopping cancels running, waiting and restoring runs, ends the thread, and refuses whatever comes later."""
    archive = FakeArchive()
    async with running(runner, archive=archive, limits=Limits(max_running=2)) as engine:
        await archived(engine, archive)
        archive.gate.clear()
        restoring = await engine.submit(request(LONG, n=50))
        runner.hold()
        active = await engine.submit(request(PROMPT, n=200))
        runner.allow(2)
        await until(active, lambda run: len(run.outputs) == 2)
        waiting = asyncio.ensure_future(engine.submit(request(PROMPT[1:], n=50)))
        await asyncio.sleep(0)  # it is in the inbox
        runner.allow(1)
        runs = [restoring, active, await waiting]
        stopping = asyncio.ensure_future(asyncio.to_thread(engine.stop))
        runner.let_go()
        archive.gate.set()
        for run in runs:
            await finished(run)
        await stopping

        assert [FinishReason.CANCELLED] * 3 == [run.finish_reason for run in runs]
        assert 1 < len(active.outputs) < 200
        with pytest.raises(Draining, match="the engine has stopped"):
            await engine.submit(request(PROMPT))
        engine.pool.check_integrity()
        engine.call = lambda function: asyncio.sleep(0, function())  # type: ignore[method-assign] # for the fixture's last look


async def test_no_new_work_while_stopping(runner: WatchedRunner) -> None:
    """A request that arrives after the stop was asked for, and before it is over, gets Draining."""
    async with running(runner) as engine:
        engine._stopping = True
        with pytest.raises(Draining, match="shutting down"):
            engine._accept(Run(request(PROMPT), asyncio.get_running_loop()))
        engine._stopping = False


async def cpu_share(seconds: float = 0.5) -> float:
    """Return the share of one core that this process uses over ``seconds`` of doing nothing."""
    used, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.monotonic() - began)


async def test_an_idle_engine_does_not_spin(runner: WatchedRunner) -> None:
    """Neither with nothing to do, nor with a run that waits for memory, nor with one whose restore outlasts its deadline."""
    archive = FakeArchive()
    shares = []
    async with running(runner, archive=archive, rows=200) as engine:
        await archived(engine, archive)
        shares.append(await cpu_share())
        branch = await engine.call(engine.pool.match, [])
        await engine.call(engine.pool.reserve, branch, 190)
        poor = await engine.submit(request(PROMPT, n=3))
        shares.append(await cpu_share())
        engine.cancel(poor)
        await finished(poor)
        await engine.call(engine.pool.release, branch)
        archive.gate.clear()
        late = await engine.submit(request(LONG, n=3))
        assert await asyncio.to_thread(archive.loading.wait, 10)
        await expire(engine, late)
        shares.append(await cpu_share())
        assert FinishReason.DEADLINE is late.cancel_reason  # noticed, while the loader is waited for
        archive.gate.set()
        await finished(late)

    assert max(shares) < 0.05, shares


async def test_stats_count(engine: Engine) -> None:
    """Steps, prefilled, decoded, computed and reused tokens add up."""
    await done(engine, request(PROMPT, n=4))
    await done(engine, request(PROMPT, n=4))
    await engine.call(lambda: None)
    stats = engine.stats

    assert (8, 30 + 6, 8) == (stats.steps, stats.prefill_tokens, stats.decode_tokens)
    assert (36, 24, 0) == (stats.computed, stats.reused[Tier.DEVICE], stats.failed_steps)


async def test_stats_count_what_grammars_take(engine: Engine) -> None:
    """Only steps with a reply under a grammar count; what grammars take is counted apart, and so are the tokens that they force."""
    await done(engine, request(PROMPT, n=4, policy=Policy(drafter="auto")))
    await engine.call(lambda: None)
    assert (0.0, 0.0) == (engine.stats.guided_seconds, engine.stats.guided_step_seconds)
    await done(engine, request(PROMPT, n=4, guide=Ladder, policy=Policy(drafter="forced")))
    await engine.call(lambda: None)
    stats = engine.stats

    assert 0.004 <= stats.guided_seconds
    assert 0 < stats.guided_step_seconds
    assert 1 <= stats.accepted <= stats.drafted


async def test_the_engine_keeps_its_threads(runner: WatchedRunner) -> None:
    """What other threads set for themselves, even before its first step, does not reach the engine's."""
    async with running(runner, threads=2) as engine:
        await asyncio.to_thread(torch.set_num_threads, 1)
        assert 2 == await engine.call(torch.get_num_threads)
