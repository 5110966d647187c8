"""Waiting for what another process will do, without guessing how long it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PAUSE_SECONDS = 0.02


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Return as soon as ``condition`` holds. Raises TimeoutError after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - the other process has no event for it
            await asyncio.sleep(PAUSE_SECONDS)
