from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.seal_jobs import PLACE, Work, seal_job, until

from agentmem.errors import Draining, SealFailed
from agentmem.stores import jobs
from agentmem.stores.jobs import JobState, JobStore, WorkerRow
from agentmem_workers.port import DATABASE, job_key
from agentmem_workers.process import ProcessExecutor
from agentmem_workers.spec import from_text

JOB, OTHER = seal_job("a"), seal_job("b")
KEY = job_key(JOB)
WORKER = WorkerRow("w", 1, "host", "cpu", 0.0, 0.0)


@pytest.fixture
def work() -> Work:
    return Work()


def make(work: Work, state: Path) -> ProcessExecutor:
    return ProcessExecutor(work.port, PLACE, state / DATABASE, poll_seconds=0.005)


@pytest.fixture
def executor(work: Work, tmp_path: Path) -> Iterator[ProcessExecutor]:
    executor = make(work, tmp_path)
    yield executor
    executor.close()


@pytest.fixture
def store(executor: ProcessExecutor) -> Iterator[JobStore]:
    """Return the worker's side."""
    store = JobStore(executor._store.path)
    yield store
    store.close()


async def claim(store: JobStore) -> str:
    """Wait until there is a job, take it and return its key."""
    found: list[str] = []

    def take() -> bool:
        row = store.claim(WORKER, PLACE.to_text(), PLACE.lease_seconds, PLACE.max_attempts)
        found.extend([row.key] if row else [])
        return row is not None

    await until(take)
    return found[0]


async def test_a_job_is_queued_and_waited_for(executor: ProcessExecutor, store: JobStore) -> None:
    """A worker finds exactly the job that was asked for, once for two callers; both hear when it is done."""
    calls = [asyncio.ensure_future(executor.seal(JOB)) for _ in range(2)]
    assert KEY == await claim(store)
    (row,) = store.jobs()
    assert JOB == from_text(row.spec)
    assert not any(call.done() for call in calls)
    store.finish(KEY, "w")
    await asyncio.gather(*calls)


async def test_a_result_that_exists_is_not_asked_for(executor: ProcessExecutor, work: Work, store: JobStore) -> None:
    """Neither is it when it was made by another way; a result that has gone since is made again."""
    work.results.add(JOB)
    await executor.seal(JOB)
    assert [] == store.jobs()
    for _ in range(2):
        work.results.clear()
        call = asyncio.ensure_future(executor.seal(JOB))
        store.finish(await claim(store), "w")
        await call


