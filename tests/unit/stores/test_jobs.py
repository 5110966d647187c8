"""The queue of seal jobs, its workers, and what is left when one of them dies."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agentmem.errors import ConfigError, StorageFailed
from agentmem.stores import jobs
from agentmem.stores.jobs import JobRow, JobState, JobStore, WorkerRow

LEASE, ATTEMPTS = 30.0, 3
PLACE = "model 1"
A, B = (WorkerRow(name, pid, "host", "cpu", 100.0, 100.0) for pid, name in enumerate("AB"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[..., JobStore]


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Return a function that opens the one file again, as another process would."""
    opened: list[JobStore] = []

    def make(*, owner: bool = False) -> JobStore:
        opened.append(JobStore(tmp_path / "state" / "jobs.sqlite", owner=owner, clock=clock))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def server(open_store: Open) -> JobStore:
    """Return the replica's side, with one job queued."""
    store = open_store(owner=True)
    store.enqueue(PLACE, {"one": "spec 1"})
    return store


@pytest.fixture
def store(server: JobStore, open_store: Open) -> JobStore:
    """Return a worker's side of the same file."""
    store = open_store()
    assert server.path == store.path
    return store


def claim(store: JobStore, worker: WorkerRow = A) -> JobRow | None:
    return store.claim(worker, PLACE, LEASE, ATTEMPTS)


def state(store: JobStore, key: str = "one") -> tuple[JobState, int, str]:
    row = store.find([key])[key]
    return row.state, row.attempts, row.error


# -- the way of a job


def test_a_job_goes_to_one_worker_and_is_done(server: JobStore, store: JobStore) -> None:
    """Who claims it gets its spec; the next worker gets nothing; done is seen by the replica."""
    row = claim(store)
    assert row is not None
    assert ("one", "spec 1", JobState.RUNNING, 1, "A", 1000.0 + LEASE) == (
        row.key,
        row.spec,
        row.state,
        row.attempts,
        row.worker,
        row.lease_until,
    )
    assert claim(store, B) is None
    store.finish("one", "A")
    assert (JobState.DONE, 1, "") == state(server)
    assert claim(store, B) is None


def test_enqueueing_again_changes_nothing_until_the_job_has_ended(server: JobStore, store: JobStore) -> None:
    """A queued or running job stays as it is; one that is done, or whose input was lost, is queued anew with the new spec."""
    server.enqueue(PLACE, {"one": "spec 2"})
    assert claim(store).spec == "spec 1"
    server.enqueue(PLACE, {"one": "spec 2"})
    assert (JobState.RUNNING, 1, "") == state(server)
    for end in (lambda: store.finish("one", "A"), lambda: store.fail("one", "A", "gone", JobState.LOST)):
        end()
        server.enqueue(PLACE, {"one": "spec 3"})
        assert (JobState.QUEUED, 0, "") == state(server)
        assert claim(store).spec == "spec 3"


def test_only_wanted_jobs_are_found(server: JobStore) -> None:
    """One query answers for all keys; a key that is unknown is not in the answer."""
    server.enqueue(PLACE, {"two": "", "three": ""})
    assert {"one", "two"} == server.find(["one", "two", "four"]).keys()
    assert ["one", "three", "two"] == [row.key for row in server.jobs()]


def test_old_jobs_that_have_ended_go(server: JobStore, store: JobStore, clock: Clock) -> None:
    """A done job can be seen for an hour, a parked one until somebody cares."""
    server.enqueue(PLACE, {"bad": ""})
    for _ in range(2):
        key = claim(store).key
        store.fail(key, "A", "no", JobState.PARKED) if key == "bad" else store.finish(key, "A")
    clock.now += jobs.KEPT_SECONDS - 1
    server.enqueue(PLACE, {})
    assert {"one", "bad"} == {row.key for row in server.jobs()}
    clock.now += 2
    server.enqueue(PLACE, {})
    assert ["bad"] == [row.key for row in server.jobs()]


