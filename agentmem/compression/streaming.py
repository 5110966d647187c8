"""StreamingLLM: the first tokens and the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.recipe import SINKS


@compressors.register("streaming")
@dataclass(frozen=True)
class Streaming:
    """The later a token, the higher; the session's attention sinks highest of all (Xiao et al. 2023, arXiv:2309.17453).

    It sees one segment at a time: of a session sealed in several units, the last tokens of each stay.
    """

    observes: ClassVar[Observe] = Observe.NONE

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32: a token's index in the segment, ``tokens`` for sinks. Equal in all heads."""
        layers, kv_heads, tokens, _ = segment.k.shape
        index = torch.arange(tokens, dtype=torch.float32, device=segment.k.device)
        index[: max(0, SINKS - segment.start)] = tokens
        return index.expand(layers, kv_heads, tokens).contiguous()
