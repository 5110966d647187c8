"""KeyDiff: keys that resemble the average key are the ones to lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import by_layer


@compressors.register("keydiff")
@dataclass(frozen=True)
class KeyDiff:
    """Negative cosine between a key and the mean of the segment's normalised keys (Park et al. 2025, arXiv:2504.15364).

    Needs no query, so it may run before a question is known. A key of length zero, or a mean of length zero, scores 0.
    """

    observes: ClassVar[Observe] = Observe.NONE

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, -1 to 1."""
        return by_layer(segment, _distinctness)


def _distinctness(segment: SealedSegment, layer: int) -> Tensor:
    directions = normalize(segment.k[layer].float(), dim=-1)
    anchor = normalize(directions.mean(dim=1), dim=-1)
    return -(directions @ anchor[:, :, None]).squeeze(-1)
