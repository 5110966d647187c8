"""The executor of a replica with worker processes, ``agentmem worker``, which find their work through the metadata store."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from agentmem.compression.recipe import SealJob
from agentmem.errors import AgentMemError, Draining, StorageFailed
from agentmem.stores.jobs import JobRow, JobState, JobStore
from agentmem_workers.base import ThreadedExecutor
from agentmem_workers.place import Place
from agentmem_workers.port import ParkedJob, SealWork, Setup, executors, lost_error, parked_error, parked_job
from agentmem_workers.spec import to_text

POLL_SECONDS = 0.1

log = logging.getLogger(__name__)


class ProcessExecutor(ThreadedExecutor):
    """Runs closures on ``threads`` threads of this process and queues seal jobs for others.

    One thread asks the store for all open jobs with one query, so that a slow store keeps nobody else. While the store refuses, jobs
    wait. Jobs outlive this process: whoever asks again after a restart finds their results, or them in the queue.
    """

    def __init__(self, work: SealWork, place: Place, database: Path, *, threads: int = 2, poll_seconds: float = POLL_SECONDS) -> None:
        super().__init__(threads)
        self._work = work
        self._place = place
        self._place_text = place.to_text()
        self._poll_seconds = poll_seconds
        self._store = JobStore(database, owner=True)
        self._jobs: dict[str, SealJob] = {}  # of every flight
        self._unasked: set[str] = set()  # keys that the store does not have yet
        self._wake = threading.Event()
        self._next_reap = 0.0
        self._trouble = ""  # what was logged last
        try:
            self._store.announce(self._place_text)
        except StorageFailed as error:
            self._complain(error.message)
        # A daemon: a replica that fails to start and never closes this executor can end all the same.
        self._watcher = threading.Thread(target=self._watch, name="seal-watch", daemon=True)
        self._watcher.start()

    def parked(self) -> list[ParkedJob]:
        """Return the parked jobs, the oldest first, also those of earlier processes. Raises StorageFailed."""
        return [parked_job(row.key, row.attempts, row.error, row.changed) for row in self._store.jobs(JobState.PARKED)]

    def retry_parked(self) -> int:
        """Queue every parked job anew and return how many there were. Raises StorageFailed."""
        return self._store.retry()

    def close(self) -> None:
        """End the threads; ``seal`` calls that still wait raise Draining, their jobs stay queued."""
        self._closing.set()
        self._wake.set()
        self._watcher.join()
        for key in list(self._jobs):
            self._land(key, Draining("the executor is closed"))
        self._store.close()
        super().close()

    def _begin(self, key: str, job: SealJob) -> None:
        self._jobs[key] = job
        self._unasked.add(key)
        self._wake.set()

    def _land(self, key: str, error: AgentMemError | None = None) -> None:
        with self._lock:
            del self._jobs[key]
            self._unasked.discard(key)
        super()._land(key, error)

    def _watch(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                if self._jobs:
                    self._ask()
                    self._look()
                self._reap()
            except Exception as error:  # noqa: BLE001 - this thread has to outlive whatever a disk does
                self._complain(str(error))
            if self._jobs:
                self._closing.wait(self._poll_seconds)
            else:
                self._wake.wait(self._place.lease_seconds / 2)

    def _ask(self) -> None:
        """Queue the jobs that are new, but for those whose result is there."""
        with self._lock:
            new = {key: self._jobs[key] for key in self._unasked}
        for key in [key for key, job in new.items() if self._work.exists(job)]:
            del new[key]
            self._land(key)
        if new:
            self._store.enqueue(self._place_text, {key: to_text(job) for key, job in new.items()})
            with self._lock:
                self._unasked -= new.keys()

    def _look(self) -> None:
        """End the flights whose jobs have ended; ask again for jobs that the store has lost."""
        with self._lock:
            keys = self._jobs.keys() - self._unasked
        rows = self._store.find(keys)
        for key in keys:
            row = rows.get(key)
            if row is None:
                with self._lock:
                    self._unasked.add(key)
            elif row.state in (JobState.DONE, JobState.PARKED, JobState.LOST):
                self._land(key, _error_of(row))

    def _reap(self) -> None:
        """Now and then park what no worker will, and say so when there is none."""
        if time.monotonic() < self._next_reap:
            return
        self._next_reap = time.monotonic() + self._place.lease_seconds / 2
        self.num_workers = self._store.reap(self._place.lease_seconds, self._place.max_attempts)
        if self.num_workers:
            self._trouble = ""
        elif self._jobs:
            self._complain(f"no worker runs; start one with: agentmem worker --state-dir {self._store.path.parent}")

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("seal jobs wait: %s", trouble)
        self._trouble = trouble


def _error_of(row: JobRow) -> AgentMemError | None:
    if row.state is JobState.PARKED:
        return parked_error(row.key, row.attempts, row.error)
    return lost_error(row.key, row.error) if row.state is JobState.LOST else None


@executors.register("process")
def process(setup: Setup) -> ProcessExecutor:
    """Return an executor whose seal jobs are done by worker processes."""
    return ProcessExecutor(setup.work, setup.place, setup.database)
