"""What a compressor is: one frozen dataclass that scores the sealed tokens of a segment, registered by name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar, Protocol

from torch import Tensor

from agentmem.registry import Registry


class Observe(Enum):
    """Which queries a compressor needs to see; the sealing pass records them."""

    NONE = auto()
    WINDOW = auto()  # of the segment's last 64 tokens
    SPREAD = auto()  # of up to four windows of 64 tokens, evenly spaced, the last at the segment's end
    RECONSTRUCT = auto()  # of a pass in which the model repeats the segment, one query for each of its tokens


@dataclass(frozen=True, slots=True, eq=False)
class SealedSegment:
    """Consecutive sealed tokens, from session position ``start`` on.

    ``k`` and ``v`` ``[layers, kv_heads, tokens, head_dim]``, any float dtype, keys with their RoPE phase. ``queries``
    ``[layers, heads, n, head_dim]`` with theirs, heads a multiple of kv_heads, query head h reading KV head ``h // group``; None where
    the compressor observes NONE. ``query_positions`` int64 ``[n]``, ascending: a query sees keys at positions up to its own (RECONSTRUCT:
    all). ``scale`` multiplies q.k before the softmax. Nobody writes to these tensors.
    """

    start: int
    k: Tensor
    v: Tensor
    queries: Tensor | None
    query_positions: Tensor | None
    scale: float


class Compressor(Protocol):
    """Scores tokens for keeping. Pure: no state, no writes to the segment, equal input gives equal output."""

    observes: ClassVar[Observe]

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, finite; the highest are kept. Runs where the segment's tensors are (CPU or CUDA)."""
        ...


compressors: Registry[type[Compressor]] = Registry("compressor")
