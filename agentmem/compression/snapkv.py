"""SnapKV: the last queries vote on what the next will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import attention, by_layer
from agentmem.errors import InvalidInput


@compressors.register("snapkv")
@dataclass(frozen=True)
class SnapKV:
    """Attention of the segment's last 64 queries, pooled over neighbouring keys (Li et al. 2024, arXiv:2404.14469).

    ``pooling`` ``avg`` or ``max`` over ``kernel`` keys (odd) keeps what stands beside a chosen token, so that phrases stay whole. The heads
    of a query group are averaged before pooling. The paper keeps its window too; here the session's recent window lies behind the
    segment, so the observing tokens compete like all others.
    """

    pooling: str = "avg"
    kernel: int = 5
    observes: ClassVar[Observe] = Observe.WINDOW

    def __post_init__(self) -> None:
        """Raise InvalidInput for an unknown pooling or a kernel without a middle."""
        if self.pooling not in {"avg", "max"}:
            raise InvalidInput(f"snapkv pooling is {self.pooling!r}; allowed: avg, max")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise InvalidInput(f"snapkv kernel is {self.kernel}; allowed: odd numbers from 1")

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, 0 to the number of queries. Raises InvalidInput without queries."""
        return by_layer(segment, self._votes)

    def _votes(self, segment: SealedSegment, layer: int) -> Tensor:
        votes = torch.zeros(segment.k.shape[1:3], device=segment.k.device)
        for weights in attention(segment, layer):
            votes += weights.mean(dim=1).sum(dim=1)
        half = self.kernel // 2
        if self.pooling == "max":
            return max_pool1d(votes, self.kernel, stride=1, padding=half)
        # Averages at the ends are of the keys that exist: padding with zeros would punish the segment's first and last tokens.
        return avg_pool1d(votes, self.kernel, stride=1, padding=half, count_include_pad=False)
