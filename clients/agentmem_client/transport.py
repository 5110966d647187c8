"""One gRPC channel: credentials, deadlines, errors and retries, so that the classes above only say what to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from functools import cached_property
from typing import Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from agentmem.errors import AgentMemError, Disconnected
from agentmem.v1.status import DETAILS_KEY, error_from_status
from agentmem_client.retry import Attempts, RetryPolicy

R = TypeVar("R", bound=Message)

MAX_MESSAGE_BYTES = 64 << 20  # the server's default limit
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"  # HealthCheckResponse(status=SERVING); saves the client a dependency on grpcio-health-checking

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that restarts is found again within a second or two; gRPC's own default waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A peer that vanished without a word is noticed while a reply is streaming.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Duplex(Generic[R]):
    """One bidirectional call. ``is_new``: for its user to say that nothing was written yet."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Message, R]) -> None:
        self.is_new = True
        self._call = call

    async def write(self, request: Message) -> None:
        """Send ``request``; waits where the server is behind. Raises what the server ended the call with."""
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure
        except asyncio.InvalidStateError as failure:  # the call has ended; reading tells how
            await self.read()
            raise Disconnected("the stream has ended") from failure

    async def read(self) -> R | None:
        """Return the next answer, None after the last. Raises what the server ended the call with."""
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure
        return None if answer is grpc.aio.EOF else cast("R", answer)

    def cancel(self) -> None:
        """End the call."""
        self._call.cancel()


class Transport:
    """Calls to one server. Used from one event loop; the channel opens at the first call.

    ``deadline_seconds`` bounds a short call with all its repetitions, ``reply_seconds`` one that computes or moves much.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str,
        credentials: grpc.ChannelCredentials | None,
        deadline_seconds: float,
        reply_seconds: float,
        retry: RetryPolicy,
    ) -> None:
        self.target = target
        self.deadline_seconds = deadline_seconds
        self.reply_seconds = reply_seconds
        self._credentials = credentials
        self._retry = retry
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened on first use so that it belongs to the loop that runs then."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.target, self._credentials, options=CHANNEL_OPTIONS)

    async def close(self) -> None:
        """Close the channel and end its calls."""
        if "channel" in self.__dict__:
            await self.channel.close()

    def attempts(self, seconds: float) -> Attempts:
        """Return the tries that a call with ``seconds`` to live has."""
        return Attempts(self._retry, seconds)

    async def unary(self, method: str, request: Message, reply: type[R], *, seconds: float | None = None, idempotent: bool = True) -> R:
        """Return the answer of ``/agentmem.v1.<method>``; an idempotent call is tried again after transient failures.

        Raises the AgentMemError that the last try ended with.
        """
        call = self.channel.unary_unary(_path(method), request_serializer=_serialize, response_deserializer=reply.FromString)
        attempts = self.attempts(seconds or self.deadline_seconds)
        while True:
            try:
                return await call(request, timeout=attempts.remaining, metadata=self._metadata)
            except grpc.aio.AioRpcError as failure:
                error = _error_of(failure)
                if not idempotent:
                    raise error from failure
                await attempts.failed(error)

    async def upload(self, method: str, requests: AsyncIterator[Message], reply: type[R]) -> R:
        """Send a stream of requests and return the answer. Never repeated: the stream can be read once."""
        call = self.channel.stream_unary(_path(method), request_serializer=_serialize, response_deserializer=reply.FromString)
        try:
            return await call(requests, timeout=self.reply_seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure

    async def stream(self, method: str, request: Message, reply: type[R], *, seconds: float | None) -> AsyncGenerator[R, None]:
        """Yield the answers of one try; leaving early ends the call. ``seconds`` None: for as long as it lasts."""
        call = self.channel.unary_stream(_path(method), request_serializer=_serialize, response_deserializer=reply.FromString)
        running = call(request, timeout=seconds, metadata=self._metadata)
        try:
            async for message in running:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise _error_of(failure) from failure
        finally:
            running.cancel()

    def duplex(self, method: str, reply: type[R]) -> Duplex[R]:
        """Open a bidirectional call, which lasts until one side ends it."""
        call = self.channel.stream_stream(_path(method), request_serializer=_serialize, response_deserializer=reply.FromString)
        return Duplex(call(metadata=self._metadata))

    async def wait_ready(self, seconds: float) -> None:
        """Return when the server's health service says SERVING. Raises Disconnected after ``seconds``."""
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(HEALTH_CHECK)
        attempts = Attempts(RetryPolicy(attempts=1_000_000, max_seconds=0.5), seconds)
        while True:
            try:
                if await check(b"", timeout=attempts.remaining, metadata=self._metadata) == SERVING:
                    return
                error: AgentMemError = Disconnected(f"{self.target} is not serving yet")
            except grpc.aio.AioRpcError as failure:
                error = Disconnected(f"{self.target} did not become ready in {seconds:g} s: {failure.details()}")
            await attempts.failed(error)


def _error_of(failure: grpc.aio.AioRpcError) -> AgentMemError:
    details = dict(failure.trailing_metadata() or ()).get(DETAILS_KEY)
    return error_from_status(failure.code().name, failure.details() or failure.code().name, details if isinstance(details, bytes) else None)


def _path(method: str) -> str:
    return f"/agentmem.v1.{method}"


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
