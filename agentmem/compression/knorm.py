"""K-norm: short keys attract attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import by_layer


@compressors.register("knorm")
@dataclass(frozen=True)
class KNorm:
    """Negative L2 norm of a key: low norms went with high attention in the models studied (Devoto et al. 2024, arXiv:2406.11430)."""

    observes: ClassVar[Observe] = Observe.NONE

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, 0 or below."""
        return by_layer(segment, lambda part, layer: -part.k[layer].float().norm(dim=-1))
