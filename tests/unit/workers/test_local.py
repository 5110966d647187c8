from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from agentmem_workers.local import LocalExecutor


async def test_jobs_run_off_the_loop() -> None:
    """A job runs on one of the executor's threads; its result or error is the caller's."""
    executor = LocalExecutor()
    name = await executor.run(lambda: threading.current_thread().name)
    assert name.startswith("seal")
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 / 0)
    executor.close()


async def test_jobs_run_side_by_side() -> None:
    """As many jobs run at once as there are threads."""
    executor, meeting = LocalExecutor(2), threading.Barrier(2)
    await asyncio.gather(executor.run(lambda: meeting.wait(10)), executor.run(lambda: meeting.wait(10)))
    executor.close()


async def test_close_waits_for_what_runs() -> None:
    """Closing returns when every job has ended; later jobs are refused."""
    executor, go, ended = LocalExecutor(1), threading.Event(), threading.Event()

    def until_told(say: Callable[[], None]) -> None:
        go.wait()
        say()

    running = asyncio.ensure_future(executor.run(lambda: until_told(ended.set)))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(asyncio.to_thread(executor.close))
    await asyncio.sleep(0)
    go.set()
    await closing
    assert ended.is_set()
    await running
    with pytest.raises(RuntimeError):
        await executor.run(lambda: None)