# -- failures


def test_a_failed_job_waits_and_lets_others_go_first(server: JobStore, store: JobStore, clock: Clock) -> None:
    """It is not claimed before its pause is over, and after it only when no job with fewer attempts waits."""
    claim(store)
    store.fail("one", "A", "ValueError: x", JobState.QUEUED, pause=5.0)
    assert (JobState.QUEUED, 1, "ValueError: x") == state(server)
    assert claim(store) is None
    clock.now += 5.0
    server.enqueue(PLACE, {"two": ""})
    assert ["two", "one"] == [claim(store, worker).key for worker in (A, B)]


def test_a_worker_that_falls_silent_loses_its_job(server: JobStore, store: JobStore, clock: Clock) -> None:
    """After the lease another worker claims the job; what the first says of it later counts only if it has the result."""
    claim(store)
    clock.now += LEASE - 1
    assert claim(store, B) is None
    clock.now += 1
    assert ("one", 2) == ((row := claim(store, B)).key, row.attempts)
    assert [B.id] == [worker.id for worker in server.workers()]
    store.fail("one", "A", "late", JobState.PARKED)
    assert (JobState.RUNNING, 2, "") == state(server)
    store.finish("one", "A")
    for name in "AB":
        store.fail("one", name, "useless", JobState.QUEUED)
    assert (JobState.DONE, 2, "") == state(server)


def test_a_heartbeat_extends_the_lease(server: JobStore, store: JobStore, clock: Clock) -> None:
    """A worker that is heard of keeps its job for as long as it takes, and is listed."""
    claim(store)
    for _ in range(5):
        clock.now += LEASE - 1
        store.heartbeat(A, LEASE)
        assert claim(store, B) is None
    assert 1 == server.reap(LEASE, ATTEMPTS)
    assert [replace(A, heartbeat=clock.now)] == server.workers()


@pytest.mark.parametrize("by_server", [True, False])
def test_a_job_that_kills_its_workers_is_parked(server: JobStore, store: JobStore, clock: Clock, *, by_server: bool) -> None:
    """After as many deaths as it has attempts nobody gets it any more, whether a worker or the replica is the first to see."""
    for attempt in range(ATTEMPTS):
        assert attempt + 1 == claim(store, replace(A, id=f"w{attempt}")).attempts
        clock.now += LEASE
    if by_server:
        assert 0 == server.reap(LEASE, ATTEMPTS)
    assert claim(store) is None
    assert (JobState.PARKED, ATTEMPTS, "worker w2 died or hung in it") == state(server)


def test_the_last_error_survives_a_later_death(server: JobStore, store: JobStore, clock: Clock) -> None:
    """A job that first raised and then killed its worker is parked with both."""
    claim(store)
    store.fail("one", "A", "ValueError: x", JobState.QUEUED)
    for _ in range(2):
        claim(store)
        clock.now += LEASE
    server.reap(LEASE, ATTEMPTS)
    assert "worker A died or hung in it; before that: ValueError: x" == state(server)[2]


def test_parked_jobs_are_retried_by_name_or_all(server: JobStore, store: JobStore) -> None:
    """Retrying makes a parked job new; others are left alone."""
    server.enqueue(PLACE, {"two": "", "three": ""})
    for _ in range(3):
        store.fail(claim(store).key, "A", "no", JobState.PARKED)
    server.enqueue(PLACE, {"four": ""})
    assert {"one", "two", "three"} == {row.key for row in server.jobs(JobState.PARKED)}
    assert (0, 1) == (server.retry("four"), server.retry("two"))
    assert (JobState.QUEUED, 0, "no") == state(server, "two")
    assert 2 == server.retry()


def test_a_worker_that_leaves_gives_its_job_back(server: JobStore, store: JobStore) -> None:
    """Its job is queued again at once, as if never tried; the worker is forgotten."""
    claim(store)
    store.leave("A")
    assert (JobState.QUEUED, 0, "") == state(server)
    assert [] == server.workers()
    assert 1 == claim(store, B).attempts


