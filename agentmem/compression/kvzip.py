"""KVzip: what the model reads again when it has to repeat the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import attention, by_layer


@compressors.register("kvzip")
@dataclass(frozen=True)
class KVzip:
    """Highest attention that a key got while the model repeated the segment (Kim et al. 2025, arXiv:2505.23416).

    The highest over all queries of that pass and over the heads of a query group. The thorough one: the pass costs as much as a second
    prefill, so it runs when the engine is idle. The paper's softmax also covers the repeated text's own keys, ours the segment's alone.
    """

    observes: ClassVar[Observe] = Observe.RECONSTRUCT

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, 0 to 1. Raises InvalidInput without queries."""
        return by_layer(segment, _highest)


def _highest(segment: SealedSegment, layer: int) -> Tensor:
    highest = torch.zeros(segment.k.shape[1:3], device=segment.k.device)
    for weights in attention(segment, layer, causal=False):
        torch.maximum(highest, weights.amax(dim=(1, 2)), out=highest)
    return highest
