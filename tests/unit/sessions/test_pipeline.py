"""The background task by itself: it works while nobody writes, and gives way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.replica import until

from agentmem.errors import InternalError, NotFound, Overloaded, StaleOwner
from agentmem.memory.hashing import Chain
from agentmem.sessions.pipeline import Pipeline
from agentmem.sessions.session import Session
from agentmem.types import BlockHash, Fingerprint, SessionId, SessionRecord, TenantId, Turn

Step = Callable[[Pipeline], Awaitable[bool]]


class FakeRun:
    """A run that ends when it is cancelled or told to."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.done = False
        self.cancelled = False

    def end(self) -> None:
        self.done = True
        self.news.set()


class FakeEngine:
    """Hands out runs that were prepared; refuses without one."""

    def __init__(self) -> None:
        self.runs: list[FakeRun] = []
        self.submitted = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def submit(self, _request: object) -> FakeRun:
        self.submitted.set()
        await self.gate.wait()
        if not self.runs:
            raise Overloaded("no room")
        return self.runs.pop(0)

    def cancel(self, run: FakeRun) -> None:
        run.cancelled = True
        run.end()


def made(step: Step, engine: Any = None) -> tuple[Session, Pipeline]:
    """Return a session with a pipeline that does ``step``."""
    record = SessionRecord(SessionId("a"), TenantId("t"), Fingerprint("f"), "tok")
    session = Session(record, [Turn(0)], Chain(BlockHash(b"r" * 32), 4), row_bytes=1)
    pipeline = Pipeline(session, engine or FakeEngine(), step)
    session.background = pipeline
    return session, pipeline


def counting(times: int) -> tuple[list[int], Step]:
    """Return a list and a step that writes to it, with something to do so many times."""
    seen: list[int] = []

    async def step(_pipeline: Pipeline) -> bool:
        seen.append(len(seen))
        return len(seen) <= times

    return seen, step


async def test_it_works_until_nothing_is_left() -> None:
    """A poke does all there is to do, one step after the other; the next poke looks again."""
    seen, step = counting(3)
    _, pipeline = made(step)
    pipeline.poke()
    assert pipeline.is_working
    await pipeline.settle()
    assert not pipeline.is_working
    assert [0, 1, 2, 3] == seen[:4]
    await pipeline.settle()
    assert len(seen) > 4


async def test_a_poke_while_it_works_is_not_lost() -> None:
    """What changes during the last look is looked at."""
    looks = 0

    async def step(working: Pipeline) -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            await asyncio.sleep(0)
            working.poke()
        return False

    _, pipeline = made(step)
    await pipeline.settle()
    assert 2 == looks


async def test_writers_stop_it_and_start_it_again() -> None:
    """Between claim and unclaim nothing is done; afterwards it goes on by itself."""
    seen, step = counting(0)
    session, pipeline = made(step)
    async with session.writing("Generate"):
        pipeline.poke()
        assert not pipeline.is_working
        assert [] == seen
    await pipeline.settle()
    assert seen


async def test_a_writer_waits_for_what_is_done_alone_and_nothing_else() -> None:
    """A step that changes the session is waited for, one that waits for a job goes on beside the writer."""
    job, inside, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def step(working: Pipeline) -> bool:
        async with working.alone() as free:
            if free:
                inside.set()
                await go.wait()
        await job.wait()
        return False

    session, pipeline = made(step)
    pipeline.poke()
    await inside.wait()
    claiming = asyncio.ensure_future(session.claim("Append"))
    await asyncio.sleep(0)
    assert not claiming.done()
    go.set()
    await claiming
    assert pipeline.is_working
    job.set()
    session.unclaim()
    await pipeline.settle()


