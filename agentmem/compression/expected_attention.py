"""Expected attention: what queries drawn from the distribution of the last ones would attend to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agentmem.compression.compressor import Observe, SealedSegment, compressors
from agentmem.compression.observed import by_layer, queries_of


@compressors.register("expected_attention")
@dataclass(frozen=True)
class ExpectedAttention:
    """Log of the expected weight E[exp(q.k)] / sum over keys, times the value's norm (Devoto et al. 2025, arXiv:2510.00636).

    Queries of a head are taken as Gaussian, so E[exp(s q.k)] = exp(s mean.k + s^2 k.Cov.k / 2), s the scale. The paper fits queries before
    RoPE and averages the rotation over the positions to come; we take the recorded, rotated queries as samples of those of the near
    future, all of them whatever their position. A query group's weights are averaged. The logarithm ranks alike and cannot underflow.
    """

    observes: ClassVar[Observe] = Observe.SPREAD

    def score(self, segment: SealedSegment) -> Tensor:
        """Return ``[layers, kv_heads, tokens]`` fp32, finite also for values of length zero. Raises InvalidInput without queries."""
        return by_layer(segment, _expected)


def _expected(segment: SealedSegment, layer: int) -> Tensor:
    queries, _ = queries_of(segment, layer)
    keys = segment.k[layer].float()
    mean = queries.mean(dim=2)
    centred = queries - mean[:, :, None]
    covariance = torch.einsum("hgqd,hgqe->hgde", centred, centred) / queries.shape[2]
    first = torch.einsum("hgd,hnd->hgn", mean, keys) * segment.scale
    spread = torch.einsum("hnd,hgde,hne->hgn", keys, covariance, keys) * (segment.scale**2 / 2)
    weight = (first + spread).log_softmax(dim=-1).logsumexp(dim=1) - math.log(queries.shape[1])
    length = segment.v[layer].float().norm(dim=-1)
    return torch.add(weight, length.clamp_min(torch.finfo(torch.float32).tiny).log())
