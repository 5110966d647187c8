"""What becomes of finished turns while nobody writes, on a real engine: exact again, reported, archived, compressed, swapped in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.replica import BLOCK, TENANT, Answer, Replica, running, user
from support.sealing import COMPACT, EXACT, RECALL, WEAK, exact, result_files, talk

from agentmem.types import Fidelity, MissReason, Policy, Prefill, SessionFormat, TurnInput, TurnState
from agentmem.views import ChangeKind, SealState, SessionPatch


async def test_finished_turns_are_compressed_in_every_mode(replica: Replica) -> None:
    """In an EXACT session too everything but the recent window is compressed and indexed, and replies stay exact."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    session = await replica.settle()
    assert session.sealed is not None
    assert (len(session.chain) // BLOCK - 4) * BLOCK == session.sealed.length
    assert 0.1 < session.sealed.kept / session.sealed.length < 0.5
    assert session.branch is not None
    assert 0 == session.branch.covers
    exact(replica, await replica.ask("a", "and then?", 8))


async def test_exact_replies_stay_exact_through_sealing_spilling_and_reload(replica: Replica) -> None:
    """Whatever happens to the memory between two turns, greedy replies are those of transformers with a full cache (invariant 5)."""
    await replica.create(policy=EXACT, system="s" * 60)
    exact(replica, await replica.ask("a", "one " * 30, 20, ignore_eos=True))
    await replica.settle()
    exact(replica, await replica.ask("a", "two " * 10, 20, ignore_eos=True))
    await replica.settle()
    await replica.spill()
    exact(replica, await replica.ask("a", "three", 20, ignore_eos=True))
    await replica.restart()
    exact(replica, await replica.ask("a", "four", 20, ignore_eos=True))


async def test_an_approximate_turn_is_labelled_and_reported(replica: Replica) -> None:
    """Start, finish, ledger and usage say what it ran with; its report compares what was decoded with the exact re-encode."""
    await replica.create(policy=WEAK)
    await talk(replica, 2)
    await replica.settle()
    answer = await replica.ask("a", "go on", 30, ignore_eos=True)
    assert {RECALL.fidelity} == {answer.start.fidelity, answer.finish.fidelity, replica.session().turns[-1].fidelity}
    assert 0.0 < answer.finish.usage.attended < 1.0

    session = await replica.settle()
    report = session.turns[-1].report
    assert report is not None
    assert (29, True, "full cache") == (report.tokens, report.reencoded, report.reference)  # the prompt's own prediction was exact
    assert (answer.finish.usage.attended, WEAK.keep, WEAK.recall_tokens) == (report.attended, report.keep, report.recall_tokens)
    assert report.max_kl >= report.mean_kl > 0.0
    assert report.worst_position is not None
    assert len(session.chain) - 30 < report.worst_position < len(session.chain)
    assert {} == session.evidence.decoded == session.evidence.compared == session.evidence.policies


@pytest.mark.parametrize("prefill", Prefill)
async def test_a_reencode_makes_everything_exact_again(replica: Replica, prefill: Prefill) -> None:
    """After it the K and V of approximate turns, prompts that were read under the view included, are those of a full cache."""
    await replica.create(policy=replace(WEAK, prefill=prefill))
    await talk(replica, 3)
    session = await replica.settle()
    assert session.info().exact
    assert len(session.chain) // BLOCK == session.num_saved_blocks
    await replica.restart()
    answer = await replica.ask("a", "exactly", 12, ignore_eos=True, fidelity=Fidelity.EXACT)
    assert answer.start.reuse.disk >= len(replica.tokens()) // BLOCK * BLOCK - 64
    exact(replica, answer)


async def test_approximate_blocks_are_not_archived_before(replica: Replica) -> None:
    """When the reply ends, the blocks that it filled wait for the re-encode; its turn is durable all the same."""
    await replica.create(policy=WEAK)
    await talk(replica, 2)
    session = await replica.settle()
    seen: list[int] = []
    commit = replica.manager.sealer.commit

    async def watched(writing: object) -> bool:
        done = await commit(session)
        seen.append(session.num_saved_blocks)
        assert writing is session
        return done

    replica.manager.sealer.commit = watched  # type: ignore[method-assign,assignment]
    before = len(session.chain)
    answer = await replica.ask("a", "x", 3 * BLOCK, ignore_eos=True)
    assert answer.finish.durable
    assert [(before + answer.start.input_tokens) // BLOCK] == seen
    await replica.settle()
    assert len(session.chain) // BLOCK == session.num_saved_blocks


@pytest.mark.parametrize("policy", [WEAK, COMPACT])
async def test_memory_shrinks_when_it_is_swapped_in(replica: Replica, policy: Policy) -> None:
    """After the turn the device holds what was kept and the tail; info and inspect say how much."""
    await replica.create(policy=policy)
    await talk(replica, 3)
    session = await replica.settle()
    assert session.sealed is not None
    info, turns = await replica.manager.inspect(TENANT, "a")
    tail = len(session.chain) - session.sealed.length
    assert tail < BLOCK + 64 + BLOCK
    assert (session.sealed.kept, session.sealed.length) == (info.resident_tokens, info.sealed_tokens)
    assert session.sealed.kept + tail >= info.device_tokens >= session.sealed.kept + tail - 1
    assert info.device_bytes == info.device_tokens * session.row_bytes
    assert (policy.fidelity, True) == (info.fidelity, info.exact)
    assert abs(sum(turn.resident_tokens for turn in turns) - info.device_tokens) <= len(turns)
    assert {SealState.SEALED} == {turn.sealed for turn in turns}
    assert all(0 < turn.kept < 1 for turn in turns[1:])


async def test_switching_loses_nothing(replica: Replica) -> None:
    """EXACT, RECALL, COMPACT and EXACT again on one session, by call: the last reply is what a full cache says."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    for fidelity in (Fidelity.RECALL, Fidelity.COMPACT, Fidelity.EXACT, Fidelity.RECALL, Fidelity.EXACT):
        await replica.settle()
        answer = await replica.ask("a", "next", 10, ignore_eos=True, fidelity=fidelity)
        assert {fidelity} == {answer.start.fidelity, answer.finish.fidelity}
        if fidelity is Fidelity.EXACT:
            exact(replica, answer)


async def test_switching_at_once_loses_nothing(replica: Replica) -> None:
    """An EXACT call that comes before the re-encode began computes what was approximate itself."""
    await replica.create(policy=WEAK)
    await talk(replica, 2)
    await replica.settle()
    await replica.ask("a", "weak", 20, ignore_eos=True)
    exact(replica, await replica.ask("a", "exact", 10, ignore_eos=True, fidelity=Fidelity.EXACT))


@pytest.mark.parametrize("fidelity", [Fidelity.RECALL, Fidelity.COMPACT])
async def test_nothing_sealed_is_nothing_missed(replica: Replica, fidelity: Fidelity) -> None:
    """Before anything is compressed an approximate session simply attends to everything."""
    await replica.create(policy=Policy(fidelity))
    answer = await replica.ask("a", "short", 20, ignore_eos=True)
    assert (fidelity, 1.0) == (answer.finish.fidelity, answer.finish.usage.attended)
    exact(replica, answer)
    report = (await replica.settle()).turns[-1].report
    assert report is not None
    assert (0, 1.0) == (report.tokens, report.attended)


async def test_set_fidelity_swaps_at_once(replica: Replica) -> None:
    """The policy decides what lies on the device between turns; the next reply runs with it."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    await replica.settle()
    info = await replica.manager.set_fidelity(TENANT, "a", Fidelity.COMPACT)
    assert Fidelity.COMPACT == info.record.policy.fidelity == info.fidelity
    session = await replica.settle()
    assert session.branch is not None
    assert session.sealed is not None
    assert session.sealed.length == session.branch.covers
    assert Fidelity.COMPACT == (await replica.ask("a", "x")).start.fidelity


async def test_without_a_reencode_the_tail_grows(replica: Replica) -> None:
    """With ``reencode`` off rows stay approximate: nothing beyond them is archived or compressed, the report compares nothing."""
    await replica.create(policy=replace(WEAK, reencode=False))
    await talk(replica, 1)
    session = await replica.settle()
    saved = []
    for _ in range(2):
        await replica.ask("a", "x", 2 * BLOCK, ignore_eos=True)
        await replica.settle()
        saved.append((session.num_saved_blocks, session.sealed.length if session.sealed else 0))
        report = session.turns[-1].report
        assert report is not None
        assert (0, False) == (report.tokens, report.reencoded)
    assert saved[0] == saved[1]
    assert not session.info().exact


async def test_short_turns(replica: Replica) -> None:
    """Turns of one token, and turns shorter than the recent window, seal nothing and lose nothing."""
    await replica.create("r", policy=replace(WEAK, keep=1.0, recall_tokens=65_536), format=SessionFormat.RAW)
    for _ in range(3):
        answer = await replica.ask("r", TurnInput(token_ids=(65,)), 1, ignore_eos=True)
        assert 1 == len(answer.token_ids)
    session = await replica.settle("r")
    assert session.sealed is None
    await replica.ask("r", TurnInput(token_ids=tuple(range(65, 95)) * 5), 1, ignore_eos=True)
    await replica.ask("r", TurnInput(token_ids=(65,)), 1, ignore_eos=True)
    session = await replica.settle("r")
    assert session.sealed is not None
    exact(replica, await replica.ask("r", TurnInput(token_ids=(66,)), 5, ignore_eos=True), "r")


async def test_recall_larger_than_the_archive_finds_all_of_it(replica: Replica) -> None:
    """A budget beyond what there is means everything: the reply is exact."""
    await replica.create(policy=replace(WEAK, recall="oracle", recall_tokens=65_536))
    await talk(replica, 2)
    await replica.settle()
    answer = await replica.ask("a", "all", 12, ignore_eos=True)
    assert 1.0 == pytest.approx(answer.finish.usage.attended)
    exact(replica, answer)


async def test_a_restart_finds_results_and_computes_none(replica: Replica) -> None:
    """Units follow from the ledger and their results lie beside the blocks: after a restart they are read, not made."""
    await replica.create(policy=WEAK)
    await talk(replica, 3)
    before = await replica.settle()
    files = result_files(replica)
    assert replica.manager.sealing.stats.done == len(files) > 1
    await replica.restart()
    await replica.manager.get(TENANT, "a")
    session = await replica.settle()
    assert before.sealed is not None
    assert session.sealed is not None
    assert before.sealed_by == session.sealed_by
    assert before.sealed.blocks == session.sealed.blocks
    assert before.turns == session.turns
    assert 0 == replica.manager.sealing.stats.done
    assert files == result_files(replica)


async def test_forks_share_results(replica: Replica) -> None:
    """A fork attends to the very units of its source, and its own turns alone are compressed anew."""
    await replica.create(policy=WEAK)
    await talk(replica, 3)
    source = await replica.settle()
    done = replica.manager.sealing.stats.done
    await replica.manager.fork(TENANT, "a", at_turn=2, new_id="b", labels=None)
    fork = await replica.settle("b")
    assert source.sealed is not None
    assert fork.sealed is not None
    assert fork.sealed.units == source.sealed.units[: len(fork.sealed.units)]
    assert fork.sealed_by == source.sealed_by[: len(fork.sealed_by)]
    assert 0 < len(fork.sealed.units) < len(source.sealed.units)
    assert done == replica.manager.sealing.stats.done
    assert [turn.report for turn in source.turns[:3]] == [turn.report for turn in fork.turns]
    await replica.manager.delete(TENANT, "a")
    exact(replica, await replica.ask("b", "go", 8, ignore_eos=True, fidelity=Fidelity.EXACT), "b")


async def test_rollback_drops_units(replica: Replica) -> None:
    """Units beyond the turn that is left go; what was kept is still exact, and grows again."""
    await replica.create(policy=WEAK)
    await talk(replica, 3)
    session = await replica.settle()
    long = session.sealed.length if session.sealed else 0
    await replica.manager.rollback(TENANT, "a", to_turn=1)
    await replica.settle()
    assert session.sealed is not None
    assert session.sealed.length <= len(session.chain) < long
    exact(replica, await replica.ask("a", "again", 8, ignore_eos=True, fidelity=Fidelity.EXACT))
    await talk(replica, 2)
    await replica.settle()
    assert session.sealed.length > len(session.chain) // 2


async def test_end_turn_reports_and_seals(replica: Replica) -> None:
    """A turn that ends without a reply gets its report; Seal returns when all of it is compressed."""
    await replica.create(policy=WEAK)
    await replica.manager.append(TENANT, "a", user("x" * 200), request_id=None)
    assert SealState.OPEN == (await replica.manager.inspect(TENANT, "a"))[1][1].sealed
    info = await replica.manager.seal(TENANT, "a")
    assert info.sealed_tokens > 0
    turn = replica.session().turns[1]
    assert (TurnState.SEALED, RECALL.fidelity) == (turn.state, turn.fidelity)
    assert turn.report is not None
    assert 0 == turn.report.tokens


async def test_watchers_hear_of_reports(replica: Replica) -> None:
    """When the re-encode of a turn is over, watchers are told that it is sealed."""
    await replica.create(policy=WEAK)
    changes = replica.manager.watch(TENANT, "a")
    await anext(changes)
    await talk(replica, 1)
    await replica.settle()
    seen = [(await anext(changes)).kind for _ in range(3)]
    assert [ChangeKind.GENERATING, ChangeKind.GENERATED, ChangeKind.SEALED] == seen
    await changes.aclose()


async def test_auto_is_exact_while_it_fits(tmp_path: Path) -> None:
    """Up to its share of the device an AUTO session attends to everything, beyond it RECALL takes over; the reply says which."""
    async with running(tmp_path, memory__kv_bytes="1MiB", memory__session_share=0.15) as replica:
        await replica.create(policy=replace(WEAK, fidelity=Fidelity.AUTO))
        limit = replica.manager.table.live(TENANT, "a").exact_tokens  # type: ignore[union-attr]
        seen: list[tuple[Fidelity, bool]] = []
        for _ in range(5):
            answer: Answer = await replica.ask("a", "y" * 60, 20, ignore_eos=True)
            seen.append((answer.start.fidelity, answer.start.context_tokens + 20 <= limit))
            await replica.settle()
        assert [(Fidelity.EXACT if fits else Fidelity.RECALL) for _, fits in seen] == [fidelity for fidelity, _ in seen]
        assert {True, False} == {fits for _, fits in seen}


async def test_auto_gives_way_when_others_hold_the_memory(replica: Replica) -> None:
    """Where an EXACT context would not fit beside what is running, AUTO recalls instead of waiting; an explicit EXACT does not."""
    await replica.create(policy=replace(WEAK, fidelity=Fidelity.AUTO))
    await talk(replica, 2)
    session = await replica.settle()
    pool = replica.core.engine.pool
    generator = replica.manager.generator
    assert Fidelity.EXACT == await generator._fidelity(session, None, 400)
    pool.budget_bytes, budget = 300 * session.row_bytes, pool.budget_bytes
    try:
        assert Fidelity.RECALL == await generator._fidelity(session, None, 400)
        assert Fidelity.EXACT == await generator._fidelity(session, Fidelity.EXACT, 400)
        assert Fidelity.EXACT == await generator._fidelity(session, None, 280)
    finally:
        pool.budget_bytes = budget


async def test_a_policy_changed_during_a_reply_applies_from_the_next(replica: Replica) -> None:
    """The reply under way keeps what it began with, in its events and in the ledger."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    await replica.settle()
    events = replica.events("a", user("x"), 30, ignore_eos=True)
    seen = [await anext(events)]
    await replica.manager.update(TENANT, "a", SessionPatch(policy=COMPACT))
    seen += [event async for event in events]
    answer = Answer(tuple(seen))
    assert {Fidelity.EXACT} == {answer.start.fidelity, answer.finish.fidelity, replica.session().turns[-1].fidelity}
    exact(replica, answer)
    await replica.settle()
    assert Fidelity.COMPACT == (await replica.ask("a", "next")).finish.fidelity


async def test_an_archive_at_lower_precision_serves_recall_and_no_exact_reply(tmp_path: Path) -> None:
    """RECALL reads it and says so in its report; EXACT computes anew what the archive cannot give back, and is exact."""
    async with running(tmp_path, storage__archive_format="int4") as replica:
        await replica.create(policy=WEAK)
        await talk(replica, 2)
        await replica.restart()
        await replica.manager.get(TENANT, "a")
        await replica.settle()
        await replica.ask("a", "weak", 12, ignore_eos=True)
        report = (await replica.settle()).turns[-1].report
        assert report is not None
        assert "int4 archive" == report.reference
        answer = await replica.ask("a", "exact", 12, ignore_eos=True, fidelity=Fidelity.EXACT)
        assert MissReason.QUANTISED == answer.start.reuse.reason
        assert 0 == answer.start.reuse.disk
        exact(replica, answer)
