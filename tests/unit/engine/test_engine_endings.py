from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from support.engines import (
    BLOCK,
    LONG,
    PATIENCE,
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

from agentmem.engine.engine import Engine
from agentmem.engine.run import RunState
from agentmem.engine.scheduler import Limits
from agentmem.types import FinishReason, Tier

# -- cancellation and deadlines ---------------------------------------------------------------------------------------


async def test_cancelled_within_one_step(engine: Engine, runner: WatchedRunner, oracle: Oracle) -> None:
    """A running reply ends before its next step and keeps what it has; the session can go on from there."""
    runner.hold()
    run = await engine.submit(request(PROMPT, n=50))
    runner.allow(3)
    await until(run, lambda run: len(run.outputs) == 3)
    await acquire(runner.started)  # the first of four
    for _ in range(3):
        await acquire(runner.started)
    engine.cancel(run)  # the fourth step is under way
    runner.let_go()
    await finished(run)

    assert FinishReason.CANCELLED is run.finish_reason
    assert oracle(PROMPT, 4) == ids(run)
    rest = await done(engine, request(run.chain.tokens, n=4, branch=run.branch))
    assert oracle(PROMPT, 8)[4:] == ids(rest)
    assert len(run.chain) - 1 == rest.reused[Tier.DEVICE]


async def test_a_deadline_ends_a_running_reply(engine: Engine, runner: WatchedRunner) -> None:
    """A deadline that passes during a step ends the reply after it, with what it has."""
    runner.hold()
    run = await engine.submit(request(PROMPT, n=50))
    await acquire(runner.started)
    run.request = replace(run.request, deadline=time.monotonic())
    runner.let_go()
    await finished(run)

    assert (FinishReason.DEADLINE, 1) == (run.finish_reason, len(run.outputs))


async def test_cancelled_and_late_in_the_queue(runner: WatchedRunner) -> None:
    """Waiting runs end without a step of their own, and the run that held them up is not disturbed."""
    async with running(runner, limits=Limits(max_running=1)) as engine:
        runner.hold()
        first = await engine.submit(request(PROMPT, n=3))
        await acquire(runner.started)
        waiting = [
            asyncio.ensure_future(engine.submit(request(LONG, n=3))),
            asyncio.ensure_future(engine.submit(request(LONG, n=3, deadline=time.monotonic()))),
        ]
        await asyncio.sleep(0)  # both are in the inbox
        runner.allow()
        cancelled, late = await asyncio.gather(*waiting)
        engine.cancel(cancelled)
        runner.let_go()
        for run in (cancelled, late, first):
            await finished(run)

        assert [FinishReason.CANCELLED, FinishReason.DEADLINE] == [cancelled.finish_reason, late.finish_reason]
        assert [0, 0, 3] == [len(run.outputs) for run in (cancelled, late, first)]
        assert [0, 0] == [cancelled.num_steps, late.num_steps]


async def test_a_deadline_passes_while_nothing_runs(runner: WatchedRunner) -> None:
    """A run that lacks memory and is alone in the queue ends at its deadline by the engine's own clock."""
    async with running(runner, rows=100) as engine:
        branch = await engine.call(engine.pool.match, [])
        await engine.call(engine.pool.reserve, branch, 90)
        run = await done(engine, request(PROMPT, n=3, deadline=time.monotonic() + 0.05))

        assert (FinishReason.DEADLINE, 0) == (run.finish_reason, run.num_steps)
        await engine.call(engine.pool.release, branch)


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE])
async def test_ended_while_restoring(runner: WatchedRunner, oracle: Oracle, reason: FinishReason) -> None:
    """No further block is loaded; what was loaded stays with the session, whose next reply is right."""
    archive = FakeArchive()
    async with running(runner, archive=archive) as engine:
        await archived(engine, archive)
        archive.gate.clear()
        run = await engine.submit(request(LONG, n=5))
        assert await asyncio.to_thread(archive.loading.wait, 10)
        assert RunState.RESTORING is run.state
        if reason is FinishReason.CANCELLED:
            engine.cancel(run)
        else:
            await expire(engine, run)
        await engine.call(engine.pool.check_integrity)
        archive.gate.set()
        await finished(run)

        assert (reason, [], 1) == (run.finish_reason, run.outputs, len(archive.loads))
        assert run.branch is not None
        assert BLOCK == run.branch.length
        assert oracle(LONG, 5) == ids(await done(engine, request(LONG, n=5, branch=run.branch)))


async def test_a_cancelled_submit_leaves_nothing_running(engine: Engine, runner: WatchedRunner) -> None:
    """A caller that goes away while its request is being accepted leaves no orphan that runs to its end."""
    runner.hold()
    first = await engine.submit(request(PROMPT, n=2))
    await acquire(runner.started)
    task = asyncio.ensure_future(engine.submit(request(LONG, n=200)))
    await asyncio.sleep(0)
    task.cancel()
    runner.let_go()
    with pytest.raises(asyncio.CancelledError):
        await task
    await finished(first)
    async with asyncio.timeout(PATIENCE):
        while await engine.call(lambda: engine.scheduler.active or engine.scheduler.num_waiting):
            pass

    assert len(runner.sizes) < 50
