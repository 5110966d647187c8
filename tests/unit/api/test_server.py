from __future__ import annotations

import asyncio
import random
import socket
import time

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.api import Api, FakeSessions, refusal, running

from agentmem.api.server import SERVICES, ApiServer
from agentmem.config import ServerSettings
from agentmem.errors import ConfigError, InvalidInput
from agentmem.telemetry import Metrics
from agentmem.v1 import generation_pb2, session_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def server_of(settings: ServerSettings) -> ApiServer:
    return ApiServer(FakeSessions(), settings, metrics=Metrics(), request_drain=lambda _: None)  # type: ignore[arg-type]


async def test_health(api: Api) -> None:
    """The server and each of its services are SERVING."""
    stub = health_pb2_grpc.HealthStub(api.channel)
    answers = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", *SERVICES)]
    assert [SERVING] * 5 == [answer.status for answer in answers]


async def test_drain(api: Api) -> None:
    """Health changes first, then the manager drains, then the port closes and ``wait`` returns."""
    watch = health_pb2_grpc.HealthStub(api.channel).Watch(health_pb2.HealthCheckRequest())
    assert SERVING == (await watch.read()).status
    draining = asyncio.create_task(api.server.drain(0.5))
    assert NOT_SERVING == (await watch.read()).status
    await draining
    await asyncio.wait_for(api.server.wait(), 5)
    assert 0.5 == api.sessions.drained
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", api.server.port)


async def test_drain_lets_a_running_reply_finish(api: Api) -> None:
    """A reply that ends within the time given reaches its client whole."""
    api.sessions.hold = asyncio.Event()
    stream = api.generation.Generate(generation_pb2.GenerateRequest(session_id="s"))
    await stream.read()
    draining = asyncio.create_task(api.server.drain(20.0))
    asyncio.get_running_loop().call_later(0.05, api.sessions.hold.set)
    kinds = []
    while (event := await stream.read()) is not grpc.aio.EOF:
        kinds.append(event.WhichOneof("event"))
    start = time.monotonic()
    await draining
    assert ["started", "tokens", "finished"] == kinds
    assert time.monotonic() - start < 10


async def test_stop_before_start() -> None:
    """Stopping, draining and waiting for a server that never started do nothing."""
    server = server_of(ServerSettings(port=0))
    await server.stop()
    await server.wait()
    await server.drain(0.0)


def test_only_loopback_without_keys() -> None:
    """A host that others can reach needs tokens, even if the settings' own check was passed by."""
    settings = ServerSettings()
    object.__setattr__(settings, "host", "0.0.0.0")
    with pytest.raises(ConfigError, match="server.host is '0.0.0.0' without server.api_keys; allowed: 127.0.0.1"):
        server_of(settings)


async def test_a_port_that_is_taken() -> None:
    """Two servers don't share a port in silence."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"server.port {port} of 127.0.0.1 cannot be bound"):
            await server_of(ServerSettings(port=port)).start()


async def test_a_port_of_another_server(api: Api) -> None:
    """The same holds for a server of our own."""
    with pytest.raises(ConfigError, match="cannot be bound"):
        await server_of(ServerSettings(port=api.server.port)).start()


async def test_random_bytes_on_the_port(api: Api) -> None:
    """Whatever arrives on the port, with and without the HTTP/2 preface, the server goes on serving."""
    noise = random.Random(7)
    for n_bytes in range(1, 400, 8):
        for preface in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            writer.write(preface + noise.randbytes(n_bytes))
            await writer.drain()
            writer.close()
    answer = await api.session.GetSession(session_pb2.GetSessionRequest(session_id="s"))
    assert "s" == answer.session.session_id


async def test_ipv6_address() -> None:
    """An IPv6 host is written in brackets."""
    assert "[::1]:7070" == server_of(ServerSettings(host="::1")).address


async def test_a_message_that_is_too_large() -> None:
    """The refusal names both sizes."""
    async with running(max_message_bytes=2048) as api:
        error = await refusal(api.session.CreateSession(session_pb2.CreateSessionRequest(system="x" * 4000)))
        assert InvalidInput is type(error)
        assert "message larger than max (4003 vs. 2048)" in str(error)


async def test_streams_of_one_connection_are_limited() -> None:
    """The stream above the limit waits for a place instead of being served."""
    async with running(max_concurrent_streams=1) as api:
        api.sessions.hold = asyncio.Event()
        first = api.generation.Generate(generation_pb2.GenerateRequest(session_id="s"))
        await first.read()
        second = asyncio.ensure_future(api.session.GetSession(session_pb2.GetSessionRequest(session_id="s")))
        done, _ = await asyncio.wait([second], timeout=0.2)
        assert set() == done
        first.cancel()
        assert "s" == (await second).session.session_id
