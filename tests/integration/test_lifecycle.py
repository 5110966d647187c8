"""A server's life as an operator sees it: start, idle, health, reflection, drain, and starting again."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.conversation import QUESTIONS, SAMPLING, SYSTEM, Heard, ask, hear, tokens_and_replies
from support.server import Server
from support.waiting import until

from agentmem.api.server import SERVICES
from agentmem.errors import Draining
from agentmem.types import FinishReason, SamplingParams
from agentmem_client import AsyncAgentMem, RetryPolicy

NO_RETRY = RetryPolicy(attempts=1)
IDLE_SECONDS = 3.0
LONG = SamplingParams(max_tokens=2000, ignore_eos=True)


def status_of(channel: grpc.aio.Channel, service: str = "") -> Callable[[], object]:
    """Return a function that asks the health service for ``service``."""
    stub = health_pb2_grpc.HealthStub(channel)

    async def status() -> object:
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10.0)).status

    return status


async def test_health_knows_every_service(shared: Server) -> None:
    """The server as a whole and each of its services are SERVING."""
    async with grpc.aio.insecure_channel(shared.address) as channel:
        for service in ("", *SERVICES):
            assert health_pb2.HealthCheckResponse.SERVING == await status_of(channel, service)()


def test_reflection_lists_every_service(shared: Server) -> None:
    """A client without the protos finds all services and their methods."""
    with grpc.insecure_channel(shared.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        names = set(database.get_services())
        file = database.FindFileContainingSymbol("agentmem.v1.GenerationService")
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names
    assert "Generate" in {method.name for service in file.service for method in service.method}


async def test_an_idle_server_does_nothing(client: AsyncAgentMem, shared: Server) -> None:
    """With sessions in memory and nobody calling it uses less than 1% of a core."""
    await until(lambda: _idle(client))

    def cpu_seconds() -> float:
        times = shared.process.cpu_times()
        return float(times.user + times.system)

    before = cpu_seconds()
    await asyncio.sleep(IDLE_SECONDS)  # the time that is measured
    used = cpu_seconds() - before
    assert used < 0.01 * IDLE_SECONDS + 0.01  # the kernel counts in hundredths of a second


async def _idle(client: AsyncAgentMem) -> bool:
    stats = await client.stats()
    return not stats.running and not stats.waiting


@pytest.mark.timeout(180)
async def test_sigterm_finishes_what_is_short_and_checkpoints_what_is_long(launch: Callable[..., Server]) -> None:
    """New work is refused, health says so, a short reply ends, a long one is cut and committed; the exit code is 0 and nothing is lost."""
    server = launch(settings={"server.drain_seconds": 4.0}).start()
    short, long = Heard(), Heard()
    async with server.client(retry=NO_RETRY) as client, grpc.aio.insecure_channel(server.address) as channel:
        one, two, idle = (client.session(name, system=SYSTEM) for name in ("short", "long", "idle"))
        for session in (one, two, idle):
            await session.open()
        await ask(idle, 1)
        replies = [asyncio.create_task(hear(two.generate(QUESTIONS[0], LONG), long))]
        await until(_talking(long))
        replies.append(asyncio.create_task(hear(one.generate(QUESTIONS[0], SAMPLING), short)))
        await until(_talking(short))
        server.signal(signal.SIGTERM)
        status = status_of(channel)

        async def not_serving() -> bool:
            return await status() == health_pb2.HealthCheckResponse.NOT_SERVING

        await until(not_serving)
        assert isinstance((await ask(idle, 2)).error, Draining)
        await asyncio.gather(*replies)
    assert 0 == await asyncio.to_thread(server.wait)
    for heard, reason in ((short, FinishReason.LENGTH), (long, FinishReason.CANCELLED)):
        assert heard.finish is not None, heard.error
        assert (reason, True) == (heard.finish.finish_reason, heard.finish.durable)
    server.check_state()
    server.start()
    async with server.client() as client:
        for name, heard in (("short", short), ("long", long)):
            ids, spans = await tokens_and_replies(client.attach(name))
            assert heard.tokens == ids[spans[-1].start : spans[-1].stop]


def _talking(heard: Heard) -> Callable[[], object]:
    async def talking() -> bool:
        return bool(heard.tokens)

    return talking


@pytest.mark.timeout(180)
async def test_three_hundred_idle_sessions_cost_a_restart_nothing(launch: Callable[..., Server]) -> None:
    """They are listed after a restart, none is loaded, and starting takes about as long as with an empty ledger."""
    server = launch()
    began = time.monotonic()
    server.start()
    empty = time.monotonic() - began
    async with server.client() as client:
        await asyncio.gather(*(client.session(f"s-{i}", system=f"You are agent {i}.").open() for i in range(300)))
    server.kill()
    began = time.monotonic()
    server.start()
    full = time.monotonic() - began
    async with server.client() as client:
        assert {f"s-{i}" for i in range(300)} == {info.record.id async for info in client.list_sessions(page_size=70)}
        stats = await client.stats()
    assert (300, 0) == (stats.sessions, stats.sessions_live)
    assert full < 2 * empty + 1.0
    sys.stderr.write(f"start to ready: {empty:.1f} s with an empty ledger, {full:.1f} s with 300 sessions\n")
