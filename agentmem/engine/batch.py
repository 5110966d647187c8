"""One step's batch: the flattened row of tokens of all sessions, and where each of them reads and writes K and V.

Everything that depends on the step but not on the layer is worked out here, once; the attention function only follows the
plan (``agentmem/engine/plan.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agentmem.engine.observe import Observer
from agentmem.engine.plan import Plan, Slice, make_plan
from agentmem.engine.view import Target, locate, view_of
from agentmem.memory.pool import KVPool
from agentmem.memory.recall.state import RecallState
from agentmem.memory.segment import Branch, Segment


@dataclass(frozen=True, slots=True)
class Work:
    """What the scheduler wants of one session in a step: its next tokens, and for which of them logits (offsets).

    ``start``: the tokens stand in the branch already, from that position on; with ``rewrite`` their K and V are computed again and
    replaced, without it they are only looked at (``observer``). Such work ends where its segment ends: ``rows_from`` says how many
    tokens that allows. ``compact``: a single token attends to the residents of a compact branch, to what ``recall`` finds and to the tail,
    in all layers but the first ``dense_layers``; otherwise tokens attend to everything that came before them but what lies in ``holes``.
    ``residents``: a compact segment that stands in for the start of a branch that has all its rows.
    """

    branch: Branch
    token_ids: Sequence[int]
    logits: Sequence[int] = ()
    expect: int = 0  # rows about to come in all, a hint for the pool
    start: int | None = None
    rewrite: bool = False
    compact: bool = False
    recall: RecallState | None = None
    dense_layers: int = 0
    observer: Observer | None = None
    holes: tuple[range, ...] = ()
    residents: Segment | None = None


@dataclass(slots=True, eq=False)
class StepBatch:
    """Token ids and positions ``[1, T]`` (int64), the rows whose logits are needed, and who attends to what."""

    token_ids: Tensor
    positions: Tensor
    logits_rows: Tensor
    slices: tuple[Slice, ...]
    plans: dict[tuple[bool, ...], Plan] = field(default_factory=dict)
    windows: dict[int, bool] = field(default_factory=dict)  # window -> whether it cuts anything in this step

    def plan(self, layer: int) -> Plan:
        """Return the attention calls of one layer; layers in which the same sessions are dense share a plan."""
        dense = tuple(not item.compact or layer < item.dense_layers for item in self.slices)
        if dense not in self.plans:
            self.plans[dense] = make_plan(self.slices, dense, self.token_ids.device)
        return self.plans[dense]

    def cut_by(self, window: int) -> bool:
        """Return whether a sliding window of that many tokens hides anything from any token of this step."""
        if window not in self.windows:
            self.windows[window] = any(s.position + s.stop - s.start > window for s in self.slices)
        return self.windows[window]


def build_batch(pool: KVPool, work: Sequence[Work], device: torch.device) -> StepBatch:
    """Claim the rows that the step will write and describe what it attends to. Mutates the pool; raises PoolFull."""
    slices: list[Slice] = []
    tokens: list[int] = []
    positions: list[int] = []
    logits_rows: list[int] = []
    for item in work:
        count, start = len(item.token_ids), len(tokens)
        if item.start is None:
            position = item.branch.length
            target: Target | None = Target(*pool.append(item.branch, count, item.expect))
        else:
            position = item.start
            target = locate(item.branch, position) if item.rewrite else None
        if item.recall is not None:
            item.recall.begin_step()
        slices.append(
            Slice(
                start=start,
                stop=start + count,
                position=position,
                view=view_of(item.branch, position + count, item.holes, item.residents),
                target=target,
                compact=item.compact and (item.branch.covers > 0 or item.residents is not None),
                recall=item.recall,
                dense_layers=item.dense_layers,
                observer=item.observer,
            )
        )
        logits_rows.extend(start + offset for offset in item.logits)
        tokens.extend(item.token_ids)
        positions.extend(range(position, position + count))
    return StepBatch(
        torch.tensor([tokens], device=device),
        torch.tensor([positions], device=device),
        torch.tensor(logits_rows, dtype=torch.long, device=device),
        tuple(slices),
    )
