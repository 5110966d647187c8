from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.fake_service import FakeSessions, serving

from agentmem.api.server import ApiServer
from agentmem.errors import DeadlineExceeded, Disconnected, Draining, Forbidden, InvalidInput, NotFound, Unauthenticated
from agentmem_client import AsyncAgentMem, RetryPolicy


async def test_sessions_are_listed_over_all_pages(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Listing fetches page after page and filters by labels."""
    for number in range(5):
        await client.session(f"s{number}", labels={"odd": str(number % 2)}).open()
    assert [f"s{number}" for number in range(5)] == [info.record.id async for info in client.list_sessions(page_size=2)]
    assert 3 == sessions.calls.count("list")
    assert ["s1", "s3"] == [info.record.id async for info in client.list_sessions({"odd": "1"})]


async def test_the_operator_calls(client: AsyncAgentMem, sessions: FakeSessions, server: ApiServer) -> None:
    """Numbers, shared prefixes, placement and drain answer with the records."""
    assert "parrot" == (await client.stats()).model
    assert [64] == [prefix.tokens for prefix in await client.prefixes(limit=5)]
    assert server.address == (await client.placement()).address
    await client.drain(3.0)
    assert "drain 3.0" in sessions.calls


async def test_a_session_moves_between_servers(client: AsyncAgentMem) -> None:
    """What export yields, import takes; bytes that are no session are refused by the server."""
    await client.session("old").open()
    chunks = [chunk async for chunk in client.attach("old").export()]

    async def feed(parts: list[bytes]) -> object:
        for part in parts:
            yield part

    assert "new" == (await client.import_session(feed(chunks), session_id="new")).id
    with pytest.raises(InvalidInput, match="no session"):
        await client.import_session(feed([b"junk"]))


async def test_the_token_picks_the_tenant(tmp_path: Path) -> None:
    """Every call carries the token; a wrong one is refused, and another tenant's session is not found."""
    keys = tmp_path / "keys"
    keys.write_text("one alice\ntwo bob\n")
    keys.chmod(0o600)
    async with serving(FakeSessions(), api_keys=keys) as server:
        async with AsyncAgentMem(server.address, token="one") as alice, AsyncAgentMem(server.address, token="two") as bob:
            await alice.wait_ready(5.0)
            await alice.session("diary").open()
            with pytest.raises(NotFound):
                await bob.attach("diary").info()
            with pytest.raises(Forbidden):
                await bob.stats()
        async with AsyncAgentMem(server.address, token="three") as nobody:
            with pytest.raises(Unauthenticated):
                await nobody.attach("diary").info()


async def test_transient_failures_are_retried(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A call that fails twice because the server is away or shutting down succeeds at the third try."""
    sessions.failures = [Disconnected("away"), Draining("shutting down", retry_after=0.01)]
    assert "parrot" == (await client.stats()).model
    assert 3 == sessions.calls.count("stats")


async def test_what_cannot_be_repeated_is_not(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Delete is sent once: a second answer could not tell what was removed."""
    await client.session("a").open()
    sessions.failures = [Disconnected("away")]
    with pytest.raises(Disconnected, match="away"):
        await client.attach("a").delete()
    assert 1 == sessions.calls.count("delete")


async def test_the_deadline_ends_a_call(server: ApiServer, sessions: FakeSessions) -> None:
    """A reply that stalls ends with DeadlineExceeded after the seconds it was given, and is not tried again."""
    sessions.stall = asyncio.Event()
    async with AsyncAgentMem(server.address) as client, client.session() as session:
        with pytest.raises(DeadlineExceeded):
            await session.generate_text("hello", deadline_seconds=0.2)
    assert 1 == sessions.calls.count("generate")


async def test_retries_end_at_the_deadline(server: ApiServer, sessions: FakeSessions) -> None:
    """A pause that would end after the deadline is not begun: the call fails with what went wrong."""
    sessions.failures = [Draining("come back in a minute", retry_after=60.0)]
    async with AsyncAgentMem(server.address, deadline_seconds=5.0) as client:
        with pytest.raises(Draining, match="come back in a minute"):
            await client.stats()


async def test_a_server_that_is_not_there(unused_tcp_port: int) -> None:
    """Nobody on the port is Disconnected, for calls, for uploads and for waiting."""
    async with AsyncAgentMem(f"127.0.0.1:{unused_tcp_port}", retry=RetryPolicy(attempts=2, base_seconds=0.001)) as client:
        with pytest.raises(Disconnected):
            await client.stats()
        with pytest.raises(Disconnected, match="did not become ready in 0.3 s"):
            await client.wait_ready(0.3)

        async def nothing() -> object:
            yield b""

        with pytest.raises(Disconnected):
            await client.import_session(nothing())


async def test_waiting_ends_when_the_server_serves(client: AsyncAgentMem) -> None:
    """A server that is up is ready at once."""
    await client.wait_ready(5.0)


async def test_a_client_that_never_called_closes_quietly() -> None:
    """Making and closing a client opens no connection."""
    async with AsyncAgentMem("nowhere:1"):
        pass
