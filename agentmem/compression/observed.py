"""Attention of the recorded queries to a segment's keys, in pieces of bounded memory: what observing compressors are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from agentmem.compression.compressor import SealedSegment
from agentmem.errors import InvalidInput

CHUNK = 1 << 22  # attention weights that exist at once: 16 MiB in fp32


def by_layer(segment: SealedSegment, score: Callable[[SealedSegment, int], Tensor]) -> Tensor:
    """Return ``[layers, kv_heads, tokens]`` from ``score(segment, layer)`` ``[kv_heads, tokens]``: only one layer is in fp32 at a time."""
    return torch.stack([score(segment, layer) for layer in range(segment.k.shape[0])])


def queries_of(segment: SealedSegment, layer: int) -> tuple[Tensor, Tensor]:
    """Return one layer's queries ``[kv_heads, group, n, head_dim]`` fp32 and their positions ``[n]``, on the segment's device.

    Raises InvalidInput when none were recorded.
    """
    if segment.queries is None or segment.query_positions is None or segment.queries.shape[2] == 0:
        raise InvalidInput("this compressor observes queries, and the segment has none")
    queries = segment.queries[layer].to(segment.k.device, torch.float32)
    return queries.view(segment.k.shape[1], -1, *queries.shape[1:]), segment.query_positions.to(segment.k.device)


def attention(segment: SealedSegment, layer: int, *, causal: bool = True) -> Iterator[Tensor]:
    """Yield softmax weights ``[kv_heads, group, some queries, tokens]`` fp32, in the queries' order, fresh memory each time.

    The softmax runs over the segment's own keys, since scores only compare these with each other. ``causal``: a query sees keys up to
    its own position, and one from before the segment is left out.
    """
    queries, positions = queries_of(segment, layer)
    keys = segment.k[layer].float()
    tokens = keys.shape[1]
    last = positions - segment.start  # the last key that each query sees
    if causal:
        queries, last = queries[:, :, last >= 0], last[last >= 0]
    index = torch.arange(tokens, device=keys.device)
    step = max(1, CHUNK // (queries.shape[0] * queries.shape[1] * tokens))
    for first in range(0, queries.shape[2], step):
        scores = torch.einsum("hgqd,hnd->hgqn", queries[:, :, first : first + step], keys) * segment.scale
        if causal:
            scores.masked_fill_(index > last[first : first + step, None], float("-inf"))
        yield scores.softmax(dim=-1)
