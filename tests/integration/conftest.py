"""Real processes, the real model: SmolLM2 out of the package that carries it, converted once into pytest's cache directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
from support.conversation import QUESTIONS, SYSTEM, Heard, talk, tokens_and_replies
from support.judge import Judge
from support.server import Server

from agentmem.engine.resolve import resolve
from agentmem_client import AsyncAgentMem, RetryPolicy

T = TypeVar("T")
NO_RETRY = RetryPolicy(attempts=1)
Launch = Callable[..., Server]


@pytest.fixture(scope="session")
def models(pytestconfig: pytest.Config) -> Path:
    """Return the directory that holds converted models."""
    directory = pytestconfig.rootpath / ".pytest_cache" / "models"
    resolve("smollm2", directory)
    return directory


@pytest.fixture(scope="session")
def judge(models: Path) -> Judge:
    """Return the reference implementation."""
    return Judge(resolve("smollm2", models))


@pytest.fixture
def launch(models: Path, tmp_path: Path) -> Iterator[Launch]:
    """Return a function that makes servers, each with a state of its own, which end with the test."""
    servers: list[Server] = []

    def make(name: str = "state", settings: Mapping[str, object] | None = None) -> Server:
        servers.append(Server(tmp_path / name, models, settings))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def shared(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return the server that tests share which leave it as healthy as they found it."""
    server = Server(tmp_path_factory.mktemp("shared") / "state", models).start()
    yield server
    server.kill()


@pytest.fixture
async def client(shared: Server) -> AsyncIterator[AsyncAgentMem]:
    """Return a client of the shared server that tries once, so that a failure is seen."""
    async with shared.client(retry=NO_RETRY) as client:
        yield client


@pytest.fixture(scope="session")
def reference(shared: Server, judge: Judge) -> list[list[int]]:
    """Return the replies of an uninterrupted run of the conversation; the judge agrees with every token."""
    replies = on_a_loop(_uninterrupted(shared, judge))
    assert [None] * len(QUESTIONS) == [reply.error for reply in replies]
    return [reply.tokens for reply in replies]


async def _uninterrupted(server: Server, judge: Judge) -> list[Heard]:
    async with server.client() as client, client.session("reference", system=SYSTEM) as session:
        replies = await talk(session, range(1, len(QUESTIONS) + 1))
        assert judge.first_wrong(*await tokens_and_replies(session)) is None
    return replies


def on_a_loop(work: Coroutine[object, object, T]) -> T:
    """Run ``work`` on an event loop of its own, away from the one that the test may have."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
