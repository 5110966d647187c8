"""Segments: contiguous rows of K and V for consecutive tokens, linked into a tree by what came before.

A branch (one session's memory) is a path: rows of a segment, before them rows of its parent, and so on. Rows are written
once, at the end. Two branches that agree on their first n tokens share the rows; the first to go on keeps the segment's
tail, the other starts a child. So a fork copies nothing and attention reads a handful of contiguous parts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.types import BlockHash


@dataclass(frozen=True, slots=True)
class KVShape:
    """The geometry of a model's K and V; one row is one token over all layers."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def row_bytes(self) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def empty(self, rows: int) -> Tensor:
        """Return uninitialised memory ``[layers, kv_heads, rows, head_dim]``."""
        return torch.empty(self.layers, self.kv_heads, rows, self.head_dim, dtype=self.dtype, device=self.device)


class Segment:
    """``length`` valid rows of ``capacity``; row i holds the token at position ``base + i``.

    Not thread safe: the engine thread alone mutates it. Rows below ``length`` never change while a branch, a child or a
    pin covers them, so other threads may read pinned rows without a lock.
    """

    __slots__ = ("base", "blocks", "children", "k", "length", "owner", "parent", "pins", "users", "v")

    def __init__(self, shape: KVShape, parent: Segment | None, base: int, rows: int) -> None:
        self.parent = parent
        self.base = base
        self.length = 0
        self.k = shape.empty(rows)
        self.v = shape.empty(rows)
        self.users: set[Branch] = set()
        self.owner: Branch | None = None  # the one branch that may write the next row
        self.children: set[Segment] = set()
        self.pins: Counter[int] = Counter()  # rows below the key must stay, so many times
        self.blocks: dict[int, BlockHash] = {}  # end position -> hash, of blocks that end in this segment
        if parent is not None:
            parent.children.add(self)

    @property
    def capacity(self) -> int:
        """Rows that fit before the segment must grow."""
        return self.k.shape[2]

    @property
    def end(self) -> int:
        """Position after the last valid row."""
        return self.base + self.length

    def grow(self, shape: KVShape, rows: int) -> None:
        """Move the valid rows into memory for ``rows`` rows. Views taken before keep the old memory alive."""
        for name in ("k", "v"):
            old: Tensor = getattr(self, name)
            new = shape.empty(rows)
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def may_pass_to(self, branch: Branch) -> bool:
        """Return whether ``branch`` may be the one that writes on here: nobody else is about to."""
        return self.owner is None or self.owner is branch or not self.owner.busy

    def needed_rows(self, without: Branch | None = None) -> int:
        """Return how many rows someone other than the branch ``without`` still needs."""
        rows = [branch.length - self.base for branch in self.users if branch is not without]
        rows += [child.base - self.base for child in self.children]
        rows += [stop for stop, count in self.pins.items() if count]
        return max(rows, default=0)


class Branch:
    """One session's place in the tree: the first ``length`` tokens on the path that ends in ``segment``.

    ``reserved`` rows beyond the segment's capacity are promised to it; a ``busy`` branch is running and never spilled. ``alive``
    turns False when the pool takes the memory back; the session then restores or recomputes.
    """

    __slots__ = ("alive", "busy", "length", "reserved", "segment")

    def __init__(self, segment: Segment | None, length: int) -> None:
        self.segment = segment
        self.length = length
        self.reserved = 0
        self.alive = True
        self.busy = False
        if segment is not None:
            segment.users.add(self)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Rows ``start`` to ``stop`` of a segment: one part of a view. Parts of one view are disjoint in position."""

    segment: Segment
    start: int
    stop: int


def spans_of(segment: Segment | None, length: int) -> list[Span]:
    """Return the parts of the first ``length`` tokens on the path that ends in ``segment``, in order of position."""
    spans: list[Span] = []
    stop = length
    while segment is not None and stop > 0:
        if stop > segment.base:
            spans.append(Span(segment, 0, stop - segment.base))
            stop = segment.base
        segment = segment.parent
    return spans[::-1]
