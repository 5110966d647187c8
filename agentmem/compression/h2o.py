"""H2O: heavy hitters, the tokens that attention has piled up on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import attention, by_layer


@compressors.register("h2o")
@dataclass(frozen=True)
class HeavyHitters:
    """Causal attention that a key received, added up over the recorded queries (Zhang et al. 2023, arXiv:2306.14048).

    The paper adds up over every decode step; here windows spread over the segment stand for them. The heads of a query group are averaged.
    """

    observes: ClassVar[Observe] = Observe.SPREAD

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, 0 to the number of queries. Raises InvalidInput without queries."""
        return by_layer(segment, _accumulated)


def _accumulated(segment: SealedSegment, layer: int) -> Tensor:
    total = torch.zeros(segment.k.shape[1:3], device=segment.k.device)
    for weights in attention(segment, layer):
        total += weights.mean(dim=1).sum(dim=1)
    return total
