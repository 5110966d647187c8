from __future__ import annotations

import asyncio

import pytest

from agentmem.sessions.tasks import Tasks


async def test_work_outlives_its_caller() -> None:
    """When the waiting is cancelled the work goes on to its end."""
    tasks, go, ended = Tasks(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        ended.set()

    waiting = asyncio.create_task(tasks.finish(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go.set()
    await tasks.wait(None)
    assert ended.is_set()


async def test_finish_returns_and_raises() -> None:
    """The caller gets what the work returns or raises."""
    tasks = Tasks()

    async def work(value: int) -> float:
        return 1 / value

    assert 1.0 == await tasks.finish(work(1))
    with pytest.raises(ZeroDivisionError):
        await tasks.finish(work(0))


async def test_wait_counts_what_work_starts() -> None:
    """Waiting includes tasks that the awaited ones spawn, and stops when the time is over."""
    tasks, ended = Tasks(), []

    async def deep(levels: int) -> None:
        await asyncio.sleep(0)
        if levels:
            tasks.spawn(deep(levels - 1))
        else:
            ended.append(True)

    tasks.spawn(deep(5))
    await tasks.wait(None)
    assert [True] == ended

    forever = tasks.spawn(asyncio.Event().wait())
    await tasks.wait(0.01)
    assert not forever.done()
    forever.cancel()
    await tasks.wait(1.0)
    await tasks.wait(None)
