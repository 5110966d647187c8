"""Random keeping: the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors

_WORDS = 4  # 64-bit words that Philox draws at each value of its counter


@compressors.register("random")
@dataclass(frozen=True)
class Random:
    """Noise that follows from layer, KV head and session position alone (Philox: Salmon et al. 2011, doi:10.1145/2063384.2063405).

    So a token's score is the same however the session was cut into segments, and on every machine.
    """

    observes: ClassVar[Observe] = Observe.NONE

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, uniform in [0, 1)."""
        layers, kv_heads, tokens, _ = segment.k.shape
        counter, skip = divmod(segment.start, _WORDS)
        noise = np.empty((layers, kv_heads, tokens), dtype=np.float32)
        for layer in range(layers):
            for head in range(kv_heads):
                key = np.array([layer, head], dtype=np.uint64)
                words = np.random.Philox(key=key, counter=counter).random_raw(skip + tokens)[skip:]
                noise[layer, head] = (words >> np.uint64(40)) * 2.0**-24  # as many bits as fp32 holds exactly
        return torch.from_numpy(noise).to(segment.k.device)
