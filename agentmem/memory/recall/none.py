"""No recall: a control, and what COMPACT amounts to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentmem.memory.recall.port import Found, Recallable, recallers


@recallers.register("none")
class NoRecall:
    """Finds nothing."""

    host_bytes = 0

    def __init__(self, memory: Recallable) -> None:
        self._kv_heads = memory.rows.kv_heads

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return no tokens."""
        return Found(np.empty((self._kv_heads, limit), np.int32), np.zeros(self._kv_heads, np.int64))

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Return no tokens."""
        return self.find(layer, query, limit)
