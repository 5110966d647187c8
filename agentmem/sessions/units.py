"""Units of sealing: which blocks are compressed together, worked out from the ledger alone, and the jobs that do it.

Blocks are sealed turn by turn, all but the newest ones: the recent window stays as full rows, so that what was said last is always at
hand. Nothing here has a state: after a restart, in a fork or on another machine the same turns give the same units and the same jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.compression.recipe import SINKS, Recipe, SealJob
from agentmem.memory.sealed import SealedMemory
from agentmem.types import BlockHash, Turn, TurnState

RECENT_TOKENS = 64  # never sealed, so that they stay resident whatever a compressor thinks of them
MAX_UNIT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class UnitShape:
    """What the cut depends on beside the turns: tokens of a block, and the tokens at the end that stay as they are."""

    block_tokens: int
    recent_tokens: int = RECENT_TOKENS

    @property
    def recent_blocks(self) -> int:
        """Full blocks that hold the recent tokens."""
        return -(-self.recent_tokens // self.block_tokens)

    @property
    def max_blocks(self) -> int:
        """Blocks of the largest unit."""
        return max(1, MAX_UNIT_TOKENS // self.block_tokens)


def units_of(turns: Sequence[Turn], shape: UnitShape) -> list[range]:
    """Return the blocks of each unit, in order and without a gap from block 0 on. An open turn waits for its end."""
    units: list[range] = []
    end = done = 0
    for turn in turns:
        if turn.state is not TurnState.SEALED:
            break
        end += len(turn.token_ids)
        stop = max(done, end // shape.block_tokens - shape.recent_blocks)
        units += [range(first, min(first + shape.max_blocks, stop)) for first in range(done, stop, shape.max_blocks)]
        done = stop
    return units


def jobs_of(turns: Sequence[Turn], hashes: Sequence[BlockHash], shape: UnitShape, recipe: Recipe, scale: float) -> list[SealJob]:
    """Return the seal job of each unit. ``hashes`` name the blocks of ``turns``, ``scale`` multiplies q.k before the softmax.

    The first unit's mean key centres the hash codes of all, and the recent window counts towards what it may keep; of the prelude, and
    of the sinks at least, every token stays.
    """
    jobs: list[SealJob] = []
    protect = max(SINKS, len(turns[0].token_ids)) if turns else SINKS
    for unit in units_of(turns, shape):
        anchor = (jobs[0].block, jobs[0].name) if jobs else None
        blocks = tuple(hashes[unit.start : unit.stop])
        beside = 0 if jobs else shape.recent_tokens
        jobs.append(SealJob(blocks, unit.start * shape.block_tokens, protect, recipe, anchor, scale, beside))
    return jobs


def sealed_upto(memory: SealedMemory | None, hashes: Sequence[BlockHash], tokens: int, size: int) -> SealedMemory | None:
    """Return the units of ``memory`` that lie within the first ``tokens`` tokens of the session with blocks ``hashes``; None: none do."""
    if memory is None:
        return None
    same = next((i for i, (mine, theirs) in enumerate(zip(memory.blocks, hashes, strict=False)) if mine != theirs), None)
    limit = min(tokens, len(hashes) * size if same is None else same * size)
    units = tuple(unit for unit in memory.units if unit.stop <= limit)
    return SealedMemory(memory.blocks[: units[-1].stop // size], units) if units else None
