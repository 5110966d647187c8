"""One copy of what sessions have in common: on disk, in memory, and while it is being computed."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.conversation import BLOCK, REPLY_TOKENS, SAMPLING, SYSTEM, hear
from support.server import Server

from agentmem.types import SessionFormat, TurnInput
from agentmem_client import AsyncAgentMem

SHORT = "What is it about?"


async def test_a_second_session_with_the_same_system_prompt_adds_only_its_own(client: AsyncAgentMem) -> None:
    """Its report says the prefix came from the device; blocks on disk and bytes in memory grow by its own tokens alone."""
    system = f"Sharing. {SYSTEM} {SYSTEM}"
    before = await client.stats()
    async with client.session(system=system) as first, client.session(system=system) as second:
        one = await hear(first.generate(SHORT, SAMPLING))
        between = await client.stats()
        two = await hear(second.generate(f"In one word: {SHORT}", SAMPLING))
        after = await client.stats()
    assert one.start is not None
    assert two.start is not None
    row = (between.kv_bytes_used - before.kv_bytes_used) / (one.start.context_tokens + REPLY_TOKENS)
    shared = two.start.reuse.device
    own = two.start.context_tokens + REPLY_TOKENS - shared
    prelude = (await first.info()).n_tokens - one.start.input_tokens - REPLY_TOKENS
    assert prelude // BLOCK * BLOCK == shared > 500
    assert two.start.context_tokens - shared == two.start.reuse.computed
    assert (two.start.context_tokens + REPLY_TOKENS - 1) // BLOCK - shared // BLOCK == after.blocks - between.blocks
    assert after.kv_bytes_used - between.kv_bytes_used <= 1.5 * (own + BLOCK) * row


async def test_two_sessions_that_start_at_once_compute_the_prefix_once(client: AsyncAgentMem) -> None:
    """The second waits for the first's blocks instead of computing them beside it."""
    system = f"At once. {SYSTEM} {SYSTEM}"
    async with client.session(system=system) as first, client.session(system=system) as second:
        heard = await asyncio.gather(hear(first.generate(SHORT, SAMPLING)), hear(second.generate(SHORT, SAMPLING)))
    starts = [reply.start for reply in heard if reply.start is not None]
    assert heard[0].tokens == heard[1].tokens
    computed = sorted(start.reuse.computed for start in starts)
    assert computed[0] <= BLOCK
    assert starts[0].context_tokens == computed[1]


@pytest.mark.timeout(280)
@pytest.mark.parametrize("n_tokens", [1500, pytest.param(6000, marks=pytest.mark.slow)])
async def test_a_fork_copies_no_k_and_no_v(shared: Server, n_tokens: int) -> None:
    """Forking takes no bytes of memory, a fraction of the time that computing took, and the fork has everything on the device."""
    async with shared.client() as client, client.session(format=SessionFormat.RAW) as session:
        began = time.monotonic()
        await session.append(TurnInput(token_ids=tuple(range(1000, 1000 + n_tokens))))
        computing = time.monotonic() - began
        before = await client.stats()
        began = time.monotonic()
        fork = await session.fork(at_turn=1)
        forking = time.monotonic() - began
        after = await client.stats()
        info = await fork.info()
        heard = await hear(fork.generate(None, SAMPLING))
    assert (before.kv_bytes_used, before.blocks, n_tokens) == (after.kv_bytes_used, after.blocks, info.device_tokens)
    assert forking < computing / 10
    assert heard.start is not None
    assert (n_tokens - 1, 1) == (heard.start.reuse.device, heard.start.reuse.computed)
