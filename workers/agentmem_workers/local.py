"""The executor of a replica without worker processes: a small thread pool of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


class LocalExecutor:
    """Runs seal jobs on threads. Jobs wait for disks most of the time, so they leave the processor to the engine.

    Each computes on one thread: see ``Engine`` for what more would cost.
    """

    def __init__(self, threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="seal", initializer=partial(torch.set_num_threads, 1))

    async def run(self, job: Callable[[], T]) -> T:
        """Run ``job`` off the event loop and return what it returns or raises."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    def close(self) -> None:
        """Wait for the jobs under way and end the threads."""
        self._threads.shutdown(wait=True)