async def test_a_writer_cancels_a_run() -> None:
    """The engine's run ends at its next step, and the step hears of it."""
    engine = FakeEngine()
    run = FakeRun()
    engine.runs = [run]
    results: list[object] = []

    async def step(working: Pipeline) -> bool:
        async with working.alone() as free:
            if free and engine.runs:
                results.append(await working.run(object()))  # type: ignore[arg-type]
        return False

    session, pipeline = made(step, engine)
    pipeline.poke()
    await engine.submitted.wait()
    await asyncio.sleep(0)
    await session.claim("Append")
    assert run.cancelled
    assert [run] == results
    session.unclaim()
    await pipeline.settle()


async def test_a_writer_that_comes_while_a_run_is_submitted_cancels_it() -> None:
    """The run is cancelled as soon as there is one, so that the writer does not wait for its end."""
    engine = FakeEngine()
    engine.gate.clear()
    run = FakeRun()
    engine.runs = [run]

    async def step(working: Pipeline) -> bool:
        async with working.alone() as free:
            if free and engine.runs:
                await working.run(object())  # type: ignore[arg-type]
        return False

    session, pipeline = made(step, engine)
    pipeline.poke()
    await engine.submitted.wait()
    claiming = asyncio.ensure_future(session.claim("Append"))
    await asyncio.sleep(0)
    engine.gate.set()
    await claiming
    assert run.cancelled


async def test_a_refused_run_is_no_error() -> None:
    """Where the engine takes nothing on, there is no run, and the work waits for the next poke."""
    found: list[object] = []

    async def step(working: Pipeline) -> bool:
        found.append(await working.run(object()))  # type: ignore[arg-type]
        return False

    _, pipeline = made(step)
    await pipeline.settle()
    assert [None] == found


async def test_looking_keeps_it_at_rest() -> None:
    """While somebody looks nothing is done, also when a writer comes and goes meanwhile."""
    seen, step = counting(0)
    session, pipeline = made(step)
    async with pipeline.resting():
        async with session.writing("Append"):
            pass
        pipeline.poke()
        assert [] == seen
        assert not pipeline.is_working
    await pipeline.settle()
    assert seen


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), InternalError("bug")])
async def test_an_error_ends_the_work_not_the_session(error: Exception) -> None:
    """It is logged; whoever waits is let go; the next poke tries again."""
    seen: list[int] = []

    async def step(_pipeline: Pipeline) -> bool:
        seen.append(1)
        raise error

    session, pipeline = made(step)
    await pipeline.settle()
    await pipeline.settle()
    assert len(seen) >= 2
    assert not session.closed


async def test_a_stale_owner_closes_the_session() -> None:
    """When somebody else has written, what is in memory is history."""

    async def step(_pipeline: Pipeline) -> bool:
        raise StaleOwner("newer epoch")

    session, pipeline = made(step)
    await pipeline.settle()
    assert session.closed
    with pytest.raises(NotFound):
        await session.claim("Append")
    assert session.writer is None


async def test_close_stops_a_job_it_waits_for() -> None:
    """Closing does not wait for jobs, lets go whoever waits, and nothing starts again."""
    started = asyncio.Event()

    async def step(_pipeline: Pipeline) -> bool:
        started.set()
        await asyncio.Event().wait()
        return False

    _, pipeline = made(step)
    settling = asyncio.ensure_future(pipeline.settle())
    await started.wait()
    await pipeline.close()
    await settling
    pipeline.poke()
    assert not pipeline.is_working


async def test_what_is_wanted_later_is_wanted_then() -> None:
    """After the time that was named the pipeline looks with ``wanted`` set; a writer who comes first makes it needless."""
    seen: list[bool] = []

    async def step(working: Pipeline) -> bool:
        seen.append(working.wanted)
        working.wanted = False
        return False

    session, pipeline = made(step)
    pipeline.want(30.0)
    pipeline.want(0.0)
    await until(lambda: bool(seen))
    assert [True] == seen
    pipeline.want(30.0)
    async with session.writing("Append"):
        pass
    await pipeline.settle()
    assert not any(seen[1:])
    assert pipeline._timer is None
