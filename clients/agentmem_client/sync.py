"""The synchronous client: the asynchronous one, run on a background event loop. Signatures and behaviour are its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar

from agentmem.errors import Disconnected
from agentmem.events import ConverseEvent
from agentmem.output import OutputSpec
from agentmem.types import SamplingParams, ToolCall
from agentmem_client.client import AsyncAgentMem
from agentmem_client.loop import ToolLoop
from agentmem_client.session import AsyncSession

P = ParamSpec("P")
R = TypeVar("R")


class LoopThread:
    """An event loop on a daemon thread. ``run`` may be called from any other thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agentmem-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Return what ``coroutine`` returns; an interrupt while waiting (Ctrl-C) cancels it. Raises Disconnected once closed."""
        if self._loop.is_closed():
            coroutine.close()
            raise Disconnected("the client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, events: AsyncGenerator[R, None]) -> Generator[R, None, None]:
        """Yield what ``events`` yields; leaving early closes it."""

        async def following() -> tuple[R] | None:
            try:
                return (await anext(events),)
            except StopAsyncIteration:
                return None

        try:
            while (item := self.run(following())) is not None:
                yield item[0]
        finally:
            if not self._loop.is_closed():
                self.run(_close(events))

    def close(self, farewell: Coroutine[Any, Any, None]) -> None:
        """End what still iterates, run ``farewell``, stop the loop and wait for the thread. A second call does nothing."""
        if self._loop.is_closed():
            farewell.close()
            return
        self.run(self._loop.shutdown_asyncgens())
        self.run(farewell)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _close(events: AsyncGenerator[Any, None]) -> None:
    await events.aclose()


class _Facade(Protocol):
    """What the wrappers need of a synchronous class: its loop and the asynchronous object behind it."""

    _loop: LoopThread
    _inner: Any


def _blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def _iterating(method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]]) -> Callable[Concatenate[Any, P], Generator[R, None, None]]:
    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        return self._loop.iterate(method(self._inner, *args, **kwargs))

    return call


def _naming(method: Callable[Concatenate[Any, P], AsyncSession]) -> Callable[Concatenate[Any, P], Session]:
    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self._loop, method(self._inner, *args, **kwargs))

    return call


def _making(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, AsyncSession]]) -> Callable[Concatenate[Any, P], Session]:
    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self._loop, self._loop.run(method(self._inner, *args, **kwargs)))

    return call


def _looping(method: Callable[Concatenate[Any, P], ToolLoop]) -> Callable[Concatenate[Any, P], SyncToolLoop]:
    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> SyncToolLoop:
        return SyncToolLoop(self._loop, method(self._inner, *args, **kwargs))

    return call


def _given(build: Callable[P, R]) -> Callable[[Callable[[Any, R], None]], Callable[Concatenate[Any, P], None]]:
    def decorate(method: Callable[[Any, R], None]) -> Callable[Concatenate[Any, P], None]:
        def call(self: object, /, *args: P.args, **kwargs: P.kwargs) -> None:
            method(self, build(*args, **kwargs))

        return call

    return decorate


class Session:
    """A session on the server; see AsyncSession for what each method does."""

    def __init__(self, loop: LoopThread, inner: AsyncSession) -> None:
        self._loop = loop
        self._inner = inner

    @property
    def id(self) -> str:
        """The session's id."""
        return self._inner.id

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.run(self._inner.__aexit__(kind, error, trace))

    open = _blocking(AsyncSession.open)
    info = _blocking(AsyncSession.info)
    update = _blocking(AsyncSession.update)
    append = _blocking(AsyncSession.append)
    generate = _iterating(AsyncSession.generate)
    generate_text = _blocking(AsyncSession.generate_text)
    converse = _looping(AsyncSession.converse)
    cancel = _blocking(AsyncSession.cancel)
    end_turn = _blocking(AsyncSession.end_turn)
    fork = _making(AsyncSession.fork)
    rollback = _blocking(AsyncSession.rollback)
    inspect = _blocking(AsyncSession.inspect)
    recall = _blocking(AsyncSession.recall)
    forget = _blocking(AsyncSession.forget)
    set_fidelity = _blocking(AsyncSession.set_fidelity)
    seal = _blocking(AsyncSession.seal)
    export = _iterating(AsyncSession.export)
    watch = _iterating(AsyncSession.watch)
    delete = _blocking(AsyncSession.delete)


class SyncToolLoop:
    """A tool loop; see ToolLoop for what each method does. A result may be any iterable of its pieces."""

    def __init__(self, loop: LoopThread, inner: ToolLoop) -> None:
        self._loop = loop
        self._inner = inner

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """What the last reply called and waits for."""
        return self._inner.calls

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; a reply under way goes on at the server."""
        self._loop.run(self._inner.__aexit__(None, None, None))

    def result(
        self,
        call: ToolCall | str,
        text: str | Iterable[str],
        *,
        name: str = "",
        more: bool = False,
        sampling: SamplingParams | None = None,
        output: OutputSpec | None = None,
    ) -> Generator[ConverseEvent, None, None]:
        """Send the result of ``call``, whole or in pieces as they come, and yield the events that answer."""
        pieces = text if isinstance(text, str) else _feed(text)
        return self._loop.iterate(self._inner.result(call, pieces, name=name, more=more, sampling=sampling, output=output))

    say = _iterating(ToolLoop.say)
    waiting = _blocking(ToolLoop.waiting)


class AgentMem:
    """A connection to one agentmem server; takes what AsyncAgentMem takes. May be used from any thread."""

    @_given(AsyncAgentMem)
    def __init__(self, inner: AsyncAgentMem) -> None:
        self._loop = LoopThread()
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and stop the background loop. Sessions stay on the server."""
        self._loop.close(self._inner.close())

    def import_session(self, chunks: Iterable[bytes], *, session_id: str | None = None) -> Session:
        """Make a session from exported bytes, under ``session_id`` or the id that it had. Raises AlreadyExists."""
        return self._import(_feed(chunks), session_id=session_id)

    wait_ready = _blocking(AsyncAgentMem.wait_ready)
    session = _naming(AsyncAgentMem.session)
    attach = _naming(AsyncAgentMem.attach)
    list_sessions = _iterating(AsyncAgentMem.list_sessions)
    stats = _blocking(AsyncAgentMem.stats)
    prefixes = _blocking(AsyncAgentMem.prefixes)
    placement = _blocking(AsyncAgentMem.placement)
    drain = _blocking(AsyncAgentMem.drain)
    _import = _making(AsyncAgentMem.import_session)


def _feed(chunks: Iterable[R]) -> AsyncIterator[R]:
    async def feed() -> AsyncIterator[R]:
        iterator = iter(chunks)
        # Reading may block (a file, a socket), so it happens off the loop.
        while (chunk := await asyncio.to_thread(next, iterator, None)) is not None:
            yield chunk

    return feed()
