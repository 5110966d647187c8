"""What goes wrong while finished turns are compressed: damage, lost blocks, jobs that fail, writers that come in, sessions that go."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from support.replica import BLOCK, TENANT, Replica, running, until
from support.sealing import COMPACT, EXACT, WEAK, exact, result_files, talk
from torch import Tensor

from agentmem import faults
from agentmem.compression.recipe import SealJob
from agentmem.engine.batch import StepBatch
from agentmem.errors import NotFound, SealFailed
from agentmem.sessions.session import Session
from agentmem.types import Fidelity, MissReason, Policy, SessionId
from agentmem.views import SealState, SessionPatch


async def sealed(replica: Replica, policy: Policy = WEAK, turns: int = 3) -> Session:
    """Return a settled session with so many turns."""
    await replica.create(policy=policy)
    await talk(replica, turns)
    return await replica.settle()


def length(session: Session) -> int:
    return session.sealed.length if session.sealed else 0


# -- damage


@pytest.mark.parametrize("damage", ["cut", "delete", "foreign"])
async def test_a_damaged_result_is_made_again(replica: Replica, damage: str) -> None:
    """Results are a cache: one that is cut in half, gone or another's is computed anew, to the same bytes."""
    before = length(await sealed(replica))
    files = result_files(replica)
    data = files[0].read_bytes()
    await replica.core.close(5.0)
    if damage == "delete":
        files[0].unlink()
    else:
        files[0].write_bytes(data[: len(data) // 2] if damage == "cut" else files[1].read_bytes())
    replica.open()
    await replica.manager.get(TENANT, "a")
    session = await replica.settle()
    assert before == length(session)
    assert 1 == replica.manager.sealing.stats.done
    assert data == files[0].read_bytes()


async def test_a_lost_first_unit_is_made_again_for_those_that_follow(replica: Replica) -> None:
    """The first unit's mean centres all codes: when its result is gone, a later turn brings it back before its own is made."""
    session = await sealed(replica, turns=2)
    first = next(path for path in result_files(replica) if path.name.startswith(session.sealed_by[0].block.hex()))
    first.unlink()
    await talk(replica, 1)
    await replica.settle()
    assert first.is_file()
    assert (len(session.chain) // BLOCK - 4) * BLOCK == length(session)


@pytest.mark.parametrize("policy", [EXACT, COMPACT])
async def test_a_block_deleted_under_a_live_session_is_recomputed_and_reported(replica: Replica, policy: Policy) -> None:
    """When a seal job misses a block, it comes back from the device, or is computed again, and the next reply says what had happened."""
    session = await sealed(replica, policy)
    file = replica.block_file("a", 2)
    size = file.stat().st_size
    file.unlink()
    await replica.manager.update(TENANT, "a", SessionPatch(policy=replace(policy, keep=0.4)))  # everything is compressed anew
    await replica.settle()
    assert size == file.stat().st_size
    assert (len(session.chain) // BLOCK - 4) * BLOCK == length(session)
    assert 0.4 == session.sealed_by[0].recipe.keep
    answer = await replica.ask("a", "next", 8, ignore_eos=True, fidelity=Fidelity.EXACT)
    assert MissReason.MISSING == answer.start.reuse.reason
    exact(replica, answer)


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_lost_block_is_found_by_the_reply(replica: Replica, loaded: bool) -> None:
    """A compact view is made of what can be read; the rest is computed, reported, archived and compressed again."""
    before = length(await sealed(replica))
    await replica.restart()
    if loaded:  # the units are known, and the block goes afterwards
        await replica.manager.get(TENANT, "a")
        await replica.settle()
    digest = replica.core.ledger.session_blocks(TENANT, SessionId("a"))[3][1].hex()
    file = replica.state / "blocks" / digest[:2] / f"{digest}.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    answer = await replica.ask("a", "next", 8, ignore_eos=True)
    assert answer.start.reuse.reason in (MissReason.CORRUPT, MissReason.MISSING)
    session = await replica.settle()
    assert length(session) > before
    assert file.stat().st_size > 100
    again = await replica.ask("a", "next", 8, ignore_eos=True, fidelity=Fidelity.EXACT)
    exact(replica, again)


async def test_a_loss_that_a_job_noticed_is_what_the_reply_reports(replica: Replica) -> None:
    """A damaged block is set aside by who reads it first; the reply that misses it later still says what had happened to it."""
    await sealed(replica, EXACT)
    for path in result_files(replica):
        path.unlink()
    await replica.restart()
    digest = replica.core.ledger.session_blocks(TENANT, SessionId("a"))[3][1].hex()
    file = replica.state / "blocks" / digest[:2] / f"{digest}.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    await replica.manager.get(TENANT, "a")
    await until(lambda: replica.session().hint is not None)
    answer = await replica.ask("a", "next", 8, ignore_eos=True)
    assert MissReason.EVICTED != answer.start.reuse.reason
    assert answer.start.reuse.reason in (MissReason.CORRUPT, MissReason.MISSING)
    assert answer.start.reuse == answer.finish.reuse
    exact(replica, answer)


# -- jobs that fail


async def test_a_parked_job_leaves_its_tokens_in_the_tail(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session goes on without that unit, inspect shows it, and a restart tries again."""
    session = await sealed(replica, turns=1)
    before = length(session)

    async def refuse(_job: SealJob) -> None:
        raise SealFailed("parked after 3 attempts")

    monkeypatch.setattr(replica.core.executor, "seal", refuse)
    await talk(replica, 2)
    await replica.settle()
    assert before == length(session)
    turns = (await replica.manager.inspect(TENANT, "a"))[1]
    assert {SealState.PARKED} == {turn.sealed for turn in turns[1:]}  # the first turn's recent window belongs to the second's unit
    assert turns[1].kept < turns[2].kept == 1.0
    assert 1 == replica.manager.stats().seals_parked
    assert turns[3].turn.report
    await replica.restart()
    await replica.manager.get(TENANT, "a")
    assert length(await replica.settle()) > before


async def test_a_result_that_never_becomes_readable_is_given_up(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that says it is done and leaves nothing is asked a few times, not for ever."""
    asked: list[SealJob] = []

    async def pretend(job: SealJob) -> None:
        asked.append(job)

    monkeypatch.setattr(replica.core.executor, "seal", pretend)
    session = await sealed(replica, turns=1)
    assert 3 == len(asked)
    assert session.sealed is None
    exact(replica, await replica.ask("a", "next", 8, ignore_eos=True))


async def test_without_an_archive_nothing_is_sealed(tmp_path: Path) -> None:
    """With kv_archive off there is nothing to compress: approximate sessions attend to everything."""
    async with running(tmp_path, storage__kv_archive=False) as replica:
        assert (await sealed(replica, turns=2)).sealed is None
        exact(replica, await replica.ask("a", "next", 8, ignore_eos=True))


async def test_a_quota_that_is_full_ends_the_work(tmp_path: Path) -> None:
    """Blocks that do not fit are not tried for ever; what fits is sealed, and replies go on."""
    async with running(tmp_path, storage__disk_bytes="60KiB") as replica:
        session = await sealed(replica, turns=3)
        assert length(session) < len(session.chain) - 100
        answer = await replica.ask("a", "next", 8, ignore_eos=True, fidelity=Fidelity.EXACT)
        exact(replica, answer)


async def test_a_report_that_cannot_be_written_is_written_later(replica: Replica) -> None:
    """A full disk delays reports as it delays turns: the session is not durable until the ledger has them."""
    session = await sealed(replica)
    await replica.core.housekeeper.stop()  # which would try again within a second
    archive_some = replica.manager.sealer.archive_some

    async def on_a_full_disk(writing: Session, dirty: list[int]) -> bool:
        if dirty:
            faults.arm("ledger.before_commit", "enospc")
        try:
            return await archive_some(writing, dirty)
        finally:
            faults.disarm()

    replica.manager.sealer.archive_some = on_a_full_disk  # type: ignore[method-assign,assignment]
    await replica.ask("a", "x", 8, ignore_eos=True)
    await replica.settle()
    index = session.turns[-1].index
    assert session.turns[-1].report
    assert index in session.unsaved
    await replica.manager.sealer.heal()
    assert {} == session.unsaved
    assert session.turns == replica.core.ledger.turns(TENANT, session.record.id)


async def test_work_that_found_no_memory_is_done_later(replica: Replica) -> None:
    """A re-encode that is refused while the device is full evicts nobody and is tried again by the clock."""
    session = await sealed(replica)
    pool = replica.core.engine.pool
    fits = pool.fits
    pool.fits = lambda _rows, **_: False  # type: ignore[method-assign]
    await replica.ask("a", "x", 20, ignore_eos=True)
    await replica.settle()
    assert not session.info().exact
    assert session.turns[-1].report is None
    assert SealState.QUEUED == (await replica.manager.inspect(TENANT, "a"))[1][-1].sealed
    pool.fits = fits  # type: ignore[method-assign]
    await replica.manager.sealing.retry()
    await replica.settle()
    assert session.info().exact
    assert session.turns[-1].report


# -- writers, and sessions that go


async def test_a_new_turn_takes_over_at_once_and_loses_nothing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that arrives during the re-encode waits for one step, what was done stays done, the rest follows, both turns are reported."""
    session = await sealed(replica, replace(WEAK, recall="none"), turns=1)
    engine, go = replica.core.engine, threading.Event()
    forward, stats = engine.runner.forward, engine.stats
    before = stats.reencoded

    def gated(batch: StepBatch) -> Tensor:
        if stats.reencoded > before:
            go.wait(20.0)
        return forward(batch)

    monkeypatch.setattr(engine.runner, "forward", gated)
    await replica.ask("a", "long", 350, ignore_eos=True)
    approximate = session.branch.approx_from if session.branch else None
    assert approximate is not None
    await until(lambda: stats.reencoded > before)  # and the next step is stopped
    asking = asyncio.ensure_future(replica.ask("a", "new", 20, ignore_eos=True))
    await until(lambda: session.writer == "Generate")
    go.set()
    assert (await asking).finish.durable
    await replica.settle()
    compared = [turn.report.tokens for turn in session.turns[-2:] if turn.report]
    assert [349, 20] == compared  # of the second turn's also the first, which was predicted over what was still approximate
    assert len(session.chain) - 1 - approximate == stats.reencoded - before  # each token once
    assert session.info().exact
    exact(replica, await replica.ask("a", "exact", 8, ignore_eos=True, fidelity=Fidelity.EXACT))


async def test_a_session_that_goes_takes_its_work_along(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting does not wait for a seal job, and the session is gone at once; what the job reads goes when the job has ended."""
    started, go = asyncio.Event(), asyncio.Event()

    async def stuck(_job: SealJob) -> None:
        started.set()
        await go.wait()

    monkeypatch.setattr(replica.core.executor, "seal", stuck)
    await replica.create(policy=WEAK)
    await replica.ask("a", "x" * 200, 20, ignore_eos=True)
    await started.wait()
    session = replica.session()
    settling = asyncio.ensure_future(replica.manager.sealing.settle(session))
    await replica.manager.delete(TENANT, "a")
    await settling
    with pytest.raises(NotFound):
        await replica.manager.get(TENANT, "a")
    assert replica.core.archive.stats().held > 0
    go.set()
    await replica.manager.sealing.under_way.wait(None)
    assert [] == list((replica.state / "blocks").rglob("*.safetensors"))
    assert 0 == replica.core.archive.stats().held


async def test_turns_go_on_beside_a_slow_job(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job is under way the session takes turns, rolls back, forks, and is found settled afterwards."""
    go = asyncio.Event()
    seal = replica.core.executor.seal

    async def slow(job: SealJob) -> None:
        await go.wait()
        await seal(job)

    monkeypatch.setattr(replica.core.executor, "seal", slow)
    await replica.create(policy=WEAK)
    for index in range(3):
        await replica.ask("a", f"{index}" * 100, 10, ignore_eos=True)
    await replica.manager.fork(TENANT, "a", at_turn=2, new_id="b", labels=None)
    await replica.manager.rollback(TENANT, "a", to_turn=2)
    assert replica.session().background.is_working  # type: ignore[union-attr]
    go.set()
    for name in ("a", "b"):
        session = await replica.settle(name)
        assert (len(session.chain) // BLOCK - 4) * BLOCK == length(session)


async def test_closing_does_not_wait_for_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that stops leaves its jobs; the next start finds what is missing."""
    replica = Replica(tmp_path)
    started = asyncio.Event()

    async def stuck(_job: SealJob) -> None:
        started.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(replica.core.executor, "seal", stuck)
    await replica.create(policy=WEAK)
    await replica.ask("a", "x" * 200, 20, ignore_eos=True)
    await started.wait()
    await replica.restart()
    await replica.manager.get(TENANT, "a")
    assert length(await replica.settle()) > 0
    await replica.check()
    await replica.core.close(1.0)


# -- auto budgets


async def test_a_bad_turn_raises_the_next_ones_budgets(replica: Replica) -> None:
    """Below the objective keep and recall grow for the next turn, the report says so, everything is compressed anew, a restart keeps it."""
    policy = Policy(Fidelity.RECALL, keep=0.1, recall_tokens=2, bits=64, objective=1.0)
    session = await sealed(replica, policy)
    for _ in range(6):
        await replica.ask("a", "x", 30, ignore_eos=True)
        await replica.settle()
        report = session.turns[-1].report
        assert report is not None
        if report.top1_agreement < 1.0:
            break
    assert (report.next_keep, report.next_recall_tokens) > (report.keep, report.recall_tokens)
    assert {report.next_keep} == {job.recipe.keep for job in session.sealed_by}
    await replica.restart()
    await replica.ask("a", "y", 8, ignore_eos=True)
    session = await replica.settle()
    following = session.turns[-1].report
    assert following is not None
    assert (report.next_keep, report.next_recall_tokens) == (following.keep, following.recall_tokens)


async def test_old_units_serve_until_the_new_ones_are_there(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed keep or code length is compressed in the background; meanwhile replies run on what there is."""
    session = await sealed(replica)
    old = session.sealed
    go = asyncio.Event()
    seal = replica.core.executor.seal

    async def slow(job: SealJob) -> None:
        await go.wait()
        await seal(job)

    monkeypatch.setattr(replica.core.executor, "seal", slow)
    await replica.manager.update(TENANT, "a", SessionPatch(policy=replace(WEAK, keep=0.3, bits=128)))
    answer = await replica.ask("a", "x", 8, ignore_eos=True)
    assert answer.finish.usage.attended < 1.0
    assert old is session.sealed
    go.set()
    await replica.settle()
    assert session.sealed is not None
    assert 16 == session.sealed.units[0].codes.shape[-1]
    assert {0.3} == {job.recipe.keep for job in session.sealed_by}


async def test_sessions_that_share_a_prefix_seal_it_at_once(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions have the result of one unit made at the same time, each reads it, and nobody takes it for a failure."""
    names = [f"s{n}" for n in range(6)]
    executor = replica.manager.sealing.sealer.executor
    make, waiting, gate = executor.seal, [0], asyncio.Event()

    async def seal(job: SealJob) -> None:
        waiting[0] += job.start == 0
        await gate.wait()
        await make(job)

    monkeypatch.setattr(executor, "seal", seal)
    for name in names:
        await replica.create(name, system="what all of them are told first " * 8, policy=EXACT)
    await asyncio.gather(*(replica.ask(name, f"{name} what is there to say " * 3, 8, ignore_eos=True) for name in names))
    await until(lambda: waiting[0] == len(names))
    gate.set()
    for name in names:
        session = await replica.settle(name)
        assert (len(session.chain) // BLOCK - 4) * BLOCK == length(session)
    assert 0 == replica.manager.sealing.stats.parked
