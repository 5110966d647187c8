"""The last part of every search: candidates are scored exactly, and the best of them taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agentmem.memory.recall.port import Found, Recallable
from agentmem.memory.recall.rank_kernel import ranker


class Ranking:
    """Takes the best candidates of a layer by q.k on the archived keys. Engine thread only: it keeps marks from call to call."""

    def __init__(self, memory: Recallable) -> None:
        self._memory = memory
        self._rank = ranker(*memory.rows.kind, memory.group)
        self._seen: NDArray[np.bool_] = np.zeros(memory.rows.length, np.bool_)
        self._nothing = np.empty((memory.rows.kv_heads, 0), np.int32), np.zeros(memory.rows.kv_heads, np.int64)

    @property
    def host_bytes(self) -> int:
        """Bytes of its marks."""
        return self._seen.nbytes

    def best(
        self,
        layer: int,
        candidates: NDArray[np.int64],
        query: NDArray[np.float32],
        limit: int,
        chosen: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None,
    ) -> Found:
        """Return the best of ``candidates`` ``[kv_heads, m]`` (residents and doubles are dropped, -1 is none).

        ``query`` ``[heads, head_dim]``, contiguous. ``chosen``: tokens ``[kv_heads, any]`` and how many of each row count; what follows
        them are candidates too. A token ranks by the maximum over its KV head's queries of its score less the query's best score, so that
        no query with small scores is left without. Of equals the earlier candidate is taken.
        """
        rows = self._memory.rows
        found = Found(np.empty((rows.kv_heads, limit), np.int32), np.empty(rows.kv_heads, np.int64))
        after, n_after = chosen or self._nothing
        resident = self._memory.resident[layer]
        self._rank(rows.k, layer, candidates, after, n_after, resident, query, self._seen, found.ids, found.counts)
        return found
