"""Sealed segments of seeded noise, attention to them in plain Python, and seal files that live in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from agentmem.compression import Observe, SealedSegment
from agentmem.stores import BlockUnavailable
from agentmem.types import BlockHash, MissReason

WINDOW = 64  # queries that the sealing pass records in a row


def observed_positions(observes: Observe, start: int, tokens: int) -> Tensor:
    """Return the positions of the queries that a compressor of that kind gets to see."""
    stop = start + tokens
    if observes is Observe.RECONSTRUCT:
        return torch.arange(start, stop)
    ends = {stop} if observes is Observe.WINDOW else {stop - (tokens * part) // 4 for part in range(4)}
    seen = {position for end in ends for position in range(max(start, end - WINDOW), end)}
    return torch.tensor(sorted(seen))


def make_segment(
    observes: Observe = Observe.NONE,
    *,
    layers: int = 2,
    kv_heads: int = 2,
    group: int = 3,
    tokens: int = 9,
    dim: int = 4,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> SealedSegment:
    """Return a segment of normal noise with the queries that ``observes`` asks for, or none."""
    noise = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(layers, kv_heads, tokens, dim, generator=noise).to(dtype) for _ in "kv")
    if observes is Observe.NONE:
        return SealedSegment(start, k, v, None, None, dim**-0.5)
    positions = observed_positions(observes, start, tokens)
    queries = torch.randn(layers, kv_heads * group, len(positions), dim, generator=noise).to(dtype)
    return SealedSegment(start, k, v, queries, positions, dim**-0.5)


def line(keys: Sequence[float], queries: Sequence[Sequence[float]] = (), positions: Sequence[int] = (), start: int = 0) -> SealedSegment:
    """Return one layer and KV head of dimension 1, small enough to reckon by hand: ``queries`` by head; values 1, scale 1."""
    k = torch.tensor(keys)[None, None, :, None]
    q = torch.tensor(queries)[None, :, :, None] if queries else None
    return SealedSegment(start, k, torch.ones_like(k), q, torch.tensor(positions) if queries else None, 1.0)


def like(segment: SealedSegment, **tensors: object) -> SealedSegment:
    """Return ``segment`` with other tensors or another start."""
    return replace(segment, **tensors)  # type: ignore[arg-type]


def plain_weights(segment: SealedSegment, layer: int, kv_head: int, *, causal: bool = True) -> list[list[list[float]]]:
    """Return softmax weights by query head of the group, query and key, one number at a time; queries that see no key are left out."""
    queries, keys = segment.queries, segment.k[layer, kv_head].double().tolist()
    group = queries.shape[1] // segment.k.shape[1]
    return [
        [
            plain_softmax([dot(query, key) * segment.scale for key in keys[: position - segment.start + 1 if causal else None]], len(keys))
            for query, position in zip(head.double().tolist(), segment.query_positions.tolist(), strict=True)
            if not causal or position >= segment.start
        ]
        for head in queries[layer, kv_head * group : (kv_head + 1) * group]
    ]


def plain_softmax(scores: Sequence[float], length: int) -> list[float]:
    """Return the softmax of ``scores``, filled up with zeros to ``length``."""
    total = math.fsum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores] + [0.0] * (length - len(scores))


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the inner product."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


class MemorySealFiles:
    """The methods of ``agentmem.stores.seal_files.SealFiles``, in a dictionary. ``lost`` are block hashes that cannot be read."""

    def __init__(self, blocks: Mapping[BlockHash, tuple[Tensor, Tensor]]) -> None:
        self.blocks = blocks
        self.lost: set[BlockHash] = set()
        self.results: dict[tuple[BlockHash, str], dict[str, Tensor]] = {}
        self.asked: list[tuple[BlockHash, int]] = []
        self.writes = 0

    def block(self, block_hash: BlockHash, first_token: int) -> tuple[Tensor, Tensor]:
        self.asked.append((block_hash, first_token))
        if block_hash in self.lost:
            raise BlockUnavailable(MissReason.MISSING, "lost")
        return self.blocks[block_hash]

    def exists(self, block_hash: BlockHash, name: str) -> bool:
        return (block_hash, name) in self.results

    def write(self, block_hash: BlockHash, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.writes += 1
        self.results.setdefault((block_hash, name), dict(tensors))

    def read(self, block_hash: BlockHash, name: str, shapes: Mapping[str, tuple[torch.dtype, tuple[int | None, ...]]]) -> dict[str, Tensor]:
        result = self.results.get((block_hash, name))
        if result is None:
            raise BlockUnavailable(MissReason.MISSING, "no result")
        if result.keys() != shapes.keys() or not all(fits(result[key], *shapes[key]) for key in shapes):
            del self.results[block_hash, name]
            raise BlockUnavailable(MissReason.CORRUPT, "other tensors")
        return result


def fits(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> bool:
    """Whether ``tensor`` has that dtype and shape; None stands for any length."""
    same = all(wanted in {None, found} for wanted, found in zip(shape, tensor.shape, strict=False))
    return tensor.dtype == dtype and tensor.ndim == len(shape) and same
