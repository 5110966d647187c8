"""What operators and users see of sessions: where turns are, which prefixes are shared, the replica's numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from agentmem import __version__
from agentmem.engine.engine import Engine
from agentmem.sessions.session import Session
from agentmem.sessions.table import SessionTable
from agentmem.types import BlockHash, TenantId, Tier
from agentmem.views import PrefixInfo, ServerStats, TurnInfo


def turn_infos(session: Session, rows: Sequence[tuple[int, BlockHash, int]]) -> list[TurnInfo]:
    """Return the session's turns with their blocks; ``rows`` are (turn, block, bytes) as the ledger has them.

    A block counts for the turn that completes it, so the first turns of a session may have none.
    """
    size, end, infos = session.chain.block_tokens, 0, []
    for turn in list(session.turns):
        start, end = end, end + len(turn.token_ids)
        on_disk = [n_bytes for index, _, n_bytes in rows if index == turn.index]
        infos.append(
            TurnInfo(
                turn=turn,
                n_tokens=len(turn.token_ids),
                n_blocks=end // size - start // size,
                blocks_on_disk=len(on_disk),
                disk_bytes=sum(on_disk),
                durable=turn.index not in session.unsaved,
            )
        )
    return infos


def stats(table: SessionTable, engine: Engine, *, draining: bool) -> ServerStats:
    """Return the replica's numbers."""
    rows = table.ledger.stats()
    return ServerStats(
        version=__version__,
        model=table.model.name,
        fingerprint=table.model.fingerprint,
        uptime_seconds=time.monotonic() - table.started,
        sessions=rows.sessions,
        sessions_live=sum(1 for session in table if session.branch is not None and session.branch.alive),
        running=len(engine.scheduler.active),
        waiting=engine.scheduler.num_waiting,
        kv_bytes_used=engine.pool.used_bytes,
        kv_bytes_budget=engine.pool.budget_bytes,
        blocks=rows.blocks,
        block_bytes=rows.block_bytes,
        tokens_prefilled=engine.stats.prefill_tokens,
        tokens_generated=engine.stats.decode_tokens,
        tokens_from_device=engine.stats.reused[Tier.DEVICE],
        tokens_from_host=engine.stats.reused[Tier.HOST],
        tokens_from_disk=engine.stats.reused[Tier.DISK],
        spills=engine.pool.num_spilled,
        steps_failed=engine.stats.failed_steps,
        draining=draining,
    )


def prefixes(table: SessionTable, tenant: TenantId, limit: int) -> list[PrefixInfo]:
    """Return the prefixes that several live sessions of ``tenant`` share: of equally shared nested ones the longest."""
    chains = [session.chain for session in table if session.record.tenant == tenant and session.chain.hashes]
    sharers = Counter(name for chain in chains for name in chain.hashes)
    found: dict[BlockHash, PrefixInfo] = {}
    for chain in chains:
        row = table.engine.pool.shape.row_bytes * chain.block_tokens
        counts = [sharers[name] for name in chain.hashes] + [0]
        for index, name in enumerate(chain.hashes):
            if counts[index] > 1 and counts[index + 1] < counts[index]:
                tier = Tier.DEVICE if table.engine.pool.holds(name) else Tier.DISK
                depth = index + 1
                found[name] = PrefixInfo(name.hex(), depth * chain.block_tokens, counts[index], depth * row, tier)
    return sorted(found.values(), key=lambda prefix: (-prefix.sessions, -prefix.tokens))[:limit]
