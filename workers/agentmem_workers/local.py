"""The executor of a replica without worker processes: threads of its own, of the lowest priority."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from agentmem import faults
from agentmem.compression.recipe import SealJob
from agentmem.errors import AgentMemError, Draining, InternalError, SealFailed
from agentmem_workers.base import ThreadedExecutor
from agentmem_workers.port import LOST, ParkedJob, SealWork, Setup, executors, lost_error, parked_error, parked_job

LOWEST_PRIORITY = 19
RETRY_SECONDS = 0.2  # before the second attempt; doubled before each further one

log = logging.getLogger(__name__)


class LocalExecutor(ThreadedExecutor):
    """Runs closures on ``threads`` threads, and seal jobs on ``seal_threads`` others that the kernel serves last.

    A job that raises is tried ``max_attempts`` times, then parked, until ``retry_parked`` or the end of the process.
    """

    def __init__(
        self, work: SealWork, *, threads: int = 2, seal_threads: int = 1, max_attempts: int = 3, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        super().__init__(threads)
        self._work = work
        self._max_attempts = max_attempts
        self._retry_seconds = retry_seconds
        self._parked: dict[str, tuple[SealJob, ParkedJob]] = {}
        self._seal_threads = ThreadPoolExecutor(seal_threads, thread_name_prefix="seal-job", initializer=_take_the_back_seat)

    def parked(self) -> list[ParkedJob]:
        """Return the jobs that were given up, the oldest first."""
        with self._lock:
            return [record for _, record in self._parked.values()]

    def retry_parked(self) -> int:
        """Start every parked job anew and return how many there were."""
        with self._lock:
            jobs = [job for job, _ in self._parked.values()]
            self._parked.clear()
        for job in jobs:
            self._board(job)
        return len(jobs)

    def close(self) -> None:
        """Wait for the attempts under way and end the threads; jobs that have not begun raise Draining."""
        self._closing.set()
        self._seal_threads.shutdown(wait=True)
        super().close()

    def _begin(self, key: str, job: SealJob) -> None:
        self._seal_threads.submit(self._fly, key, job)

    def _fly(self, key: str, job: SealJob) -> None:
        error: AgentMemError | None = InternalError(f"seal job {key} ended without a word")
        try:
            self._make(key, job)
            error = None
        except AgentMemError as known:
            error = known
        finally:
            self._land(key, error)

    def _make(self, key: str, job: SealJob) -> None:
        """Make the job's result unless it is there. Raises SealFailed, Draining."""
        with self._lock:
            parked = self._parked.get(key)
        if parked is not None:
            raise parked_error(key, parked[1].attempts, parked[1].error)
        last = ""
        for attempt in range(1, self._max_attempts + 1):
            if self._closing.is_set():
                raise Draining("the executor is closed")
            try:
                faults.point("worker.job")
                self._work.run(job)
                return
            except LOST as error:
                raise lost_error(key, str(error)) from error
            except Exception as error:  # noqa: BLE001 - a job is data and code that may fail in any way; parking tells of it
                last = f"{type(error).__name__}: {error}"
                log.warning("seal job %s failed, attempt %d of %d: %s", key, attempt, self._max_attempts, last)
            if attempt < self._max_attempts:
                self._closing.wait(self._retry_seconds * 2 ** (attempt - 1))
        raise self._park(key, job, last)

    def _park(self, key: str, job: SealJob, last: str) -> SealFailed:
        with self._lock:
            self._parked[key] = job, parked_job(key, self._max_attempts, last, time.time())
        return parked_error(key, self._max_attempts, last)


def _take_the_back_seat() -> None:
    """Let the engine's threads go first whenever they want the processor."""
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere the id of a thread is not one of a process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


@executors.register("local")
def local(setup: Setup) -> LocalExecutor:
    """Return an executor on threads of this process."""
    settings = setup.settings
    return LocalExecutor(setup.work, seal_threads=settings.threads, max_attempts=settings.max_attempts)
