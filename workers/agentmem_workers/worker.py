"""A worker process: it takes seal jobs from the metadata store, one at a time, until it is told to stop."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentmem import faults
from agentmem.compression.recipe import SealJob
from agentmem.errors import StorageFailed
from agentmem.stores.jobs import JobRow, JobState, JobStore, WorkerRow
from agentmem_workers.place import Place
from agentmem_workers.port import LOST
from agentmem_workers.spec import from_text

POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0  # before the second attempt; doubled before each further one

log = logging.getLogger(__name__)
Stopped = Callable[[float], bool]  # waits so many seconds at most, and says whether to stop


class Worker:
    """Takes the jobs of ``place`` from ``store`` and hands them to ``run``, which makes their results unless they are there."""

    def __init__(
        self,
        store: JobStore,
        place: Place,
        run: Callable[[SealJob], None],
        device: str,
        *,
        poll_seconds: float = POLL_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        now = time.time()
        self.row = WorkerRow(uuid.uuid4().hex[:12], os.getpid(), socket.gethostname(), device, now, now)
        self._store = store
        self._place = place
        self._place_text = place.to_text()
        self._run = run
        self._poll_seconds = poll_seconds
        self._retry_seconds = retry_seconds

    def work(self, stopped: Stopped, idle_exit: float | None = None) -> int:
        """Do jobs until ``stopped``, or until there was none for ``idle_exit`` seconds; return how many were tried.

        A job under way is finished first. While the store refuses, wait. Raises ConfigError once the server is another.
        """
        done, idle = 0, 0.0
        with self._heart():
            while not stopped(0.0):
                try:
                    job = self._store.claim(self.row, self._place_text, self._place.lease_seconds, self._place.max_attempts)
                except StorageFailed as error:
                    log.warning("no job can be taken: %s", error.message)
                    stopped(self._poll_seconds)
                    continue
                if job is not None:
                    self._do(job)
                    done, idle = done + 1, 0.0
                elif idle_exit is not None and idle >= idle_exit:
                    break
                else:
                    stopped(self._poll_seconds)
                    idle += self._poll_seconds
        return done

    def _do(self, row: JobRow) -> None:
        """Do one job and tell the store what came of it. What cannot be told is found out: the lease ends, and the result is there."""
        try:
            ended = self._attempt(row)
            if ended is None:
                self._store.finish(row.key, self.row.id)
            else:
                state, error = ended
                log.warning("seal job %s, attempt %d of %d: %s", row.key, row.attempts, self._place.max_attempts, error)
                self._store.fail(row.key, self.row.id, error, state, pause=self._retry_seconds * 2 ** (row.attempts - 1))
        except StorageFailed as error:
            log.warning("seal job %s has ended, and the store does not know: %s", row.key, error.message)

    def _attempt(self, row: JobRow) -> tuple[JobState, str] | None:
        """Run the job; return None for success, else the state that it goes to and the error."""
        try:
            faults.point("worker.job")
            self._run(from_text(row.spec))
            return None
        except LOST as error:
            return JobState.LOST, str(error)
        except Exception as error:  # noqa: BLE001 - a job is data and code that may fail in any way; parking tells of it
            state = JobState.PARKED if row.attempts >= self._place.max_attempts else JobState.QUEUED
            return state, f"{type(error).__name__}: {error}"

    @contextmanager
    def _heart(self) -> Iterator[None]:
        """While the context lasts the store hears three times a lease that this worker lives; at its end, that it goes."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self._place.lease_seconds / 3):
                try:
                    self._store.heartbeat(self.row, self._place.lease_seconds)
                except StorageFailed as error:
                    log.warning("no heartbeat: %s", error.message)

        self._store.heartbeat(self.row, self._place.lease_seconds)
        thread = threading.Thread(target=beat, name="heart")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            try:
                self._store.leave(self.row.id)
            except StorageFailed as error:
                log.warning("the store does not know that this worker ends: %s", error.message)


@contextmanager
def stop_signals() -> Iterator[Stopped]:
    """Give a function that waits, and says whether SIGTERM or SIGINT came since the context began. Main thread only."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # noqa: FBT003 - takes no keyword
    # The interpreter writes into the socket whichever thread gets the signal, so that waiting for it ends at once.
    before_fd = signal.set_wakeup_fd(writer.fileno())
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda seconds: bool(select.select([reader], [], [], seconds)[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        reader.close()
        writer.close()
