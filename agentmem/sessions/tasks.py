"""Work that must reach its end even when the call that asked for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """Keeps references to running tasks. Event loop only."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start ``work`` and return its task."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work``; when the waiting is cancelled the work goes on."""
        return await asyncio.shield(self.spawn(work))

    async def wait(self, seconds: float | None) -> None:
        """Wait until everything has ended, what it starts meanwhile included, or ``seconds`` have passed."""
        loop = asyncio.get_running_loop()
        end = None if seconds is None else loop.time() + seconds
        while self._running and (end is None or loop.time() < end):
            await asyncio.wait(self._running, timeout=None if end is None else end - loop.time())

    async def end(self, seconds: float) -> None:
        """Wait as ``wait`` does, then cancel what is left and wait for that."""
        await self.wait(seconds)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
