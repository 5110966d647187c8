"""What a compact segment's rows were chosen from, so that the others can still be read and recalled."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from agentmem.memory.archived import ArchivedRows
from agentmem.memory.recall.port import Recallable, Recaller, recallers
from agentmem.memory.sealed import SealedMemory


@dataclass(frozen=True, slots=True, eq=False)
class CompactRows:
    """The sealed tokens behind a compact segment: their archived rows, which of them are resident, and who searches the rest.

    ``resident`` bool ``[layers, kv_heads, tokens]``. ``group`` query heads share a KV head; ``scale`` multiplies q.k.
    """

    sealed: SealedMemory
    rows: ArchivedRows
    resident: NDArray[np.bool_]
    group: int
    scale: float
    searchers: dict[str, Recaller] = field(default_factory=dict)

    def recaller(self, method: str) -> Recaller:
        """Return the recaller of that method, built when first asked for. Any thread; two at once may build it twice."""
        if method not in self.searchers:
            memory = Recallable(self.sealed, self.rows, self.resident, self.group, self.scale)
            self.searchers[method] = recallers.get(method)(memory)
        return self.searchers[method]

    @property
    def host_bytes(self) -> int:
        """Private bytes of host memory: the indexes and the residents' mask."""
        return self.resident.nbytes + sum(recaller.host_bytes for recaller in list(self.searchers.values()))


def resident_mask(sealed: SealedMemory) -> NDArray[np.bool_]:
    """Return ``[layers, kv_heads, tokens]``: True where a token stays resident."""
    layers, kv_heads, _ = sealed.units[0].keep.shape
    mask = torch.zeros(layers, kv_heads, sealed.length, dtype=torch.bool)
    for unit in sealed.units:
        mask.scatter_(2, unit.keep.long(), value=True)
    result: NDArray[np.bool_] = mask.numpy()
    return result
