"""A disk that refuses: turns are answered from memory, reported as pending, and durable as soon as there is room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.conversation import SYSTEM, Heard, ask, assert_restored, ledger_replies, tokens_and_replies
from support.judge import Judge
from support.server import MIB, Server

from agentmem.types import MissReason
from agentmem.views import ChangeKind
from agentmem_client import AsyncSession

NO_BLOCK = MIB // 2  # below a block file's size, above what SQLite writes for a turn
NOTHING = 4096


async def durable(session: AsyncSession) -> None:
    """Return when everything that the session has acknowledged survives a crash."""
    async with asyncio.timeout(30):
        async for change in session.watch():
            if change.info.durable or change.kind == ChangeKind.DURABLE:
                return


def assert_pending(heard: Heard, expected: list[int], why: str) -> None:
    """Check that a reply was complete and said that, and why, it is not durable yet."""
    assert (None, expected) == (heard.error, heard.tokens)
    assert heard.finish is not None
    assert not heard.finish.durable
    assert why in heard.finish.detail


@pytest.mark.timeout(180)
async def test_a_full_disk_costs_durability_for_a_while_and_nothing_else(launch: Callable[..., Server], reference: list[list[int]]) -> None:
    """Turns are answered with the right tokens while block files, then the whole ledger, are refused; both heal, nothing is doubled."""
    server = launch().start(faults="blocks.write:enospc:1")
    async with server.client() as client, client.session("s", system=SYSTEM) as session:
        assert_pending(await ask(session, 1), reference[0], "No space left on device")
        await durable(session)
        server.limit_file_size(NO_BLOCK)
        assert_pending(await ask(session, 2), reference[1], "File too large")
        server.limit_file_size(-1)
        await durable(session)
        server.limit_file_size(NOTHING)
        assert_pending(await ask(session, 3), reference[2], "")
        server.limit_file_size(-1)
        await durable(session)
        server.limit_file_size(NOTHING)
        assert_pending(await ask(session, 4), reference[3], "")
    server.kill()
    server.check_state()
    server.start()
    async with server.client() as client:
        session = client.attach("s")
        assert reference[:3] == await ledger_replies(session)
        again = await ask(session, 4)
        assert (True, reference[3]) == (again.acknowledged, again.tokens)
        assert_restored(again)


@pytest.mark.timeout(180)
async def test_the_quota_evicts_what_was_used_least(launch: Callable[..., Server], judge: Judge) -> None:
    """Blocks beyond storage.disk_bytes make older ones go; their session computes again, says EVICTED, and is exact."""
    server = launch(settings={"storage.disk_bytes": 10 * 3 * MIB}).start()
    async with server.client() as client:
        for name in ("old", "new"):
            async with client.session(name, system=f"{name} {SYSTEM}") as session:
                assert (await ask(session, 1)).acknowledged
        assert (await client.stats()).block_bytes <= 30 * MIB
    assert 0 == server.stop()
    server.check_state()
    server.start()
    async with server.client() as client:
        old, new = client.attach("old"), client.attach("new")
        assert_restored(await ask(new, 2))
        heard = await ask(old, 2)
        assert heard.start is not None
        assert MissReason.EVICTED is heard.start.reuse.reason
        assert judge.first_wrong(*await tokens_and_replies(old)) is None


@pytest.mark.timeout(120)
async def test_a_session_that_outgrows_the_quota_is_durable_without_its_blocks(
    launch: Callable[..., Server], reference: list[list[int]]
) -> None:
    """Its turns are in the ledger, so they are acknowledged; after a crash the K and V are computed again, the tokens are the same."""
    server = launch(settings={"storage.disk_bytes": 3 * 3 * MIB}).start()
    async with server.client() as client, client.session("s", system=SYSTEM) as session:
        assert (await ask(session, 1)).acknowledged
        assert (await session.seal()).durable
        await session.fork(session_id="fork")
    server.kill()
    server.check_state()
    server.start()
    async with server.client() as client:
        for name in ("s", "fork"):
            heard = await ask(client.attach(name), 2)
            assert (True, reference[1]) == (heard.acknowledged, heard.tokens)
