from __future__ import annotations

from support.replica import BLOCK, OTHER, TENANT, Replica, tiny_model

from agentmem.types import Tier

SYSTEM = "s" * 60


async def test_prefixes_name_what_is_shared(replica: Replica) -> None:
    """Of nested shared prefixes the longest of each number of sharers is named, most shared first, with its size and tier."""
    for name in ("a", "b", "c"):
        await replica.create(name, system=SYSTEM)
        await replica.ask(name, "x" * 40)
    await replica.ask("a", "alone " * 10)
    await replica.manager.fork(TENANT, "a", at_turn=2, new_id="d", labels=None)
    found = await replica.manager.prefixes(TENANT, 10)

    common = len(replica.session("c").chain) // BLOCK * BLOCK
    longest = len(replica.session("d").chain) // BLOCK * BLOCK
    assert [(4, common), (2, longest)] == [(prefix.sessions, prefix.tokens) for prefix in found]
    assert [Tier.DEVICE] * 2 == [prefix.tier for prefix in found]
    assert common * replica.core.engine.pool.shape.row_bytes == found[0].bytes
    assert found[:1] == await replica.manager.prefixes(TENANT, 1)
    assert [] == await replica.manager.prefixes(OTHER, 10)
    await replica.spill()
    assert {Tier.DISK} == {prefix.tier for prefix in await replica.manager.prefixes(TENANT, 10)}


async def test_stats(replica: Replica) -> None:
    """The numbers are those of the model, the ledger, the pool and the engine."""
    await replica.create(system=SYSTEM)
    await replica.create("b")
    answer = await replica.ask("a", "x")
    stats = replica.manager.stats()

    assert (tiny_model().name, tiny_model().fingerprint) == (stats.model, stats.fingerprint)
    assert (2, 1, 0, 0, False) == (stats.sessions, stats.sessions_live, stats.running, stats.waiting, stats.draining)
    assert len(answer.token_ids) == stats.tokens_generated
    assert answer.start.context_tokens == stats.tokens_prefilled
    assert len(replica.session().chain.hashes) == stats.blocks
    assert (await replica.manager.get(TENANT, "a")).disk_bytes == stats.block_bytes
    assert 0 < stats.kv_bytes_used <= stats.kv_bytes_budget
    assert stats.uptime_seconds > 0
    engine = replica.core.engine.stats
    assert (engine.drafted, engine.accepted) == (stats.tokens_drafted, stats.tokens_accepted)
    assert (0.0, 0.0) == (stats.guided_seconds, stats.guided_step_seconds)  # nothing was asked of a grammar
