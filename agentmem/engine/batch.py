"""One step's batch: the flattened row of tokens of all sessions, and which parts each of them attends to.

Everything that depends on the step but not on the layer is worked out here, once; the attention function only follows the
plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agentmem.memory.decode import DecodePlan, Single
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch, Segment, Span

Rows = slice | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One session's tokens in a step: rows ``start`` to ``stop`` of the flattened batch, at positions from ``position``."""

    start: int
    stop: int
    position: int
    spans: tuple[Span, ...]  # everything the last token sees, the tokens of this step included
    segment: Segment  # where K and V of these tokens are written
    row: int  # first row written there


@dataclass(frozen=True, slots=True, eq=False)
class PartCall:
    """One attention call: batch rows ``rows`` attend to ``start:stop`` of a segment; the result is part number ``slot``."""

    rows: Rows
    segment: Segment
    start: int
    stop: int
    causal: bool
    slot: int


@dataclass(slots=True, eq=False)
class StepBatch:
    """Token ids and positions ``[1, T]`` (int64), the rows whose logits are needed, and the attention plan."""

    token_ids: Tensor
    positions: Tensor
    logits_rows: Tensor
    slices: tuple[Slice, ...]
    calls: tuple[PartCall, ...]
    singles: tuple[Single, ...]  # calls of one query each, which have a kernel of their own on some devices
    n_slots: int
    decode: DecodePlan | None = None
    windows: dict[int, bool] = field(default_factory=dict)  # window -> whether it cuts anything in this step

    def every_call(self) -> tuple[PartCall, ...]:
        """Return all calls, single queries included, for devices that have no kernel of their own for those."""
        singles = [PartCall(slice(s.row, s.row + 1), s.segment, s.start, s.stop, causal=False, slot=s.slot) for s in self.singles]
        return (*self.calls, *singles)

    def cut_by(self, window: int) -> bool:
        """Return whether a sliding window of that many tokens hides anything from any token of this step."""
        if window not in self.windows:
            self.windows[window] = any(s.position + s.stop - s.start > window for s in self.slices)
        return self.windows[window]


@dataclass(frozen=True, slots=True)
class Work:
    """What the scheduler wants of one session in a step: its next tokens, and for which of them logits (offsets)."""

    branch: Branch
    token_ids: Sequence[int]
    logits: Sequence[int] = ()
    expect: int = 0  # rows about to come in all, a hint for the pool


def build_batch(pool: KVPool, work: Sequence[Work], device: torch.device) -> StepBatch:
    """Claim the rows that the step will write and plan its attention. Mutates the pool; raises PoolFull."""
    slices: list[Slice] = []
    tokens: list[int] = []
    positions: list[int] = []
    logits_rows: list[int] = []
    for item in work:
        position = item.branch.length
        count = len(item.token_ids)
        segment, row = pool.append(item.branch, count, item.expect)
        start = len(tokens)
        slices.append(Slice(start, start + count, position, tuple(pool.spans(item.branch)), segment, row))
        logits_rows.extend(start + offset for offset in item.logits)
        tokens.extend(item.token_ids)
        positions.extend(range(position, position + count))
    calls, singles, n_slots = _plan(slices, device)
    return StepBatch(
        torch.tensor([tokens], device=device),
        torch.tensor([positions], device=device),
        torch.tensor(logits_rows, dtype=torch.long, device=device),
        tuple(slices),
        calls,
        singles,
        n_slots,
    )


def _plan(slices: Sequence[Slice], device: torch.device) -> tuple[tuple[PartCall, ...], tuple[Single, ...], int]:
    """Turn views into attention calls; a past part that several sessions share is read once for all (cascade)."""
    calls: list[PartCall] = []
    singles: list[Single] = []
    shared: defaultdict[tuple[int, int, int, int], list[tuple[Slice, Span]]] = defaultdict(list)
    n_slots = 1
    for item in slices:
        count = item.stop - item.start
        *past, last = item.spans
        slot = 0
        for slot, span in enumerate(past):
            shared[id(span.segment), span.start, span.stop, slot].append((item, span))
        slot = len(past)
        rows = slice(item.start, item.stop)
        if count == 1:  # one query sees all of its segment, itself included: no mask, one part
            shared[id(last.segment), last.start, last.stop, slot].append((item, last))
        else:
            if item.row > last.start:
                calls.append(PartCall(rows, last.segment, last.start, item.row, causal=False, slot=slot))
                slot += 1
            calls.append(PartCall(rows, item.segment, item.row, item.row + count, causal=True, slot=slot))
        n_slots = max(n_slots, slot + 1)
    for (_, start, stop, slot), group in shared.items():
        first, span = group[0]
        where: Rows = slice(first.start, first.stop)
        if len(group) == 1 and first.stop - first.start == 1:
            singles.append(Single(first.start, span.segment, start, stop, slot))
            continue
        if len(group) > 1:
            where = torch.tensor([r for item, _ in group for r in range(item.start, item.stop)], device=device)
        calls.append(PartCall(where, span.segment, start, stop, causal=False, slot=slot))
    return tuple(calls), tuple(singles), n_slots
