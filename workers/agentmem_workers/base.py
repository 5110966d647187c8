"""What executors share: threads for closures, and one flight for equal seal jobs."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from agentmem.compression.recipe import SealJob
from agentmem.errors import AgentMemError, Draining
from agentmem_workers.port import ParkedJob, job_key

T = TypeVar("T")


class ThreadedExecutor(ABC):
    """See ``Executor``. Closures wait for disks most of the time, so their threads leave the processor to the engine.

    Each computes on one thread: see ``Engine`` for what more would cost.
    """

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="seal", initializer=partial(torch.set_num_threads, 1))
        self._lock = threading.Lock()  # guards flights, and what subclasses start
        self._flights: dict[str, Future[None]] = {}
        self._closing = threading.Event()
        self.num_workers = 0

    async def run(self, job: Callable[[], T]) -> T:
        """Run ``job`` off the event loop and return what it returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    async def seal(self, job: SealJob) -> None:
        """Return when the job's result is there. See ``Executor.seal``."""
        # Shielded: the other callers of the job want its result even if this one goes away.
        await asyncio.shield(asyncio.wrap_future(self._board(job)))

    @abstractmethod
    def parked(self) -> list[ParkedJob]:
        """Return the jobs that were given up. See ``Executor.parked``."""

    @abstractmethod
    def retry_parked(self) -> int:
        """Start every parked job anew. See ``Executor.retry_parked``."""

    def close(self) -> None:
        """Wait for the jobs under way and end the threads."""
        self._threads.shutdown(wait=True)

    @abstractmethod
    def _begin(self, key: str, job: SealJob) -> None:
        """Start ``job``, which is in no flight, and return at once; ``_land`` is called when it ends. Under the lock."""

    def _board(self, job: SealJob) -> Future[None]:
        """Return the flight of ``job``, started if there is none."""
        key = job_key(job)
        with self._lock:
            if self._closing.is_set():
                raise Draining("the executor is closed")
            if key not in self._flights:
                self._flights[key] = Future()
                self._begin(key, job)
            return self._flights[key]

    def _land(self, key: str, error: AgentMemError | None = None) -> None:
        """End the flight of ``key``; its callers return, or raise ``error``."""
        with self._lock:
            future = self._flights.pop(key)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