async def test_open_jobs_cost_one_query(executor: ProcessExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs are open, the store is asked for all of them at once."""
    asked: list[int] = []
    find = JobStore.find
    monkeypatch.setattr(JobStore, "find", lambda self, keys: asked.append(len(keys)) or find(self, keys))
    calls = [asyncio.ensure_future(executor.seal(seal_job(str(index)))) for index in range(20)]
    await until(lambda: 20 in asked)
    for _ in calls:
        store.finish(await claim(store), "w")
    await asyncio.gather(*calls)
    assert max(asked) == 20


async def test_jobs_outlive_the_server(executor: ProcessExecutor, work: Work, store: JobStore, tmp_path: Path) -> None:
    """Closing ends the wait, not the job: a worker may do it meanwhile, and the next server finds it queued or done."""
    call = asyncio.ensure_future(executor.seal(JOB))
    assert KEY == await claim(store)
    await asyncio.to_thread(executor.close)
    with pytest.raises(Draining):
        await call
    with pytest.raises(Draining):
        await executor.seal(OTHER)
    following = make(work, tmp_path)
    call = asyncio.ensure_future(following.seal(JOB))
    await until(lambda: following._jobs and not following._unasked)
    store.finish(KEY, "w")
    await call
    following.close()


async def test_closures_run_here(executor: ProcessExecutor) -> None:
    """What is not a seal job needs no worker."""
    assert 3 == await executor.run(lambda: 3)


# -- failures


async def test_a_parked_job_is_heard_of_seen_and_retried(executor: ProcessExecutor, store: JobStore) -> None:
    """SealFailed comes at the parking and at once to whoever asks later; after a retry the job is like new."""
    call = asyncio.ensure_future(executor.seal(JOB))
    store.fail(await claim(store), "w", "ValueError: x", JobState.PARKED)
    for waiting in (call, executor.seal(JOB)):
        with pytest.raises(SealFailed, match=f"{KEY} is parked after 1 attempts; the last error: ValueError: x"):
            await waiting
    (parked,) = executor.parked()
    assert (JOB.name, JOB.block.hex(), 1, "ValueError: x") == (parked.name, parked.block, parked.attempts, parked.error)
    assert (1, 0) == (executor.retry_parked(), executor.retry_parked())
    assert KEY == await claim(store)
    call = asyncio.ensure_future(executor.seal(JOB))
    await until(lambda: executor._jobs and not executor._unasked)
    store.finish(KEY, "w")
    await call


async def test_lost_input_is_no_parking(executor: ProcessExecutor, store: JobStore) -> None:
    """The caller hears why, and may ask again."""
    for _ in range(2):
        call = asyncio.ensure_future(executor.seal(JOB))
        store.fail(await claim(store), "w", "missing: no file", JobState.LOST)
        with pytest.raises(SealFailed, match="cannot read its input: missing: no file"):
            await call
    assert [] == executor.parked()


async def test_the_server_parks_what_its_dead_workers_leave(work: Work, tmp_path: Path) -> None:
    """A job whose last attempt ended without a word is given up even if no worker is left to see it."""
    place = replace(PLACE, lease_seconds=0.02, max_attempts=1)
    executor, store = ProcessExecutor(work.port, place, tmp_path / DATABASE, poll_seconds=0.005), JobStore(tmp_path / DATABASE)
    call = asyncio.ensure_future(executor.seal(JOB))
    await until(lambda: store.claim(WORKER, place.to_text(), place.lease_seconds, place.max_attempts) is not None)
    with pytest.raises(SealFailed, match="worker w died or hung in it"):
        await call
    store.close()
    executor.close()


async def test_a_store_that_is_down_keeps_jobs_waiting_and_nobody_else(
    executor: ProcessExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the file is locked or gone closures run as ever; the trouble is logged once; jobs are queued when it is back."""
    monkeypatch.setattr(jobs, "BUSY_SECONDS", 0.01)
    executor._store.close()  # opened again, with the shorter wait
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tries: list[object] = []
    enqueue = JobStore.enqueue
    monkeypatch.setattr(JobStore, "enqueue", lambda *given: tries.append(given) or enqueue(*given))
    with caplog.at_level(logging.WARNING):
        call = asyncio.ensure_future(executor.seal(JOB))
        await until(lambda: len(tries) > 3)
        assert 3 == await executor.run(lambda: 3)
        other.execute("ROLLBACK")
        other.close()
        assert KEY == await claim(store)
    assert 1 == caplog.text.count("locked")
    store.path.unlink()  # and with it the job, which is asked for again
    assert KEY == await claim(store)
    store.finish(KEY, "w")
    await call


async def test_workers_are_counted(work: Work, tmp_path: Path) -> None:
    """Whether there are jobs or not, the number follows who comes and goes."""
    executor = ProcessExecutor(work.port, replace(PLACE, lease_seconds=0.05), tmp_path / DATABASE)
    store = JobStore(tmp_path / DATABASE)
    store.heartbeat(WORKER, 30.0)
    await until(lambda: executor.num_workers == 1)
    await until(lambda: executor.num_workers == 0)  # not heard of again
    store.close()
    executor.close()


async def test_a_server_without_workers_says_so(executor: ProcessExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """The line that starts one is in the log, once."""
    with caplog.at_level(logging.WARNING):
        call = asyncio.ensure_future(executor.seal(JOB))
        await until(lambda: "no worker runs; start one with: agentmem worker --state-dir" in caplog.text)
    call.cancel()


async def test_a_state_that_cannot_be_written_does_not_keep_the_server_from_starting(
    work: Work, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The announcement fails and is made with the first job."""
    (tmp_path / "state").touch()
    executor = make(work, tmp_path / "state")
    assert "cannot be opened" in caplog.text
    (tmp_path / "state").unlink()
    call = asyncio.ensure_future(executor.seal(JOB))
    store = JobStore(tmp_path / "state" / DATABASE)
    await until((tmp_path / "state" / DATABASE).exists)
    store.finish(await claim(store), "w")
    await call
    store.close()
    executor.close()
