from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.seal_jobs import PLACE, Work, seal_job

from agentmem import faults
from agentmem.errors import ConfigError
from agentmem.stores import jobs
from agentmem.stores.jobs import JobState, JobStore
from agentmem.stores.records import BlockUnavailable
from agentmem.types import MissReason
from agentmem_workers.port import DATABASE, job_key
from agentmem_workers.spec import to_text
from agentmem_workers.worker import Worker, stop_signals

JOB, OTHER = seal_job("a"), seal_job("b")
KEY = job_key(JOB)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """Return the queue, with two jobs."""
    store = JobStore(tmp_path / DATABASE, owner=True)
    store.enqueue(PLACE.to_text(), {job_key(job): to_text(job) for job in (JOB, OTHER)})
    yield store
    store.close()


@pytest.fixture
def worker(store: JobStore, work: Work) -> Worker:
    return Worker(store, PLACE, work.run, "cpu", poll_seconds=0.002, retry_seconds=0.0)


def never(_: float) -> bool:
    """Wait for nothing and go on."""
    return False


def after(count: int) -> Callable[[float], bool]:
    """Stop at the ``count``-th look before a job."""
    looks = iter(range(count - 1))
    return lambda seconds: seconds == 0 and next(looks, None) is None


def states(store: JobStore) -> dict[str, tuple[JobState, int, str]]:
    return {row.key: (row.state, row.attempts, row.error) for row in store.jobs()}


def test_a_worker_does_what_is_queued(store: JobStore, worker: Worker, work: Work) -> None:
    """Each job runs once and is done; idle for long enough, the worker ends and is forgotten."""
    seen: list[int] = []
    work.failures[JOB] = lambda _: seen.append(len(store.workers()))
    assert 2 == worker.work(never, idle_exit=0.0)
    assert {JOB: 1, OTHER: 1} == work.runs
    assert {(JobState.DONE, 1, "")} == set(states(store).values())
    assert ([1], []) == (seen, store.workers())


def test_idle_time_counts_from_the_last_job(store: JobStore, work: Work) -> None:
    """With a limit of two polls the worker looks three times before it ends."""
    worker = Worker(store, PLACE, work.run, "cpu", poll_seconds=1.0)
    waits: list[float] = []
    worker.work(lambda seconds: waits.append(seconds) or False, idle_exit=2.0)
    assert [1.0, 1.0] == [seconds for seconds in waits if seconds]


def test_told_to_stop_it_takes_no_further_job(store: JobStore, worker: Worker, work: Work) -> None:
    """The job under way is finished, the other one stays queued."""
    assert 1 == worker.work(after(2))
    assert {JobState.DONE, JobState.QUEUED} == {state for state, _, _ in states(store).values()}
    assert 1 == sum(work.runs.values())


def test_a_job_that_raises_is_retried_then_parked(store: JobStore, worker: Worker, work: Work) -> None:
    """After three attempts the last error stands beside it; other jobs are done all the same."""
    work.failures[JOB] = lambda run: ValueError(f"bad row {run}")
    assert 4 == worker.work(never, idle_exit=0.0)
    assert (JobState.PARKED, 3, "ValueError: bad row 3") == states(store)[KEY]
    assert (JobState.DONE, 1, "") == states(store)[job_key(OTHER)]


def test_lost_input_is_told_at_once(store: JobStore, worker: Worker, work: Work) -> None:
    """A job whose blocks are gone is not tried again."""
    work.failures[JOB] = lambda _: BlockUnavailable(MissReason.MISSING, "no file")
    worker.work(never, idle_exit=0.0)
    assert (JobState.LOST, 1, "missing: no file") == states(store)[KEY]


def test_a_job_that_cannot_be_read_is_parked(store: JobStore, worker: Worker) -> None:
    """What is no job of this version fails like any other."""
    store.enqueue(PLACE.to_text(), {"strange": "{}"})
    worker.work(never, idle_exit=0.0)
    assert JobState.PARKED is states(store)["strange"][0]
    assert "not a seal job" in states(store)["strange"][2]


def test_an_armed_fault_is_an_error_of_the_job(store: JobStore, worker: Worker) -> None:
    """The point worker.job stands between taking a job and doing it."""
    faults.arm("worker.job", "error", 1)
    assert 3 == worker.work(never, idle_exit=0.0)
    assert {JobState.DONE} == {state for state, _, _ in states(store).values()}


def test_a_long_job_keeps_its_lease(store: JobStore, work: Work) -> None:
    """While a job runs the heart extends its lease again and again."""
    place = replace(PLACE, lease_seconds=0.05)
    store.enqueue(place.to_text(), {KEY: to_text(JOB)})
    worker = Worker(store, place, work.run, "cpu")
    work.gate.clear()
    thread = threading.Thread(target=worker.work, args=(never, 0.0))
    thread.start()
    work.entered.acquire()
    leases = {store.jobs()[0].lease_until}
    while len(leases) < 4:
        leases.add(store.jobs()[0].lease_until)
    work.gate.set()
    thread.join()
    assert (JobState.DONE, 1, "") == states(store)[KEY]


def test_a_server_with_another_model_ends_the_worker(store: JobStore, worker: Worker) -> None:
    """It is told to start again, by the error that the command prints."""
    store.announce(replace(PLACE, max_attempts=9).to_text())
    with pytest.raises(ConfigError, match="start it again"):
        worker.work(never)


def test_a_store_that_is_down_is_waited_for(
    store: JobStore, worker: Worker, work: Work, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs are neither taken nor lost; what ended meanwhile is found out later, and done once."""
    monkeypatch.setattr(jobs, "BUSY_SECONDS", 0.01)
    store.close()
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)

    def lock(_: int) -> None:
        other.execute("BEGIN IMMEDIATE")

    def unlock(seconds: float) -> bool:
        if seconds and other.in_transaction:
            other.execute("ROLLBACK")
        return False

    work.failures[JOB] = work.failures[OTHER] = lock
    assert 2 == worker.work(unlock, idle_exit=0.1)
    other.close()
    assert {JOB: 1, OTHER: 1} == work.runs
    assert "the store does not know" in caplog.text
    assert "no job can be taken" in caplog.text
    assert {JobState.RUNNING, JobState.QUEUED} >= {state for state, _, _ in states(store).values()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_and_is_remembered(number: signal.Signals) -> None:
    """The function says stop at once, and from then on; afterwards signals do what they did before."""
    before = signal.getsignal(number)
    with stop_signals() as stopped:
        assert not stopped(0.0)
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        assert stopped(30.0)
        assert stopped(0.0)
    assert before is signal.getsignal(number)
