"""Exact top-k over all archived keys: the control that every approximate method is measured against. It reads the whole archive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentmem.memory.recall.port import Found, Recallable, recallers
from agentmem.memory.recall.ranking import Ranking


@recallers.register("oracle")
class Oracle:
    """Ranks every token that is not resident."""

    def __init__(self, memory: Recallable) -> None:
        self._ranking = Ranking(memory)
        self._all = np.tile(np.arange(memory.rows.length), (memory.rows.kv_heads, 1))

    @property
    def host_bytes(self) -> int:
        """Private bytes: the list of all tokens, and the ranking's marks."""
        return self._all.nbytes + self._ranking.host_bytes

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return the best ``limit`` tokens."""
        return self._ranking.best(layer, self._all, query, limit)

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Rank every token anew: a control does not save."""
        return self.find(layer, query, limit)
