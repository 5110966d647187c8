"""The attention calls of a step: which rows of the batch attend to which rows of K and V, and where each result goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.engine.observe import Observer
from agentmem.engine.view import Part, Target, View
from agentmem.memory.decode import DecodePlan, Recalled, Single
from agentmem.memory.recall.state import RecallState
from agentmem.memory.segment import Segment

Rows = slice | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """One session's tokens in a step: rows ``start`` to ``stop`` of the flattened batch, at positions from ``position``.

    ``target`` None: their K and V are not written. ``compact``: the one token attends to residents, to what ``recall`` finds and to the
    tail.
    """

    start: int
    stop: int
    position: int
    view: View
    target: Target | None
    compact: bool = False
    recall: RecallState | None = None
    dense_layers: int = 0
    observer: Observer | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PartCall:
    """One attention call: batch rows ``rows`` attend to a part; the result is part number ``slot``."""

    rows: Rows
    part: Part
    causal: bool
    slot: int


@dataclass(slots=True, eq=False)
class Plan:
    """All calls of a layer. ``singles`` are calls of one query each, which have a kernel of their own on some devices."""

    calls: tuple[PartCall, ...]
    singles: tuple[Single, ...]
    recalls: tuple[Recalled, ...]
    n_slots: int
    decode: DecodePlan | None = None

    def every_call(self) -> tuple[PartCall, ...]:
        """Return all calls, single queries included, for devices that have no kernel of their own for those."""
        singles = [
            PartCall(slice(s.row, s.row + 1), Part(s.segment, s.start, s.stop, s.segment.base), causal=False, slot=s.slot)
            for s in self.singles
        ]
        return (*self.calls, *singles)


class _Planner:
    """Collects calls; a past part that several sessions share is read once for all of them (cascade)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.calls: list[PartCall] = []
        self.singles: list[Single] = []
        self.recalls: list[Recalled] = []
        self.shared: defaultdict[tuple[int, int, int, int], list[tuple[Slice, Part]]] = defaultdict(list)
        self.n_slots = 1

    def add(self, item: Slice, *, dense: bool) -> None:
        """Plan the calls of one session."""
        *past, last = item.view.parts
        residents = item.view.residents
        slot = 0
        if not dense and residents is not None:
            past = [Part(residents, 0, residents.length, 0), *past[1:]]
            if item.recall is not None:
                self.recalls.append(Recalled(item.start, item.recall, slot))
                slot += 1
        for part in past:
            if part.start < part.stop:
                self.shared[id(part.source), part.start, part.stop, slot].append((item, part))
                slot += 1
        slot = self._add_own(item, last, slot)
        self.n_slots = max(self.n_slots, slot)

    def _add_own(self, item: Slice, last: Part, slot: int) -> int:
        """Plan the part that ends with the step's own tokens; return the next free slot."""
        count = item.stop - item.start
        own = item.position - last.base
        rows = slice(item.start, item.stop)
        if count == 1:  # one query sees all of its part, itself included: no mask, one call
            self.shared[id(last.source), last.start, last.stop, slot].append((item, last))
            return slot + 1
        if own > last.start:
            self.calls.append(PartCall(rows, Part(last.source, last.start, own, last.base), causal=False, slot=slot))
            slot += 1
        self.calls.append(PartCall(rows, Part(last.source, own, last.stop, last.base), causal=True, slot=slot))
        return slot + 1

    def finish(self) -> Plan:
        """Turn what is shared into calls of their own kind."""
        for (_, _, _, slot), group in self.shared.items():
            first, part = group[0]
            where: Rows = slice(first.start, first.stop)
            if len(group) == 1 and first.stop - first.start == 1 and isinstance(part.source, Segment):
                self.singles.append(Single(first.start, part.source, part.start, part.stop, slot))
                continue
            if len(group) > 1:
                where = torch.tensor([r for item, _ in group for r in range(item.start, item.stop)], device=self.device)
            self.calls.append(PartCall(where, part, causal=False, slot=slot))
        return Plan(tuple(self.calls), tuple(self.singles), tuple(self.recalls), self.n_slots)


def make_plan(slices: Sequence[Slice], dense: Sequence[bool], device: torch.device) -> Plan:
    """Turn views into attention calls; ``dense`` says for each slice whether it attends to everything in these layers."""
    planner = _Planner(device)
    for item, full in zip(slices, dense, strict=True):
        planner.add(item, dense=full)
    return planner.finish()
