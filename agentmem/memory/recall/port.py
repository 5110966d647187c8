"""The port behind which recall methods live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agentmem.memory.archived import ArchivedRows
from agentmem.memory.sealed import SealedMemory
from agentmem.registry import Registry


@dataclass(frozen=True, slots=True, eq=False)
class Recallable:
    """What a method searches: the sealed tokens of one session.

    ``rows`` gives their K and V; ``resident`` bool ``[layers, kv_heads, length]`` is True for tokens that the view holds already: these are
    never found. ``group`` query heads share a KV head; ``scale`` multiplies q.k.
    """

    sealed: SealedMemory
    rows: ArchivedRows
    resident: NDArray[np.bool_]
    group: int
    scale: float
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Tokens found in one layer.

    ``ids`` int32 ``[kv_heads, limit]``: session positions, the first ``counts[h]`` of a row valid, each once. ``bias`` fp32
    ``[heads, limit]`` is added to the scaled scores of a query head (importance weights of a sampled estimate); None: nothing. ``pool``
    int64 ``[kv_heads, m]``, -1 for none: the candidates that a search was about, from which ``again`` may choose.
    """

    ids: NDArray[np.int32]
    counts: NDArray[np.int64]
    bias: NDArray[np.float32] | None = None
    pool: NDArray[np.int64] | None = None


class Recaller(Protocol):
    """Finds tokens for one session. Engine thread only; may keep state; never writes to what it was given."""

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return up to ``limit`` tokens per KV head for ``query`` ``[heads, head_dim]`` (RoPE applied, not scaled).

        ``limit`` bounds the union over a KV head's query group, so that what is read is bounded. More than there are: all of them.
        """
        ...

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Do as ``find`` for the query of a later step, with no more than what is needed; ``last`` is what the step before found.

        ``away`` ``[kv_heads]``: whose queries have turned away from those that searched last. ``last.pool`` may be written to.
        """
        ...

    @property
    def host_bytes(self) -> int:
        """Private bytes of its index."""
        ...


class RecallMethod(Protocol):
    """Makes a recaller for one session."""

    def __call__(self, memory: Recallable) -> Recaller:
        """Return a recaller over ``memory``."""
        ...


recallers: Registry[RecallMethod] = Registry("recall method")
