"""What a replica does by the clock: expire sessions, forget replies and evidence, heal and retry what could not be done, sweep once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from agentmem.errors import AgentMemError
from agentmem.sessions.reports import shed

if TYPE_CHECKING:
    from agentmem.config import StorageSettings
    from agentmem.sessions.manager import SessionManager

log = logging.getLogger(__name__)
HEAL_SECONDS = 1.0
TEMP_AGE_SECONDS = 3600.0  # workers that outlive a server may be writing
EXPIRE_AT_ONCE = 256


class Housekeeper:
    """Background tasks of the event loop."""

    def __init__(self, manager: SessionManager, settings: StorageSettings) -> None:
        self.manager = manager
        self.settings = settings
        self._began = time.time()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the tasks on the running loop."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(_every(self.settings.reap_seconds, lambda: self.reap(time.time()))),
            loop.create_task(_every(HEAL_SECONDS, self.manager.sealer.heal)),
            loop.create_task(_every(HEAL_SECONDS, self.manager.sealing.retry)),
            loop.create_task(_every(HEAL_SECONDS, self.shed)),
        ]
        if self.settings.sweep:
            self._tasks.append(loop.create_task(self._sweep()))

    async def stop(self) -> None:
        """Cancel the tasks and wait for them."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def reap(self, now: float) -> int:
        """Delete the sessions whose time has passed at ``now`` (seconds since the epoch); return how many went."""
        manager, count = self.manager, 0
        loop_time = asyncio.get_running_loop().time()
        for session in manager.table:
            manager.generator.forget_replies(session, loop_time)
        try:
            due = await manager.table.off_loop(manager.ledger.expired, now, EXPIRE_AT_ONCE)
        except AgentMemError as error:
            log.warning("expired sessions could not be looked up: %s", error.message)
            return 0
        for tenant, session_id in due:
            try:
                count += await manager.expire(tenant, session_id, now)
            except AgentMemError as error:
                log.warning("expired session %s could not be deleted: %s", session_id, error.message)
        return count

    async def shed(self) -> None:
        """Bound what sessions keep for fidelity reports that wait for idle steps."""
        shed(session.evidence for session in self.manager.table)

    async def _sweep(self) -> None:
        """Remove what the process before this one left: it may have died between forgetting in the ledger and erasing on disk."""
        age = time.time() - self._began
        report = await asyncio.to_thread(self.manager.archive.sweep, min_age_s=age, temp_age_s=max(age, TEMP_AGE_SECONDS))
        if report.orphans or report.temps:
            log.info("swept %d orphaned blocks and %d temporary files", report.orphans, report.temps)


async def _every(seconds: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:
            log.exception("housekeeping failed; it goes on")
