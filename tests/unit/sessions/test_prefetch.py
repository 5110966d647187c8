"""Memory that is away comes back before it is needed, and never at anybody's cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.replica import TENANT, Replica, running, until
from support.sealing import EXACT, WEAK, exact, talk

from agentmem.sessions import sealing
from agentmem.types import Policy


@pytest.fixture
async def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    """Run a replica that fetches ahead, without waiting to see whether a call comes at once."""
    monkeypatch.setattr(sealing, "OPENED_SECONDS", 0.0)
    async with running(tmp_path, prefetches=True) as made:
        yield made


def on_device(replica: Replica) -> int:
    """Return the length of the session's branch."""
    branch = replica.session().branch
    return branch.length if branch is not None and branch.alive else 0


@pytest.mark.parametrize("policy", [EXACT, WEAK])
async def test_a_session_that_is_opened_comes_back(replica: Replica, policy: Policy) -> None:
    """Asking for a session after a restart starts restoring it; the reply then reads the device."""
    await replica.create(policy=policy)
    await talk(replica, 2)
    await replica.restart()
    await replica.manager.get(TENANT, "a")
    await until(lambda: on_device(replica) >= len(replica.tokens()) - 1)
    answer = await replica.ask("a", "x", 8, ignore_eos=True)
    assert answer.start.reuse.device >= len(replica.tokens()) - 8 - answer.start.input_tokens - 1
    if policy is EXACT:
        exact(replica, answer)


async def test_a_session_whose_tool_answers_soon_comes_back(replica: Replica) -> None:
    """EndTurn with a time brings memory back shortly before; without a tool nothing is fetched."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    await replica.spill()
    await replica.manager.end_turn(TENANT, "a", waiting_on_tool=False, eta_seconds=0.0)
    await replica.settle()
    assert 0 == on_device(replica)
    await replica.manager.end_turn(TENANT, "a", waiting_on_tool=True, eta_seconds=3600.0)
    await replica.settle()
    assert 0 == on_device(replica)
    await replica.manager.end_turn(TENANT, "a", waiting_on_tool=True, eta_seconds=1.0)
    await until(lambda: on_device(replica) > 0)


async def test_nobody_is_evicted_for_it(replica: Replica) -> None:
    """Where the device has no room the memory stays away until the call itself needs it."""
    await replica.create(policy=EXACT)
    await talk(replica, 2)
    await replica.spill()
    await replica.create("b", policy=EXACT, system="another past")
    await talk(replica, 2, "b")
    pool, tokens = replica.core.engine.pool, len(replica.tokens())
    before, pool.budget_bytes = pool.budget_bytes, pool.used_bytes + 10 * pool.shape.row_bytes
    try:
        await replica.manager.end_turn(TENANT, "a", waiting_on_tool=True, eta_seconds=0.0)
        await until(lambda: replica.session().background._timer is None)  # type: ignore[union-attr]
        await replica.settle()
        assert 0 == on_device(replica)
        assert 1 == pool.num_spilled  # by the test itself
        assert tokens == len(replica.tokens())
    finally:
        pool.budget_bytes = before
