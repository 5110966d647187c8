"""Invariant 7 with real kills: an acknowledged turn survives, a retry never makes a second one, tokens stay the same."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable

import pytest
from support.conversation import QUESTIONS, SAMPLING, SYSTEM, Heard, ask, assert_restored, hear, ledger_replies, talk
from support.server import Server

from agentmem_client import AsyncSession, RetryPolicy

NO_RETRY = RetryPolicy(attempts=1)
CYCLES = 5
FAULTS = {
    # point -> (the hit that kills in the middle of the conversation, others)
    "blocks.after_temp_write": (7, (1, 5, 8)),
    "blocks.after_rename": (6, (1, 5, 9)),
    "ledger.before_commit": (3, (1, 2, 4)),  # the first turn commits the prelude's blocks and itself
    "ledger.after_commit": (3, (1, 2, 4)),
    "engine.step": (20, (1, 2, 13, 14)),
    "generation.mid_stream": (18, (1, 12, 13)),
}
DEFAULT = [pytest.param(point, hits[0], id=f"{point}-{hits[0]}") for point, hits in FAULTS.items()]
MORE = [pytest.param(point, n, id=f"{point}-{n}", marks=pytest.mark.slow) for point, hits in FAULTS.items() for n in hits[1]]


async def check_after_crash(session: AsyncSession, before: list[Heard], reference: list[list[int]]) -> Heard:
    """Check what a restarted server knows, then send the broken turn again, from its middle and from its start; return the reply."""
    acknowledged = [heard.tokens for heard in before if heard.acknowledged]
    broken = len(before)
    kept = await ledger_replies(session)
    assert acknowledged == kept[: len(acknowledged)]
    assert len(acknowledged) <= len(kept) <= broken
    partial = before[-1].tokens
    rest = await ask(session, broken, resume_after=len(partial))
    assert reference[broken - 1] == partial + rest.tokens
    assert rest.acknowledged
    again = await ask(session, broken)
    assert reference[broken - 1] == again.tokens
    assert reference[:broken] == await ledger_replies(session)
    return again


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("point", "nth"), DEFAULT + MORE)
async def test_a_kill_at_a_fault_point_loses_nothing_that_was_acknowledged(
    launch: Callable[..., Server], reference: list[list[int]], point: str, nth: int
) -> None:
    """Acknowledged turns are there, the retry gives the same tokens once, and what comes next is read from disk."""
    server = launch().start(faults=f"{point}:kill:{nth}")
    async with server.client(retry=NO_RETRY) as client, client.session("s", system=SYSTEM) as session:
        before = await talk(session, range(1, 8))
    assert before[-1].error is not None, f"{point} was not hit {nth} times"
    assert -9 == server.wait()
    server.start()
    async with server.client(retry=NO_RETRY) as client:
        session = client.attach("s")
        kept = len(await ledger_replies(session))
        again = await check_after_crash(session, before, reference)
        following = await ask(session, len(before) + 1)
        stats = await client.stats()
    assert reference[len(before)] == following.tokens
    if kept:  # whichever reply was the first to be computed after the restart
        assert_restored(again if kept < len(before) else following)
    server.kill()
    server.check_state()
    assert (stats.blocks, 0) == (len(server.block_files()), len(server.temp_files()))


@pytest.mark.timeout(120)
async def test_a_client_that_retries_hears_one_unbroken_reply_through_a_crash(
    launch: Callable[..., Server], reference: list[list[int]]
) -> None:
    """Each token arrives once and in order although the server was killed in the middle of the stream and started again."""
    server = launch().start(faults="generation.mid_stream:kill:5")
    patient = RetryPolicy(attempts=1000, max_seconds=0.5)
    async with server.client(retry=patient) as client, client.session("s", system=SYSTEM) as session:
        hearing = asyncio.create_task(hear(session.generate(QUESTIONS[0], SAMPLING)))
        assert -9 == await asyncio.to_thread(server.wait)
        await asyncio.to_thread(server.start)
        heard = await hearing
        assert (None, reference[0]) == (heard.error, heard.tokens)
        assert heard.finish is not None
        assert heard.finish.text == heard.text
        assert [reference[0]] == await ledger_replies(session)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
async def test_kills_at_random_moments_never_change_the_conversation(
    launch: Callable[..., Server], reference: list[list[int]], seed: int
) -> None:
    """Five kills at moments that nobody chose: the conversation ends with the tokens of the uninterrupted one, each turn once."""
    moment = random.Random(seed)
    server = launch()
    heard: list[Heard] = []
    for cycle in range(CYCLES + 1):
        server.start()
        axe = threading.Timer(moment.uniform(0.1, 2.5), server.strike)
        async with server.client(retry=NO_RETRY) as client, client.session("s", system=SYSTEM) as session:
            if heard:
                heard[-1] = await check_after_crash(session, heard, reference)
            if cycle < CYCLES:
                axe.start()
            heard += await talk(session, range(len(heard) + 1, len(QUESTIONS) + 1))
        axe.cancel()
        server.kill()
        server.check_state()
    assert reference == [reply.tokens for reply in heard]
