"""A view: the disjoint parts of a session's K and V that the tokens of a step attend to, in order of position (invariant 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from agentmem.errors import InternalError
from agentmem.memory.archived import ArchivedRows
from agentmem.memory.segment import Branch, Segment, spans_of


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where K and V of consecutive tokens are written: rows of ``segment`` from ``row`` on."""

    segment: Segment
    row: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows ``start`` to ``stop`` of a source; row 0 of it holds the token at position ``base``."""

    source: Segment | ArchivedRows
    start: int
    stop: int
    base: int

    def rows(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return K and V of one layer, ``[kv_heads, stop - start, head_dim]``; of the archive a copy on the CPU."""
        if isinstance(self.source, ArchivedRows):
            k, v = self.source.layer(layer)
            return k[:, start:stop], v[:, start:stop]
        return self.source.k[layer, :, start:stop], self.source.v[layer, :, start:stop]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the last of a step's tokens can see: ``parts`` hold all tokens before and with it, one row each, but those in holes.

    Of a compact branch the first part is the archive, and ``residents`` the compact segment that stands in for it, with what is recalled.
    """

    parts: tuple[Part, ...]
    residents: Segment | None = None


def view_of(branch: Branch, stop: int, holes: Sequence[range] = (), residents: Segment | None = None) -> View:
    """Return the view of the tokens up to ``stop`` of ``branch``, without ``holes``; rows that are about to be written are included.

    ``residents`` stand in for the start of a branch that has all its rows, as its own compact segment does for one that has not.
    """
    parts: list[Part] = []
    root = residents or branch.root
    covers = root.covers if root is not None else 0
    if root is not None:
        if root.compact is None:
            raise InternalError("a compact branch is attended to before its rows are there")
        parts.append(Part(root.compact.rows, 0, min(root.covers, stop), 0))
    if stop > covers:
        spans = [span for span in spans_of(branch.segment, branch.length) if not span.segment.covers and span.segment.base < stop]
        own = [Part(s.segment, s.start, min(s.stop, stop - s.segment.base), s.segment.base) for s in spans]
        parts += own if residents is None else [piece for part in own for piece in _without(part, range(covers))]
    for hole in holes:
        parts = [piece for part in parts for piece in _without(part, hole)]
    return View(tuple(parts), root)


def _without(part: Part, hole: range) -> Iterator[Part]:
    """Yield what is left of ``part`` before and after the positions ``hole``."""
    start, stop = (min(max(position - part.base, part.start), part.stop) for position in (hole.start, hole.stop))
    if start > part.start:
        yield replace(part, stop=start)
    if stop < part.stop:
        yield replace(part, start=stop)


def locate(branch: Branch, position: int) -> Target:
    """Return the row of the token at ``position``. Raises InternalError where it has none: in the archive, or beyond the end."""
    for span in spans_of(branch.segment, branch.length):
        if not span.segment.covers and span.segment.base <= position < span.segment.base + span.stop:
            return Target(span.segment, position - span.segment.base)
    raise InternalError(f"position {position} has no row of its own in a branch of {branch.length} tokens")


def rows_from(branch: Branch, position: int) -> int:
    """Return how many consecutive tokens from ``position`` on lie in the same segment, or in the same archive."""
    if position < branch.covers:
        return branch.covers - position
    for span in spans_of(branch.segment, branch.length):
        if not span.segment.covers and span.segment.base <= position < span.segment.base + span.stop:
            return span.segment.base + span.stop - position
    raise InternalError(f"position {position} lies beyond the branch's {branch.length} tokens")