def test_threads_never_claim_the_same_job(server: JobStore, open_store: Open) -> None:
    """Of eight workers on two connections each of 40 jobs goes to one."""
    server.enqueue(PLACE, {f"job {index}": "" for index in range(39)})
    claimed: list[str] = []

    def work(store: JobStore, name: str) -> None:
        while (row := claim(store, replace(A, id=name))) is not None:
            claimed.append(row.key)

    stores = open_store(), open_store()
    threads = [threading.Thread(target=work, args=(stores[index % 2], f"w{index}")) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 40 == len(claimed) == len(set(claimed))


# -- what a worker has to know


def test_a_worker_reads_what_the_server_announced(open_store: Open) -> None:
    """Before that it is told that no server asks for workers; later announcements of the same change nothing."""
    worker, server = open_store(), open_store(owner=True)
    with pytest.raises(ConfigError, match="no server has asked for workers in .*state; one with workers.executor=process"):
        worker.place()
    server.announce(PLACE)
    server.enqueue(PLACE, {"one": ""})
    server.announce(PLACE)
    assert (PLACE, 1) == (worker.place(), len(worker.jobs()))


def test_another_place_ends_the_workers_of_the_first(server: JobStore, store: JobStore) -> None:
    """Jobs and workers of a server with another model go, and a worker of the old one is refused."""
    claim(store)
    server.announce("model 2")
    assert ([], []) == (server.jobs(), server.workers())
    with pytest.raises(ConfigError, match="start it again"):
        claim(store)


def test_an_altered_place_is_not_believed(server: JobStore, store: JobStore) -> None:
    """The text is kept with its digest; the server puts it right."""
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE place SET text = 'model 2'")
    connection.close()
    with pytest.raises(ConfigError, match="altered"):
        store.place()
    server.announce(PLACE)
    assert PLACE == store.place()


# -- the file


def damage(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to be taken for one " * 100)


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize("spoil", [damage, newer])
def test_only_the_server_replaces_a_file_that_is_of_no_use(
    open_store: Open, server: JobStore, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A worker says what is wrong and touches nothing; the server begins with an empty file and says so."""
    server.close()
    spoil(server.path)
    with pytest.raises(StorageFailed, match="the job queue .* cannot be used"):
        open_store().jobs()
    with caplog.at_level(logging.WARNING):
        server.enqueue(PLACE, {"two": ""})
    assert "replaced by an empty one" in caplog.text
    assert ["two"] == [row.key for row in open_store().jobs()]


def test_a_removed_file_is_seen(server: JobStore, store: JobStore, open_store: Open) -> None:
    """Both sides go on with the file that has the name, not with one that nobody else sees."""
    claim(store)
    server.path.unlink()
    server.enqueue(PLACE, {"two": ""})
    assert "two" == claim(store).key
    assert ["two"] == [row.key for row in open_store().jobs()]


def test_a_busy_file_is_refused_in_time_and_works_again(
    server: JobStore, store: JobStore, monkeypatch: pytest.MonkeyPatch, open_store: Open
) -> None:
    """While another process writes, a writer gives up after BUSY_SECONDS, a reader does not wait at all."""
    monkeypatch.setattr(jobs, "BUSY_SECONDS", 0.05)
    store = open_store()
    store.place()
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="locked"):
        claim(store)
    assert (JobState.QUEUED, 0, "") == state(server)
    other.execute("ROLLBACK")
    other.close()
    assert claim(store) is not None


def test_a_folder_that_cannot_be_is_storage_failed(tmp_path: Path) -> None:
    """Where no folder can be made every call is refused; the next one tries again."""
    (tmp_path / "state").touch()
    store = JobStore(tmp_path / "state" / "jobs.sqlite", owner=True)
    with pytest.raises(StorageFailed, match="cannot be opened"):
        store.announce(PLACE)
    (tmp_path / "state").unlink()
    store.announce(PLACE)
    store.close()
