"""One session's background task: works while nobody writes, and gives way at once to whoever wants to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from agentmem.errors import AgentMemError, StaleOwner

if TYPE_CHECKING:
    from agentmem.compression.recipe import SealJob
    from agentmem.engine.engine import Engine
    from agentmem.engine.run import EngineRequest, Run
    from agentmem.memory.sealed import SealedUnit
    from agentmem.sessions.session import Session

log = logging.getLogger(__name__)


class Pipeline:
    """Event loop only. ``advance`` does the first thing that is left to do and returns whether there was any.

    What changes the session happens inside ``alone``, one thing at a time: that is what a writer waits for. All else (seal jobs, reading
    results) goes on while somebody writes and is looked at again afterwards.
    """

    def __init__(self, session: Session, engine: Engine, advance: Callable[[Pipeline], Awaitable[bool]]) -> None:
        self.session = session
        self.wanted = False  # bring the session's memory back
        self.units: dict[SealJob, SealedUnit] = {}  # results that were read and that the session does not attend to yet
        self.made: set[SealJob] = set()  # jobs whose results this session has had made and not read yet
        self._engine = engine
        self._advance = advance
        self._alone = asyncio.Lock()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._run: Run | None = None
        self._news = False  # poked since the last look
        self._holders = 0
        self._closing = False

    @property
    def may_work(self) -> bool:
        """Whether the session is there and nobody is writing, or looking and wants to see it at rest."""
        return not (self._closing or self._holders or self.session.closed or self.session.writer is not None)

    @property
    def is_working(self) -> bool:
        """Whether the task is at work."""
        return self._task is not None

    # -- from outside -------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        """Look for work, unless somebody is writing; then it is for them to poke."""
        self._news = True
        if self._task is None and self.may_work:
            self._settled.clear()
            self._task = asyncio.get_running_loop().create_task(self._work())

    def want(self, seconds: float) -> None:
        """Bring the session's memory back in ``seconds`` seconds, if nobody has by then."""
        self._forget_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wanted)

    async def pause(self) -> None:
        """Return once nothing touches the session; the caller is its writer, so nothing will before it is poked."""
        self._settled.clear()
        self._forget_timer()
        if self._run is not None:
            self._engine.cancel(self._run)
        async with self._alone:
            pass

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Keep the session as it is for somebody who looks at it and does not write."""
        self._holders += 1
        try:
            await self.pause()
            yield
        finally:
            self._holders -= 1
            self.poke()

    async def settle(self) -> None:
        """Return when nothing is left to do."""
        self.poke()
        await self._settled.wait()

    async def close(self) -> None:
        """Stop for good. Jobs under way go on to their end, and nobody looks."""
        self._closing = True
        await self.pause()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._settled.set()

    # -- for what works -----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """Hold off writers; yields False where one was faster."""
        async with self._alone:
            yield self.may_work

    async def run(self, request: EngineRequest) -> Run | None:
        """Inside ``alone``: have the engine do ``request`` to its end, or to where a writer comes in; None where it refuses."""
        try:
            self._run = await self._engine.submit(request)
        except AgentMemError as error:
            log.info("session %s: background work was refused: %s", self.session.record.id, error.message)
            return None
        run = self._run
        try:
            if not self.may_work:
                self._engine.cancel(run)
            while not run.done:
                await run.news.wait()
        finally:
            self._run = None
        return run

    # -- internals ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        name = self.session.record.id
        try:
            while self.may_work and self._news:
                self._news = False
                while await self._advance(self):
                    self._news = False
        except StaleOwner:
            self.session.closed = True
        except AgentMemError as error:
            log.info("session %s: background work stopped: %s", name, error.message)
        except Exception:
            log.exception("session %s: background work broke", name)
        finally:
            self._task = None
            if self.session.writer is None and not self._holders:
                self._settled.set()

    def _wanted(self) -> None:
        self._timer = None
        self.wanted = True
        self.poke()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
