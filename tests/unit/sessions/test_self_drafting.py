"""Drafting over the compressed memory, on a real engine with sealed turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.replica import TENANT, Replica
from support.sealing import EXACT, exact, talk

from agentmem.views import SessionPatch

DRAFTING = replace(EXACT, drafter="compact", draft_tokens=3, keep=0.5)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"])
async def test_the_compressed_memory_drafts_and_all_of_it_decides(replica: Replica, sampling: dict[str, float]) -> None:
    """The reply is the one without drafts; some of what was proposed was right, and nothing approximate stays behind."""
    await replica.create(policy=DRAFTING)
    await talk(replica, 2)
    await replica.manager.fork(TENANT, "a", at_turn=None, new_id="b", labels=None)
    await replica.manager.update(TENANT, "b", SessionPatch(policy=replace(DRAFTING, drafter="none")))
    drafted = await replica.ask("a", "and then?", 40, ignore_eos=True, **sampling)
    plain = await replica.ask("b", "and then?", 40, ignore_eos=True, **sampling)

    assert plain.token_ids == drafted.token_ids
    assert drafted.finish.usage.drafted > drafted.finish.usage.accepted > 0
    assert drafted.finish.usage.steps < plain.finish.usage.steps
    branch = replica.session().branch
    assert branch is not None
    assert branch.approx_from is None
    if not sampling:
        exact(replica, drafted)


async def test_without_sealed_turns_there_is_nothing_to_draft_from(replica: Replica) -> None:
    """A new session replies without drafts."""
    await replica.create(policy=DRAFTING)
    assert 0 == (await replica.ask("a", "hello", 12, ignore_eos=True)).finish.usage.drafted


async def test_residents_are_given_back(replica: Replica) -> None:
    """After the reply the device holds what it held before, and the books add up."""
    await replica.create(policy=DRAFTING)
    await talk(replica, 2)
    engine = replica.core.engine
    before = engine.pool.used_bytes
    await replica.ask("a", "and then?", 8, ignore_eos=True)
    await replica.settle()
    await engine.call(engine.pool.check_integrity)
    assert engine.pool.used_bytes < 2 * before
    assert 1 == sum(branch.alive for branch in engine.pool._branches if branch.segment is not None)
