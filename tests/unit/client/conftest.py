"""A server with faults on demand and clients of it, all in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.fake_service import FakeSessions, serving

from agentmem.api.server import ApiServer
from agentmem_client import AsyncAgentMem, RetryPolicy

QUICK = RetryPolicy(attempts=4, base_seconds=0.001, max_seconds=0.01)


@pytest.fixture
def sessions() -> FakeSessions:
    return FakeSessions()


@pytest.fixture
async def server(sessions: FakeSessions) -> AsyncIterator[ApiServer]:
    async with serving(sessions) as running:
        yield running


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[AsyncAgentMem]:
    async with AsyncAgentMem(server.address, retry=QUICK, deadline_seconds=10.0, reply_seconds=10.0) as connected:
        yield connected
