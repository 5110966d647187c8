"""A scripted session manager, and a real gRPC server in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from agentmem.api.server import ApiServer
from agentmem.config import ServerSettings
from agentmem.conversing import ConverseStep
from agentmem.errors import AgentMemError
from agentmem.events import ConverseEvent, FinishEvent, GenerationEvent, PieceEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.telemetry import Metrics
from agentmem.types import (
    Fidelity,
    Fingerprint,
    FinishReason,
    Message,
    RequestId,
    ReuseReport,
    SessionId,
    SessionRecord,
    TenantId,
    Tier,
    Turn,
    Usage,
)
from agentmem.v1 import admin_pb2_grpc, generation_pb2_grpc, memory_pb2_grpc, session_pb2_grpc
from agentmem.v1.status import DETAILS_KEY, error_from_status
from agentmem.views import (
    AppendResult,
    ChangeKind,
    DeleteReport,
    PrefixInfo,
    RecalledSpan,
    ServerStats,
    SessionChange,
    SessionInfo,
    TurnInfo,
)

INFO = SessionInfo(
    SessionRecord(SessionId("s"), TenantId("default"), Fingerprint("f"), "t", labels={"a": "b"}, epoch=3), n_turns=2, n_tokens=9
)
SPAN = RecalledSpan(1, 64, 12, "the code is 7", 0.75)
REUSE = ReuseReport(device=4, disk=2, computed=3)
TURN = Turn(1, (Message("user", "hello"), Message("assistant", "hi")), (5, 6, 7), reply_start=2, finish_reason=FinishReason.STOP)
EVENTS: tuple[GenerationEvent, ...] = (
    ProgressEvent(4, 9, restoring=True),
    StartEvent(SessionId("s"), RequestId("r"), 1, REUSE, Fidelity.EXACT, 3, 9),
    TokenEvent(0, (7,), "hi"),
    FinishEvent(
        1, FinishReason.STOP, Message("assistant", "hi"), "hi", Usage(3, 9, 2, 0.1, 0.2, 0.4, 2), REUSE, Fidelity.EXACT, durable=True
    ),
)


class FakeSessions:
    """Answers every call with a constant and keeps what it was asked. ``error`` is raised instead; ``hold`` stops streams half way."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.error: Exception | None = None
        self.events: tuple[GenerationEvent, ...] | None = EVENTS
        self.hold: asyncio.Event | None = None
        self.closed = asyncio.Event()
        self.pulled = 0
        self.steps: list[ConverseStep] = []
        self.imported = b""
        self.drained: float | None = None

    def _called(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.calls.append((name, args, kwargs))
        if self.error is not None:
            raise self.error

    async def create(self, *args: Any) -> SessionInfo:
        self._called("create", *args)
        return INFO

    async def get(self, *args: Any) -> SessionInfo:
        self._called("get", *args)
        return INFO

    async def list(self, *args: Any, **kwargs: Any) -> tuple[list[SessionInfo], str]:
        self._called("list", *args, **kwargs)
        return [INFO, INFO], "more"

    async def update(self, *args: Any) -> SessionInfo:
        self._called("update", *args)
        return INFO

    async def delete(self, *args: Any) -> DeleteReport:
        self._called("delete", *args)
        return DeleteReport(2, 3, 4, 5)

    async def fork(self, *args: Any, at_turn: int | None, new_id: str | None, labels: Mapping[str, str] | None) -> SessionInfo:
        self._called("fork", *args, at_turn=at_turn, new_id=new_id, labels=labels)
        return INFO

    async def rollback(self, *args: Any, **kwargs: Any) -> SessionInfo:
        self._called("rollback", *args, **kwargs)
        return INFO

    async def _stream(self, *items: Any) -> AsyncGenerator[Any]:
        try:
            for item in items:
                self.pulled += 1
                yield item
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.closed.set()

    async def export(self, *args: Any) -> AsyncGenerator[bytes]:
        self._called("export", *args)
        async for chunk in self._stream(b"one", b"two"):
            yield chunk

    async def import_session(self, *args: Any, chunks: AsyncIterator[bytes] | None = None, new_id: str | None) -> SessionInfo:
        tenant, stream = args
        self._called("import", tenant, new_id=new_id)
        self.imported = b"".join([chunk async for chunk in stream])
        return INFO

    async def watch(self, *args: Any) -> AsyncGenerator[SessionChange]:
        self._called("watch", *args)
        try:
            yield SessionChange(ChangeKind.SNAPSHOT, None, INFO)
            yield SessionChange(ChangeKind.SEALED, 1, INFO)
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.closed.set()

    async def append(self, *args: Any, **kwargs: Any) -> AppendResult:
        self._called("append", *args, **kwargs)
        return AppendResult(1, 3, 9, durable=True)

    async def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[GenerationEvent]:
        self._called("generate", *args, **kwargs)
        try:
            for event in self.events if self.events is not None else endless():
                self.pulled += 1
                yield event
                await asyncio.sleep(0)
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.closed.set()

    async def converse(self, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
        self._called("converse", tenant)
        async for step in steps:
            self.steps.append(step)
            if step.given is not None:
                for event in EVENTS:
                    yield event
            if step.piece is not None:
                yield PieceEvent(RequestId("r"), len(step.piece.text), 0)

    async def end_turn(self, *args: Any, **kwargs: Any) -> SessionInfo:
        self._called("end_turn", *args, **kwargs)
        return INFO

    async def cancel(self, *args: Any) -> bool:
        self._called("cancel", *args)
        return True

    async def inspect(self, *args: Any, **kwargs: Any) -> tuple[SessionInfo, list[TurnInfo]]:  # type: ignore[valid-type]  # list is a method here
        self._called("inspect", *args, **kwargs)
        return INFO, [TurnInfo(TURN, 3, 1, 1, 100)]

    async def seal(self, *args: Any) -> SessionInfo:
        self._called("seal", *args)
        return INFO

    async def recall(self, *args: Any) -> list[RecalledSpan]:  # type: ignore[valid-type]
        self._called("recall", *args)
        return [SPAN]

    async def forget(self, *args: Any) -> SessionInfo:
        self._called("forget", *args)
        return INFO

    async def set_fidelity(self, *args: Any) -> SessionInfo:
        self._called("set_fidelity", *args)
        return INFO

    def stats(self) -> ServerStats:
        self._called("stats")
        return ServerStats(version="1", model="m", running=2, tokens_generated=7)

    async def prefixes(self, *args: Any) -> list[PrefixInfo]:  # type: ignore[valid-type]
        self._called("prefixes", *args)
        return [PrefixInfo("ab", 64, 2, 1000, Tier.DISK)]

    async def drain(self, seconds: float) -> None:
        self.drained = seconds


def endless() -> Any:
    """Yield token events for ever, each of about 10 kB."""
    index = 0
    while True:
        yield TokenEvent(index, (index,), "x" * 10_000)
        index += 1


@dataclass
class Api:
    """A running server, its fake manager and a channel to it."""

    server: ApiServer
    sessions: FakeSessions
    metrics: Metrics
    channel: grpc.aio.Channel
    drains: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session: Any = session_pb2_grpc.SessionServiceStub(self.channel)
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(self.channel)
        self.memory: Any = memory_pb2_grpc.MemoryServiceStub(self.channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(self.channel)


@asynccontextmanager
async def running(options: tuple[tuple[str, int], ...] = (), **settings: Any) -> AsyncIterator[Api]:
    """Start a server on a free port and connect to it."""
    sessions, metrics, drains = FakeSessions(), Metrics(), []
    server = ApiServer(
        sessions,  # type: ignore[arg-type]  # looser than the port on purpose
        ServerSettings(**{"port": 0, **settings}),
        metrics=metrics,
        request_drain=drains.append,
    )
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            yield Api(server, sessions, metrics, channel, drains)
    finally:
        await server.stop()


def error_of(status: grpc.aio.AioRpcError) -> AgentMemError:
    """Return the error that a client makes of a status."""
    details = next((value for key, value in status.trailing_metadata() or () if key == DETAILS_KEY), None)
    return error_from_status(status.code().name, status.details() or "", details)


async def refusal(call: Any) -> AgentMemError:
    """Run a unary call or drain a stream that must fail; return the error that a client makes of it."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as status:
        return error_of(status)
    raise AssertionError("the call was answered")
