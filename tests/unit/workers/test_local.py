from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from support.seal_jobs import Work, seal_job, until

from agentmem import faults
from agentmem.errors import Draining, SealFailed
from agentmem.stores.records import BlockUnavailable
from agentmem.types import MissReason
from agentmem_workers.local import LOWEST_PRIORITY, LocalExecutor
from agentmem_workers.port import job_key

JOB, OTHER = seal_job("a"), seal_job("b")


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def executor(work: Work) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(work.port, retry_seconds=0.001)
    yield executor
    work.gate.set()
    executor.close()


# -- closures


async def test_jobs_run_off_the_loop(executor: LocalExecutor) -> None:
    """A closure runs on one of the executor's threads, at normal priority; its result or error is the caller's."""
    name, priority = await executor.run(lambda: (threading.current_thread().name, os.getpriority(os.PRIO_PROCESS, 0)))
    assert name.startswith("seal")
    assert priority == os.getpriority(os.PRIO_PROCESS, os.getpid())
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 / 0)


async def test_jobs_run_side_by_side(executor: LocalExecutor) -> None:
    """As many closures run at once as there are threads."""
    meeting = threading.Barrier(2)
    await asyncio.gather(executor.run(lambda: meeting.wait(10)), executor.run(lambda: meeting.wait(10)))


async def test_close_waits_for_what_runs(work: Work) -> None:
    """Closing returns when every closure has ended; later ones are refused."""
    executor, go, ended = LocalExecutor(work.port, threads=1), threading.Event(), threading.Event()

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


# -- seal jobs


async def test_seal_jobs_take_the_back_seat(executor: LocalExecutor, work: Work) -> None:
    """They run on threads of their own, which the kernel serves last and which compute on one thread each."""
    seen: list[tuple[str, int, int]] = []

    def look(_: int) -> None:
        thread = threading.current_thread()
        seen.append((thread.name, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), torch.get_num_threads()))

    work.failures[JOB] = look
    await executor.seal(JOB)
    assert [("seal-job_0", LOWEST_PRIORITY, 1)] == seen


async def test_equal_jobs_at_once_run_once(executor: LocalExecutor, work: Work) -> None:
    """Everybody who asks for a job while it runs gets its end; asked again, it is not computed again."""
    work.gate.clear()
    calls = [asyncio.ensure_future(executor.seal(seal_job("a"))) for _ in range(3)]
    other = asyncio.ensure_future(executor.seal(OTHER))
    await asyncio.to_thread(work.entered.acquire)
    assert not any(call.done() for call in calls)
    work.gate.set()
    await asyncio.gather(*calls, other)
    await executor.seal(JOB)
    assert {JOB: 1, OTHER: 1} == work.runs


async def test_a_caller_that_goes_away_takes_nothing_with_it(executor: LocalExecutor, work: Work) -> None:
    """Cancelling one of two callers ends neither the job nor the other's wait."""
    work.gate.clear()
    gone, stays = (asyncio.ensure_future(executor.seal(JOB)) for _ in range(2))
    await asyncio.to_thread(work.entered.acquire)
    gone.cancel()
    await asyncio.wait([gone])
    assert (True, False) == (gone.cancelled(), stays.done())
    work.gate.set()
    await stays
    assert {JOB} == work.results


async def test_a_job_that_fails_once_is_tried_again(executor: LocalExecutor, work: Work) -> None:
    """An error that does not come back is nobody's business."""
    work.failures[JOB] = lambda run: OSError("disk") if run < 3 else None
    await executor.seal(JOB)
    assert ({JOB: 3}, []) == (work.runs, executor.parked())


async def test_a_poisoned_job_is_parked(executor: LocalExecutor, work: Work) -> None:
    """After three attempts it raises SealFailed to every caller, is listed, is not run again, and keeps no other job."""
    work.failures[JOB] = lambda run: ValueError(f"bad row {run}")
    for _ in range(2):
        with pytest.raises(SealFailed, match="parked after 3 attempts; the last error: ValueError: bad row 3") as caught:
            await executor.seal(JOB)
        assert ("SEAL_PARKED", {"job": job_key(JOB)}) == (caught.value.reason, caught.value.metadata)
    await executor.seal(OTHER)
    (parked,) = executor.parked()
    assert (JOB.name, JOB.block.hex(), 3, "ValueError: bad row 3") == (parked.name, parked.block, parked.attempts, parked.error)
    assert 3 == work.runs[JOB]


async def test_a_parked_job_is_retried_when_asked(executor: LocalExecutor, work: Work) -> None:
    """Retrying starts it at once; what is repaired by then succeeds."""
    work.failures[JOB] = lambda run: ValueError("x") if run <= 3 else None
    with pytest.raises(SealFailed):
        await executor.seal(JOB)
    assert 1 == executor.retry_parked()
    await until(lambda: JOB in work.results)
    await executor.seal(JOB)
    assert ([], 0) == (executor.parked(), executor.retry_parked())


async def test_lost_blocks_do_not_poison_a_job(executor: LocalExecutor, work: Work) -> None:
    """A job whose blocks are gone fails at once and may be asked for again when they are there."""
    work.failures[JOB] = lambda run: BlockUnavailable(MissReason.MISSING, "no file") if run == 1 else None
    with pytest.raises(SealFailed, match="cannot read its input: missing: no file") as caught:
        await executor.seal(JOB)
    assert ("SEAL_INPUT_LOST", []) == (caught.value.reason, executor.parked())
    await executor.seal(JOB)
    assert 2 == work.runs[JOB]


async def test_a_fault_can_be_armed(executor: LocalExecutor, work: Work) -> None:
    """The point worker.job stands before the computation."""
    faults.arm("worker.job", "error", 1)
    await executor.seal(JOB)
    assert 1 == work.runs[JOB]


async def test_closing_ends_every_wait(work: Work) -> None:
    """The job under way ends, those behind it and later ones raise Draining; a job between two attempts is not tried again."""
    executor = LocalExecutor(work.port, retry_seconds=600.0)
    work.gate.clear()
    work.failures[JOB] = lambda _: ValueError("x")
    calls = [asyncio.ensure_future(executor.seal(job)) for job in (JOB, OTHER)]
    await asyncio.to_thread(work.entered.acquire)
    closing = asyncio.ensure_future(asyncio.to_thread(executor.close))
    await until(executor._closing.is_set)
    work.gate.set()
    await closing
    assert [Draining, Draining] == [type(end) for end in await asyncio.gather(*calls, return_exceptions=True)]
    assert {JOB: 1} == work.runs
    with pytest.raises(Draining):
        await executor.seal(OTHER)
