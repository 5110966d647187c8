"""What sealing has made of a session's leading tokens: the units that a compact view is put together from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agentmem.types import BlockHash


@dataclass(frozen=True, slots=True, eq=False)
class SealedUnit:
    """Tokens ``start`` to ``stop`` of a session, whole blocks.

    ``keep`` int32 ``[layers, kv_heads, kept]``: positions in the session that stay resident, ascending. ``codes`` uint8
    ``[layers, kv_heads, stop - start, bits / 8]``. Both on the CPU, maybe memory-mapped: never write to them.
    """

    start: int
    stop: int
    keep: Tensor
    codes: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SealedMemory:
    """The sealed tokens 0 to ``length`` of one session: consecutive units, and the hashes of the blocks that they span."""

    blocks: tuple[BlockHash, ...]
    units: tuple[SealedUnit, ...]

    @property
    def length(self) -> int:
        """Tokens that the units stand for."""
        return self.units[-1].stop if self.units else 0

    @property
    def kept(self) -> int:
        """Tokens that stay resident, the same number in each layer and KV head."""
        return sum(unit.keep.shape[2] for unit in self.units)

    def is_same(self, other: SealedMemory) -> bool:
        """Whether both are made of the very same units."""
        return len(self.units) == len(other.units) and all(mine is theirs for mine, theirs in zip(self.units, other.units, strict=True))
