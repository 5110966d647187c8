"""Worker processes, real ones: they find their work, die in the middle of it, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.seal_jobs import PLACE, seal_job, store_blocks, until

from agentmem.compression.sealing import load_unit, run_seal_job
from agentmem.errors import SealFailed
from agentmem.stores.jobs import JobState, JobStore
from agentmem.stores.state import StateLock
from agentmem_workers.port import DATABASE, SealWork, job_key
from agentmem_workers.process import ProcessExecutor

MAIN = "from agentmem.cli.main import main; main()"
LIVES_SECONDS = 60.0  # no worker of a test lives longer, whatever goes wrong
LEASE = 1.0

JOBS = [seal_job(name) for name in "abc"]


class WorkerProcess:
    """One ``agentmem worker``, started and not waited for."""

    def __init__(self, state: Path, *options: str, faults: str = "") -> None:
        env = {**os.environ, "AGENTMEM_FAULTS": faults, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", MAIN, "worker", "--state-dir", str(state), "--json", *options]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._watchdog = threading.Timer(LIVES_SECONDS, self.process.kill)
        self._watchdog.start()

    def ready(self) -> str:
        """Wait until it takes jobs and return its id."""
        return str(json.loads(self.process.stdout.readline())["id"])

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate()
        self._watchdog.cancel()
        return self.process.returncode


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts workers on the test's state directory; they end with the test."""
    workers: list[WorkerProcess] = []

    def make(*options: str, faults: str = "") -> WorkerProcess:
        workers.append(WorkerProcess(tmp_path, *options, faults=faults))
        return workers[-1]

    yield make
    for worker in workers:
        worker.end(signal.SIGKILL)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[ProcessExecutor]:
    """Return the server's side: it holds the lock of the state directory and has archived the blocks of three jobs."""
    files = store_blocks(tmp_path, *JOBS)
    lock = StateLock(tmp_path)
    work = SealWork(lambda job: run_seal_job(job, files), lambda job: files.exists(job.block, job.name))
    executor = ProcessExecutor(work, replace(PLACE, lease_seconds=LEASE, max_attempts=2), tmp_path / DATABASE)
    yield executor
    executor.close()
    lock.release()


@pytest.fixture
def store(executor: ProcessExecutor) -> Iterator[JobStore]:
    """Return the queue, to look at."""
    store = JobStore(executor._store.path)
    yield store
    store.close()


@pytest.mark.timeout(150)
async def test_a_worker_killed_in_a_job_loses_nothing(executor: ProcessExecutor, store: JobStore, start: Start, tmp_path: Path) -> None:
    """The survivor does other jobs meanwhile and then the dead one's; told to end, it leaves cleanly."""
    first = start(faults="worker.job:stall:1")
    calls = [asyncio.ensure_future(executor.seal(JOBS[0]))]
    name = await asyncio.to_thread(first.ready)
    await until(lambda: [row.worker for row in store.jobs(JobState.RUNNING)] == [name])
    second = start()
    await asyncio.to_thread(second.ready)
    await executor.seal(JOBS[1])
    assert [JobState.RUNNING] == [row.state for row in store.find([job_key(JOBS[0])]).values()]
    assert -signal.SIGKILL == await asyncio.to_thread(first.end, signal.SIGKILL)
    await asyncio.gather(*calls, executor.seal(JOBS[2]))
    row = store.find([job_key(JOBS[0])])[job_key(JOBS[0])]
    assert (JobState.DONE, 2) == (row.state, row.attempts)
    files = store_blocks(tmp_path)
    assert all(load_unit(job, files).keep.numel() for job in JOBS)
    assert 0 == await asyncio.to_thread(second.end, signal.SIGTERM)
    assert [] == store.workers()


@pytest.mark.timeout(150)
async def test_a_job_that_kills_worker_after_worker_is_parked_until_it_is_retried(
    executor: ProcessExecutor, store: JobStore, start: Start
) -> None:
    """Two deaths are as many as it may cost; the server tells who waits, and an operator may try once more."""
    doomed = [start(faults="worker.job:kill:1") for _ in range(2)]
    with pytest.raises(SealFailed, match="parked after 2 attempts; the last error: worker .* died or hung in it"):
        await executor.seal(JOBS[0])
    assert [-signal.SIGKILL] * 2 == [await asyncio.to_thread(worker.end) for worker in doomed]
    (parked,) = executor.parked()
    assert (JOBS[0].name, 2) == (parked.name, parked.attempts)
    assert 1 == executor.retry_parked()
    assert 0 == await asyncio.to_thread(start("--once").end)
    await executor.seal(JOBS[0])
    assert [(JobState.DONE, 1)] == [(row.state, row.attempts) for row in store.jobs()]
