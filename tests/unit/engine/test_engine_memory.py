from __future__ import annotations

import asyncio

import pytest
from support.engines import (
    BLOCK,
    LONG,
    PROMPT,
    FakeArchive,
    Oracle,
    WatchedRunner,
    acquire,
    archived,
    done,
    finished,
    ids,
    request,
    running,
)

from agentmem.engine.run import RunState
from agentmem.engine.scheduler import Limits
from agentmem.types import FinishReason, MissReason, Tier

# -- archive ----------------------------------------------------------------------------------------------------------


async def test_spilled_blocks_come_back(runner: WatchedRunner, oracle: Oracle) -> None:
    """After a spill the full blocks are read from the archive, the rest is computed, and the tokens are the same."""
    archive = FakeArchive()
    async with running(runner, archive=archive) as engine:
        await archived(engine, archive)
        computed = runner.num_tokens
        run = await done(engine, request(LONG, n=6, computed_before=len(LONG)))
        report = run.reuse_report()

        assert oracle(LONG, 6) == ids(run)
        assert (0, 96, 4) == (report.device, report.disk, report.computed)
        assert (MissReason.PARTIAL_BLOCK, "4 tokens after the last full block") == (report.reason, report.detail)
        assert 4 + 5 == runner.num_tokens - computed
        assert 96 == engine.stats.reused[Tier.DISK]
        again = await done(engine, request(LONG, n=6))
        assert 96 == again.reused[Tier.DEVICE]  # what was restored is findable


@pytest.mark.parametrize("bad", [0, 1, 5, 11])
@pytest.mark.parametrize("error", [None, OSError("bad sector")])
async def test_a_restore_stops_at_the_first_bad_block(runner: WatchedRunner, oracle: Oracle, bad: int, error: Exception | None) -> None:
    """Blocks before it are used, it and all after it are computed, the report says why, and the tokens are right.

    The budget is tight, so that the memory reserved for the reply must survive the failure.
    """
    archive = FakeArchive()
    async with running(runner, archive=archive, rows=len(LONG) + 10) as engine:
        old = await archived(engine, archive)
        if error is None:
            del archive.blocks[old.chain.hashes[bad]]
        else:
            archive.errors[old.chain.hashes[bad]] = error
        run = await done(engine, request(LONG, n=10, computed_before=len(LONG)))
        report = run.reuse_report()

        assert oracle(LONG, 10) == ids(run)
        assert (bad * BLOCK, len(LONG) - bad * BLOCK) == (report.disk, report.computed)
        if error is not None:
            assert (MissReason.CORRUPT, "OSError: bad sector") == (report.reason, report.detail)
        else:
            assert MissReason.EVICTED is report.reason


async def test_a_prefill_only_run_can_be_restored_whole(runner: WatchedRunner) -> None:
    """When the archive holds every block of it, nothing is computed and the run ends."""
    archive = FakeArchive()
    async with running(runner, archive=archive) as engine:
        await archived(engine, archive, LONG[:96])
        steps = len(runner.sizes)
        run = await done(engine, request(LONG[:96], n=None))

        assert (FinishReason.STOP, 96, steps) == (run.finish_reason, run.reused[Tier.DISK], len(runner.sizes))


async def test_others_run_while_one_restores(runner: WatchedRunner, oracle: Oracle) -> None:
    """A slow disk holds up the session that needs it and nobody else."""
    archive = FakeArchive()
    async with running(runner, archive=archive) as engine:
        await archived(engine, archive)
        archive.gate.clear()
        slow = await engine.submit(request(LONG, n=4))
        quick = await done(engine, request(PROMPT, n=4))
        assert RunState.RESTORING is slow.state
        archive.gate.set()
        await finished(slow)

        assert [oracle(PROMPT, 4), oracle(LONG, 4)] == [ids(quick), ids(slow)]


async def test_reasons_for_computing(runner: WatchedRunner) -> None:
    """The report tells new text, a spilled session without an archive, and what the session itself knows better."""
    async with running(runner) as engine:
        new = await done(engine, request(LONG, n=2))
        await engine.call(engine.pool.spill_idle)
        evicted = await done(engine, request(LONG, n=2, computed_before=len(LONG)))
        hinted = await done(engine, request([*LONG[:50], 5], n=2, computed_before=9, hint=(MissReason.HISTORY_CHANGED, "message 7")))
        nothing = await done(engine, request([*LONG, 5, 6], n=2, computed_before=96))
        reports = [run.reuse_report() for run in (new, evicted, hinted, nothing)]

    assert [
        (MissReason.NEW, ""),
        (MissReason.EVICTED, "from token 0 on"),
        (MissReason.HISTORY_CHANGED, "message 7"),
        (MissReason.NONE, ""),
    ] == [(report.reason, report.detail) for report in reports]
    assert all(run.explained for run in (new, evicted, hinted, nothing))


# -- sharing ----------------------------------------------------------------------------------------------------------


async def test_a_prefix_is_computed_once(runner: WatchedRunner, oracle: Oracle) -> None:
    """Sessions that send the same long prompt at once compute its full blocks once, and each answers right."""
    async with running(runner, limits=Limits(8, 16, 16, 16)) as engine:
        prompts = [[*LONG[:96], 3 + i, 4, 5] for i in range(4)]
        runner.hold()
        runs = [await engine.submit(request(prompt, n=4)) for prompt in prompts[:1]]
        await acquire(runner.started)
        others = [asyncio.ensure_future(engine.submit(request(prompt, n=4))) for prompt in prompts[1:]]
        await asyncio.sleep(0)
        runner.let_go()
        runs += await asyncio.gather(*others)
        for run in runs:
            await finished(run)

        assert [oracle(prompt, 4) for prompt in prompts] == [ids(run) for run in runs]
        assert 96 + 4 * 3 + 4 * 3 == runner.num_tokens
        assert [0, 96, 96, 96] == [run.reused[Tier.DEVICE] for run in runs]


async def test_tenants_share_nothing(runner: WatchedRunner) -> None:
    """The same prompt of two tenants is computed twice."""
    async with running(runner) as engine:
        await done(engine, request(LONG, n=1, tenant="a"))
        other = await done(engine, request(LONG, n=1, tenant="b"))

        assert (0, 200) == (other.reused[Tier.DEVICE], runner.num_tokens)
