from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.replica import MAX_CONTEXT, PROMPT, TENANT, Replica, encode, greedy, rendered, replica_settings, save_replica_model, tiny_model

from agentmem import app
from agentmem.config import ServerSettings, load_settings
from agentmem.errors import ConfigError, Draining, UnsupportedModel
from agentmem.events import FinishEvent, TokenEvent
from agentmem.stores.state import StateLock
from agentmem.telemetry import Metrics
from agentmem.types import FinishReason, SamplingParams
from agentmem_client import AsyncAgentMem

SERVE = """
import sys
from agentmem.app import serve
from agentmem.config import load_settings
serve(load_settings(None, {}, dict(pair.split("=", 1) for pair in sys.argv[1:])), lambda address: print(address, flush=True))
"""


def test_kv_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size is taken as it is; auto is a share of the memory that is free, on the processor or on the GPU."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert 16 * 2**20 == app.kv_budget(replica_settings(tmp_path), cpu)
    auto = replica_settings(tmp_path, memory__kv_bytes="auto")
    assert 0 < app.kv_budget(auto, cpu) <= psutil.virtual_memory().total * app.KV_SHARE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 2000))
    assert 1000 * app.KV_SHARE == app.kv_budget(auto, gpu)


def test_a_start_that_fails_leaves_the_directory_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is refused holds neither lock nor ledger."""

    def refuse(*_: object) -> None:
        raise UnsupportedModel("not this one")

    monkeypatch.setattr(app, "verify_seam", refuse)
    with pytest.raises(UnsupportedModel):
        app.build_core(replica_settings(tmp_path), tiny_model())
    StateLock(tmp_path).release()


# -- metrics


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_metrics_are_served_while_the_context_lasts() -> None:
    """The port answers inside and is closed after."""
    settings = ServerSettings(metrics_port=free_port())
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    with app.serve_metrics(Metrics(), settings), urllib.request.urlopen(url) as answer:
        assert b"agentmem_" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_port_0_serves_no_metrics() -> None:
    """Without a port nothing listens."""
    before = threading.active_count()
    with app.serve_metrics(Metrics(), ServerSettings()):
        assert before == threading.active_count()


def test_a_taken_metrics_port_is_named() -> None:
    """The error names the setting, the port and the host."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        serving = app.serve_metrics(Metrics(), ServerSettings(metrics_port=port))
        with pytest.raises(ConfigError, match=rf"server\.metrics_port {port} of 127\.0\.0\.1"):
            serving.__enter__()


# -- the core


async def test_the_core_closes_in_order(tmp_path: Path) -> None:
    """After close nothing is accepted, no thread is left, and the ledger can be opened by the next core."""
    before = {thread.name for thread in threading.enumerate()}
    replica = Replica(tmp_path)
    await replica.create()
    await replica.ask("a", "x")
    await replica.core.close(1.0)
    with pytest.raises(Draining):
        await replica.ask("a", "x")
    left = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in left if name.startswith(("engine", "seal", "restore"))]
    replica.open()
    assert 2 == (await replica.manager.get(TENANT, "a")).n_turns
    await replica.core.close(1.0)


async def test_max_context_is_at_most_what_the_model_was_trained_for(tmp_path: Path) -> None:
    """The setting shortens the context and never lengthens it."""
    for asked, expected in ((0, MAX_CONTEXT), (100, 100), (10 * MAX_CONTEXT, MAX_CONTEXT)):
        replica = Replica(tmp_path, model__max_context=asked)
        assert expected == replica.manager.generator.limits.max_context
        await replica.core.close(0.0)


# -- the server


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_replica_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def arguments(tmp_path: Path, model_dir: Path) -> list[str]:
    return [
        f"storage.state_dir={tmp_path / 'state'}",
        f"model.id={model_dir}",
        f"model.cache_dir={tmp_path / 'cache'}",
        "model.dtype=fp32",
        "model.threads=1",
        "memory.kv_bytes=16MiB",
        "memory.block_tokens=16",
        "server.port=0",
        "server.drain_seconds=0.1",
    ]


@asynccontextmanager
async def served(arguments: list[str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a server process; yield it and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVE, *arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@contextmanager
def own_signals() -> Iterator[None]:
    """Take the handlers away again that a server in this process has installed."""
    loop = asyncio.get_running_loop()
    try:
        yield
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)


async def test_sigterm_checkpoints_replies(arguments: list[str]) -> None:
    """A served model answers exactly; SIGTERM in the middle of a reply commits its tokens, which outlive the process; it exits with 0."""
    prompt = encode(rendered([("user", "hello")]) + PROMPT)
    async with served(arguments) as (process, address), AsyncAgentMem(address) as client:
        await client.wait_ready()
        assert health_pb2.HealthCheckResponse.SERVING == await health(address)
        async with client.session("a") as session:
            events = [event async for event in session.generate("hello", sampling=SamplingParams(max_tokens=8))]
            ids = tuple(token for event in events if isinstance(event, TokenEvent) for token in event.token_ids)
            assert greedy(tuple(prompt), 8) == ids
        async with client.session("b") as session:
            finish = None
            async for event in session.generate("hello", sampling=SamplingParams(max_tokens=MAX_CONTEXT, ignore_eos=True)):
                if isinstance(event, TokenEvent) and process.returncode is None and event.index == 0:
                    process.send_signal(signal.SIGTERM)
                finish = event
        assert isinstance(finish, FinishEvent)
        assert finish.durable
        assert 0 == await process.wait()
    async with served(arguments) as (_, address), AsyncAgentMem(address) as client:
        infos = {info.record.id: info async for info in client.list_sessions()}
        assert len(prompt) + finish.usage.output_tokens == infos["b"].n_tokens
        assert finish.finish_reason in (FinishReason.CANCELLED, FinishReason.CONTEXT_FULL)


async def test_a_taken_port_ends_the_process_with_the_reason(arguments: list[str]) -> None:
    """A server that cannot bind its port says so and stops everything that it had started."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        settings = load_settings(None, {}, dict(pair.split("=", 1) for pair in [*arguments, f"server.port={held.getsockname()[1]}"]))
        with own_signals(), pytest.raises(ConfigError, match=r"server\.port"):
            await app.run_server(settings, tiny_model(), print)


async def test_drain_by_call_ends_the_server(arguments: list[str]) -> None:
    """AdminService.Drain lets the server end as SIGTERM does, with the time that the call names."""
    settings = load_settings(None, {}, dict(pair.split("=", 1) for pair in arguments))
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    with own_signals():
        serving = asyncio.ensure_future(app.run_server(settings, tiny_model(), ready.set_result))
        async with AsyncAgentMem(await ready) as client:
            await client.drain(0.0)
        await serving
