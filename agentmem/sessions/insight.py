"""What operators and users see of sessions: where turns are, which prefixes are shared, the replica's numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from agentmem import __version__
from agentmem.compression.recipe import SealJob
from agentmem.sessions.sealing import Sealing
from agentmem.sessions.session import Session
from agentmem.sessions.table import SessionTable
from agentmem.types import BlockHash, Fidelity, TenantId, Tier, Turn, TurnState
from agentmem.views import PrefixInfo, SealState, ServerStats, TurnInfo


def turn_infos(
    session: Session, rows: Sequence[tuple[int, BlockHash, int]], sealing: Sealing, attention: Sequence[float] = ()
) -> list[TurnInfo]:
    """Return the session's turns with their blocks; ``rows`` are (turn, block, bytes) as the ledger has them.

    A block counts for the turn that completes it, so the first turns of a session may have none. ``attention``: the shares of the first
    turns, as far as they were measured.
    """
    size, end, infos = session.chain.block_tokens, 0, []
    kept, jobs = _kept_before(session), sealing.jobs(session)
    for turn in list(session.turns):
        start, end = end, end + len(turn.token_ids)
        on_disk = {block: n_bytes for index, block, n_bytes in rows if index == turn.index}
        resident = _resident(session, kept, start, end)
        infos.append(
            TurnInfo(
                turn=turn,
                n_tokens=len(turn.token_ids),
                n_blocks=end // size - start // size,
                blocks_on_disk=len(on_disk),
                disk_bytes=sum(on_disk.values()),
                host_bytes=sealing.sealer.archive.host_bytes(on_disk),
                durable=turn.index not in session.unsaved,
                resident_tokens=round(resident),
                kept=(kept(end) - kept(start)) / (end - start) if end > start else 1.0,
                device_bytes=round(resident * session.row_bytes),
                forgotten=len(turn.forgotten),
                attention=attention[turn.index] if turn.index < len(attention) else None,
                sealed=_seal_state(session, turn, range(start, end), jobs, sealing),
            )
        )
    return infos


def _kept_before(session: Session) -> Callable[[int], float]:
    """Return a function: of the tokens before a position, how many stay resident in a compact view, on average over layers and KV heads."""
    sealed = session.sealed
    if sealed is None:
        return float
    layers, kv_heads, _ = sealed.units[0].keep.shape
    counts = sum(torch.bincount(unit.keep.flatten().long(), minlength=sealed.length) for unit in sealed.units)
    before = [0.0, *(torch.as_tensor(counts).cumsum(0) / (layers * kv_heads)).tolist()]
    return lambda position: before[min(position, sealed.length)] + max(0, position - sealed.length)


def _resident(session: Session, kept: Callable[[int], float], start: int, end: int) -> float:
    """Return how many of the tokens ``start`` to ``end`` have their rows on the device, on average over layers and KV heads."""
    branch = session.branch
    if branch is None or not branch.alive:
        return 0.0
    start, end = min(start, branch.length), min(end, branch.length)
    return kept(end) - kept(start) if branch.covers else end - start


def _seal_state(session: Session, turn: Turn, span: range, jobs: Sequence[SealJob], sealing: Sealing) -> SealState:
    """Return how far the turn whose tokens are ``span`` has come; ``jobs`` are all of the session's."""
    sealable = jobs[-1].start + len(jobs[-1].blocks) * session.chain.block_tokens if jobs else 0
    if turn.state is TurnState.OPEN:
        return SealState.OPEN
    if turn.report is None and turn.fidelity is not Fidelity.EXACT:
        return SealState.QUEUED
    if span.start >= sealable:
        return SealState.OPEN
    if session.sealed is not None and min(span.stop, sealable) <= session.sealed.length:
        return SealState.SEALED
    given_up = any(sealing.is_parked(job) for job in jobs if job.start < span.stop)
    return SealState.PARKED if given_up else SealState.QUEUED


def stats(table: SessionTable, sealing: Sealing, *, draining: bool) -> ServerStats:
    """Return the replica's numbers."""
    rows, tiers, engine = table.ledger.stats(), sealing.sealer.archive.stats(), table.engine
    live = [(session, session.info()) for session in table]
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
        host_bytes_used=tiers.host_used,
        host_bytes_budget=tiers.host_bytes,
        disk_bytes_used=tiers.disk_used,
        disk_bytes_budget=tiers.disk_bytes,
        index_bytes=sum(info.host_bytes for _, info in live),
        resident_bytes=sum(info.resident_tokens * session.row_bytes for session, info in live),
        result_bytes=tiers.result_bytes,
        blocks_evicted=tiers.evicted,
        seal_queue=sum(session.background is not None and session.background.is_working for session, _ in live),
        seals_done=sealing.stats.done,
        seals_parked=sealing.stats.parked,
        tokens_reencoded=engine.stats.reencoded,
        workers_alive=sealing.sealer.executor.num_workers,
        tokens_drafted=engine.stats.drafted,
        tokens_accepted=engine.stats.accepted,
        guided_seconds=engine.stats.guided_seconds,
        guided_step_seconds=engine.stats.guided_step_seconds,
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
