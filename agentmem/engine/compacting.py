"""Making a compact branch: reading the residents of sealed units from the archive, and copying the tail that follows them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from agentmem.engine.restore import Archive
from agentmem.memory.archived import ArchivedRows
from agentmem.memory.compact import CompactRows, resident_mask
from agentmem.memory.pool import KVPool
from agentmem.memory.recall.state import RecallState
from agentmem.memory.sealed import SealedMemory
from agentmem.memory.segment import Branch, Segment, spans_of
from agentmem.memory.shape import KVShape
from agentmem.memory.upload import Uploader
from agentmem.stores.host import host_tensor
from agentmem.stores.mapped import MappedBlock
from agentmem.stores.records import BlockUnavailable
from agentmem.types import MissReason, Tier


@dataclass(frozen=True, slots=True)
class Heads:
    """How the model's query heads read: ``group`` of them share a KV head, ``scale`` multiplies q.k."""

    group: int
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Compacted:
    """What came of it. ``rows`` None: a block was unavailable for ``reason``, and only the units of ``usable`` can be read."""

    rows: CompactRows | None
    tokens: dict[Tier, int]
    usable: SealedMemory
    reason: MissReason = MissReason.NONE
    detail: str = ""


def load_compact(archive: Archive, sealed: SealedMemory, segment: Segment, heads: Heads, method: str | None) -> Compacted:
    """Fill the rows of a compact ``segment`` with the residents of ``sealed`` and build the recaller ``method``. Loader's thread.

    The segment's rows must stay claimed until this returns.
    """
    mapped: list[MappedBlock] = []
    size = sealed.length // len(sealed.blocks)
    for index, name in enumerate(sealed.blocks):
        try:
            mapped.append(archive.map(name))
        except BlockUnavailable as error:
            units = tuple(unit for unit in sealed.units if unit.stop <= index * size)
            usable = SealedMemory(sealed.blocks[: units[-1].stop // size] if units else (), units)
            return Compacted(None, {}, usable, error.reason, error.detail)
    rows = ArchivedRows(mapped, sealed.length, segment.k.dtype)
    _fill_residents(segment, sealed, rows)
    rows.layer(0)  # compiled here, on first use in a process, rather than in a step
    compact = CompactRows(sealed, rows, resident_mask(sealed), heads.group, heads.scale)
    if method is not None:
        make_recaller(compact, method, segment)
    tiers = Counter(block.tier for block in mapped)
    return Compacted(compact, {tier: count * size for tier, count in tiers.items()}, sealed)


def make_recaller(compact: CompactRows, method: str, segment: Segment) -> None:
    """Build a recaller and have it search twice, so that what it compiles and pages in costs the loader's thread and no step."""
    layers, kv_heads, _, dim = segment.k.shape
    shape = KVShape(layers, kv_heads, dim, segment.k.dtype, segment.k.device)
    heads = compact.group * kv_heads
    state = RecallState(compact.recaller(method), compact.rows, shape, heads, limit=1, stride=2)
    for _ in range(2):
        state.begin_step()
        state.refresh(0, np.ones((heads, dim), np.float32))


def _fill_residents(segment: Segment, sealed: SealedMemory, rows: ArchivedRows) -> None:
    keep = torch.cat([unit.keep for unit in sealed.units], dim=2).to(torch.int32).numpy()
    layers, kv_heads, kept = keep.shape
    shape, counts = (kv_heads, kept, segment.k.shape[3]), np.full(kv_heads, kept, np.int64)
    uploader = Uploader(segment.k.device)
    for layer in range(layers):
        k, v = host_tensor(shape, segment.k.dtype), host_tensor(shape, segment.v.dtype)
        rows.gather(layer, keep[layer], counts, k, v)
        uploader.copy(segment.k[layer], k)
        uploader.copy(segment.v[layer], v)
    uploader.wait()


def copy_tail(pool: KVPool, source: Branch, branch: Branch, stop: int) -> None:
    """Append what ``source`` has of the tokens from the end of ``branch`` up to position ``stop``. Engine thread.

    Copies nothing where a gap would be left.
    """
    start, stop = branch.length, min(stop, source.length)
    if not source.alive or source.covers > start or stop <= start:
        return
    segment, row = pool.append(branch, stop - start)
    for span in spans_of(source.segment, source.length):
        base = span.segment.base
        first, last = max(start, base), min(stop, base + span.stop)
        if span.segment.covers or first >= last:
            continue
        into = slice(row + first - start, row + last - start)
        segment.k[:, :, into] = span.segment.k[:, :, first - base : last - base]
        segment.v[:, :, into] = span.segment.v[:, :, first - base : last - base]
    if source.approx_from is not None and start <= source.approx_from < stop:
        branch.approx_from = source.approx_from
