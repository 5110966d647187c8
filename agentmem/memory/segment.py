"""Segments: contiguous rows of K and V for consecutive tokens, linked into a tree by what came before.

A branch (one session's memory) is a path: rows of a segment, before them rows of its parent, and so on. Rows are written
once, at the end. Two branches that agree on their first n tokens share the rows; the first to go on keeps the segment's
tail, the other starts a child. So a fork copies nothing and attention reads a handful of contiguous parts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from agentmem.memory.compact import CompactRows
from agentmem.memory.shape import KVShape
from agentmem.types import BlockHash


class Segment:
    """``length`` valid rows of ``capacity``; row i holds the token at position ``base + i``.

    A *compact* segment is a root that stands for the first ``covers`` tokens of a session, with the rows of those alone that stay
    resident; which tokens they are differs by layer and KV head, and ``compact`` says where the others can be read.

    Not thread safe: the engine thread alone mutates it. Rows below ``length`` never change while a branch, a child or a
    pin covers them, so other threads may read pinned rows without a lock.
    """

    __slots__ = ("base", "blocks", "children", "compact", "covers", "k", "length", "owner", "parent", "pins", "users", "v")

    def __init__(self, shape: KVShape, parent: Segment | None, base: int, rows: int, covers: int = 0) -> None:
        self.parent = parent
        self.base = base
        self.covers = covers  # 0: an ordinary segment
        self.compact: CompactRows | None = None  # set once the rows of a compact segment are there
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
        return self.covers or self.base + self.length

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
        """Return how many rows someone other than the branch ``without`` still needs: of a compact segment always all."""
        if self.covers:
            return self.length
        rows = [branch.length - self.base for branch in self.users if branch is not without]
        rows += [child.base - self.base for child in self.children]
        rows += [stop for stop, count in self.pins.items() if count]
        return max(rows, default=0)


class Branch:
    """One session's place in the tree: the first ``length`` tokens on the path that ends in ``segment``.

    ``reserved`` rows beyond the segment's capacity are promised to it; a ``busy`` branch is running and never spilled. ``alive``
    turns False when the pool takes the memory back; the session then restores or recomputes. ``approx_from`` is the first position whose
    K and V were computed under an approximate view; None: all are exact.
    """

    __slots__ = ("alive", "approx_from", "busy", "length", "reserved", "segment")

    def __init__(self, segment: Segment | None, length: int, approx_from: int | None = None) -> None:
        self.segment = segment
        self.length = length
        self.approx_from = approx_from
        self.reserved = 0
        self.alive = True
        self.busy = False
        if segment is not None:
            segment.users.add(self)

    @property
    def root(self) -> Segment | None:
        """The compact segment at the start of the path, or None when every token has its rows."""
        segment = self.segment
        while segment is not None and segment.parent is not None:
            segment = segment.parent
        return segment if segment is not None and segment.covers else None

    @property
    def covers(self) -> int:
        """How many leading tokens the compact segment stands for; 0 without one."""
        root = self.root
        return root.covers if root else 0

    @property
    def exact_length(self) -> int:
        """How many leading tokens have exact K and V, on the device or in the archive."""
        return self.length if self.approx_from is None else self.approx_from


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Rows ``start`` to ``stop`` of a segment: one part of a view. Parts of one view are disjoint in position."""

    segment: Segment
    start: int
    stop: int


def spans_of(segment: Segment | None, length: int) -> list[Span]:
    """Return the parts of the first ``length`` tokens on the path that ends in ``segment``, in order of position.

    A compact segment is one part, the first, with all of its rows; ``length`` must not lie inside what it stands for.
    """
    spans: list[Span] = []
    stop = length
    while segment is not None and stop > 0:
        if segment.covers:
            spans.append(Span(segment, 0, segment.length))
            break
        if stop > segment.base:
            spans.append(Span(segment, 0, stop - segment.base))
            stop = segment.base
        segment = segment.parent
    return spans[::-1]
