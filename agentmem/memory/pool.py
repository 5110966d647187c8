"""The pool: every branch and segment on the compute device, within one budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from agentmem.errors import InternalError
from agentmem.memory.segment import Branch, Segment, Span, spans_of
from agentmem.memory.shape import KVShape
from agentmem.types import BlockHash

MIN_ROWS = 64  # a new segment's smallest capacity


class PoolFull(Exception):
    """The budget cannot hold what was asked for now, even with every idle branch spilled."""


class KVPool:
    """Owner of all device K and V. Engine thread only; nothing here blocks.

    ``used_bytes`` counts every segment's capacity plus the rows that running branches were promised, and stays within
    ``budget_bytes``: ``reserve`` spills idle branches, least recently used first, or raises PoolFull and spills none.
    """

    def __init__(self, shape: KVShape, budget_bytes: int, block_tokens: int) -> None:
        self.shape = shape
        self.budget_bytes = budget_bytes
        self.block_tokens = block_tokens
        self.used_bytes = 0
        self.num_spilled = 0
        self._index: dict[BlockHash, tuple[Segment, int]] = {}
        self._branches: set[Branch] = set()
        self._idle: OrderedDict[Branch, None] = OrderedDict()
        self._segments: set[Segment] = set()

    # -- finding and sharing ------------------------------------------------------------------------------------------

    def match(self, hashes: Sequence[BlockHash]) -> Branch:
        """Return a new branch over the longest run of ``hashes`` (from the first) that is resident; maybe empty."""
        for name in reversed(hashes):  # a resident block implies its whole past: the path that leads to it
            found = self._index.get(name)
            if found is not None:
                return self._branch(*found)
        return self._branch(None, 0)

    def holds(self, name: BlockHash) -> bool:
        """Return whether block ``name`` is resident."""
        return name in self._index

    def fork(self, branch: Branch, length: int) -> Branch:
        """Return a new branch over the first ``length`` tokens of ``branch``. Copies no K or V.

        A length inside what a compact segment stands for gives an empty branch.
        """
        self._check(branch, length)
        if length < branch.covers:  # rows of single tokens cannot be told apart there: the fork finds or loads its own
            return self._branch(None, 0)
        segment = branch.segment
        while segment is not None and length <= segment.base:
            segment = segment.parent
        forked = self._branch(segment if length else None, length)
        forked.approx_from = None if branch.approx_from is None or branch.approx_from >= length else branch.approx_from
        return forked

    def spans(self, branch: Branch) -> list[Span]:
        """Return the parts of the branch's view in order of position."""
        return spans_of(branch.segment, branch.length)

    def publish(self, branch: Branch, hashes: Sequence[BlockHash], start: int) -> list[int]:
        """Make the full blocks of ``branch`` from block ``start`` on findable by hash; return the indexes that were new.

        ``hashes`` are the chain's; blocks beyond the branch's length are left alone. A compact branch has nothing to offer: who
        found it by hash would take its view for the whole past.
        """
        new: list[int] = []
        if branch.covers:
            return new
        for index in range(start, min(len(hashes), branch.length // self.block_tokens)):
            if hashes[index] in self._index:
                continue
            end = (index + 1) * self.block_tokens
            segment = branch.segment
            while segment is not None and end <= segment.base:
                segment = segment.parent
            if segment is None:
                raise InternalError(f"block {index} lies outside its branch of {branch.length} tokens")
            self._index[hashes[index]] = (segment, end)
            segment.blocks[end] = hashes[index]
            new.append(index)
        return new

    # -- growing and shrinking ----------------------------------------------------------------------------------------

    def compact(self, covers: int, rows: int) -> Branch:
        """Return a new branch over one compact segment of ``rows`` rows that stands for ``covers`` tokens.

        The caller fills the rows and sets ``compact`` before anyone attends to them. Spills idle branches if need be. Raises PoolFull.
        """
        if not self._make_room(rows * self.shape.row_bytes):
            raise PoolFull
        segment = Segment(self.shape, None, 0, rows, covers)
        segment.length = rows
        self._segments.add(segment)
        self.used_bytes += rows * self.shape.row_bytes
        branch = self._branch(segment, covers)
        self.set_busy(branch)
        return branch

    def fits(self, rows: int, *, spill: bool) -> bool:
        """Return whether ``rows`` more rows fit, with ``spill`` once every idle branch is gone."""
        held = self._held_bytes() if spill else self.used_bytes
        return held + rows * self.shape.row_bytes <= self.budget_bytes

    def reserve(self, branch: Branch, rows: int) -> None:
        """Promise ``branch`` room for ``rows`` more tokens, spilling idle branches if need be. Raises PoolFull."""
        self._release_reserve(branch)
        self.set_busy(branch)
        segment = branch.segment
        room = 0
        if segment is not None and not segment.covers and segment.end == branch.length and segment.may_pass_to(branch):
            segment.owner = branch
            room = segment.capacity - segment.length
        missing = max(0, rows - room)
        if not self._make_room(missing * self.shape.row_bytes):
            raise PoolFull
        branch.reserved = missing
        self.used_bytes += missing * self.shape.row_bytes

    def append(self, branch: Branch, rows: int, expect: int = 0) -> tuple[Segment, int]:
        """Claim the next ``rows`` rows of ``branch`` and return the segment and the first row to write.

        The caller writes K and V of every layer before anyone reads them. ``expect`` rows in all are about to come, which
        saves growing again. Raises PoolFull beyond what was reserved when the budget has no room.
        """
        segment = branch.segment
        if segment is None or segment.owner is not branch or segment.end != branch.length:
            segment = self._child(branch, rows, expect)
        elif segment.capacity - segment.length < rows:
            self._grow(branch, segment, rows, expect)
        first = segment.length
        segment.length += rows
        branch.length += rows
        return segment, first

    def truncate(self, branch: Branch, length: int) -> None:
        """Forget the tokens of ``branch`` from ``length`` on; rows that nobody else needs can be written again.

        A length inside what a compact segment stands for empties the branch: look at its length afterwards.
        """
        self._check(branch, length)
        if length < branch.covers:
            length = 0
        if branch.approx_from is not None and length <= branch.approx_from:
            branch.approx_from = None
        segment = branch.segment
        while segment is not None and length <= segment.base:
            segment = segment.parent
        old = branch.segment
        branch.length = length
        if segment is not old:
            self._release_reserve(branch)
            branch.segment = segment
            if segment is not None:
                segment.users.add(branch)
            if old is not None:
                old.users.discard(branch)
                self._trim(old)
                self._free_unused(old)
        if segment is not None:
            self._trim(segment)

    # -- lifetime -----------------------------------------------------------------------------------------------------

    def set_idle(self, branch: Branch) -> None:
        """Give back what ``branch`` has reserved and allow it to be spilled; most recently used last."""
        self._release_reserve(branch)
        branch.busy = False
        if branch.alive:
            self._idle[branch] = None
            self._idle.move_to_end(branch)

    def set_busy(self, branch: Branch) -> None:
        """Forbid spilling ``branch``."""
        branch.busy = True
        self._idle.pop(branch, None)

    def release(self, branch: Branch) -> None:
        """End ``branch``; segments that nobody uses any more are freed. Releasing twice does nothing."""
        if not branch.alive:
            return
        self._release_reserve(branch)
        self._idle.pop(branch, None)
        self._branches.discard(branch)
        branch.alive = branch.busy = False
        branch.approx_from = None
        segment, branch.segment = branch.segment, None
        if segment is not None:
            segment.users.discard(branch)
            self._trim(segment)
            self._free_unused(segment)
        branch.length = 0

    def spill_idle(self) -> int:
        """Release every idle branch; return how many."""
        count = len(self._idle)
        while self._idle:
            self.release(next(iter(self._idle)))
        self.num_spilled += count
        return count

    def pin(self, branch: Branch, start: int, stop: int) -> PinnedRows:
        """Return the rows of positions ``start`` to ``stop`` for reading on another thread until ``unpin``."""
        if start < branch.covers:
            raise InternalError(f"rows from {start} on were asked for; of the first {branch.covers} tokens only some are resident")
        parts = [s for s in spans_of(branch.segment, stop) if not s.segment.covers and s.segment.base + s.stop > start]
        pins = []
        for span in parts:
            span.segment.pins[span.stop] += 1
            pins.append((span.segment, span.stop))
        cut = [Span(s.segment, max(s.start, start - s.segment.base), s.stop) for s in parts]
        return PinnedRows(
            tuple(s.segment.k[:, :, s.start : s.stop] for s in cut),
            tuple(s.segment.v[:, :, s.start : s.stop] for s in cut),
            tuple(pins),
        )

    def unpin(self, rows: PinnedRows) -> None:
        """Allow pinned rows to be freed. Call once for each ``pin``."""
        for segment, stop in rows.pins:
            segment.pins[stop] -= 1
            if not segment.pins[stop]:
                del segment.pins[stop]
            self._trim(segment)
            self._free_unused(segment)

    # -- internals ----------------------------------------------------------------------------------------------------

    def _branch(self, segment: Segment | None, length: int) -> Branch:
        branch = Branch(segment, length)
        self._branches.add(branch)
        return branch

    def _check(self, branch: Branch, length: int) -> None:
        if not branch.alive or not 0 <= length <= branch.length:
            raise InternalError(f"length {length} is outside the branch's {branch.length} tokens")

    def _child(self, branch: Branch, rows: int, expect: int) -> Segment:
        want = max(rows, min(branch.reserved, max(expect, MIN_ROWS)))
        self._draw(branch, want)
        parent = branch.segment
        segment = Segment(self.shape, parent, branch.length, want)
        segment.owner = branch
        self._segments.add(segment)
        segment.users.add(branch)
        branch.segment = segment
        if parent is not None:
            parent.users.discard(branch)
        return segment

    def _grow(self, branch: Branch, segment: Segment, rows: int, expect: int) -> None:
        needed = segment.length + rows - segment.capacity
        extra = max(needed, min(branch.reserved, max(segment.capacity, expect)))
        self._draw(branch, extra)
        segment.grow(self.shape, segment.capacity + extra)

    def _draw(self, branch: Branch, rows: int) -> None:
        """Turn ``rows`` reserved rows into used ones; what was not reserved must fit now."""
        reserved = min(branch.reserved, rows)
        missing = (rows - reserved) * self.shape.row_bytes
        if missing and not self._make_room(missing):
            raise PoolFull
        branch.reserved -= reserved
        self.used_bytes += missing

    def _release_reserve(self, branch: Branch) -> None:
        self.used_bytes -= branch.reserved * self.shape.row_bytes
        branch.reserved = 0

    def _make_room(self, n_bytes: int) -> bool:
        """Spill until ``n_bytes`` fit and return True; when they could not fit even then, spill nothing and return False."""
        if self.used_bytes + n_bytes > self.budget_bytes and self._held_bytes() + n_bytes > self.budget_bytes:
            return False
        while self.used_bytes + n_bytes > self.budget_bytes:
            self.release(next(iter(self._idle)))
            self.num_spilled += 1
        return True

    def _held_bytes(self) -> int:
        """Return the bytes that would stay in use if every idle branch were spilled."""
        tips = [branch.segment for branch in self._branches if branch not in self._idle]
        tips += [segment for segment in self._segments if segment.pins]
        held: set[Segment] = set()
        for tip in tips:
            segment = tip
            while segment is not None and segment not in held:
                held.add(segment)
                segment = segment.parent
        return (sum(segment.capacity for segment in held) + sum(branch.reserved for branch in self._branches)) * self.shape.row_bytes

    def _trim(self, segment: Segment) -> None:
        """Drop the segment's rows that no branch, child or pin needs, and their names."""
        length = segment.needed_rows()
        if length >= segment.length:
            return
        segment.length = length
        for end in [end for end in segment.blocks if end > segment.end]:
            self._forget(segment, end)

    def _forget(self, segment: Segment, end: int) -> None:
        name = segment.blocks.pop(end)
        if self._index.get(name, (None, 0))[0] is segment:
            del self._index[name]

    def _free_unused(self, segment: Segment | None) -> None:
        while segment is not None and not (segment.users or segment.children or segment.pins):
            for end in list(segment.blocks):
                self._forget(segment, end)
            self._segments.discard(segment)
            self.used_bytes -= segment.capacity * self.shape.row_bytes
            parent, segment.parent = segment.parent, None
            if parent is not None:
                parent.children.discard(segment)
                self._trim(parent)
            segment = parent

    def check_integrity(self) -> None:
        """Raise InternalError when the books disagree with the tree. Linear in segments and blocks; for tests."""
        used = sum(s.capacity for s in self._segments) + sum(b.reserved for b in self._branches)
        _expect(self.used_bytes == used * self.shape.row_bytes, "used_bytes is not what segments and reserves add up to")
        _expect(self.used_bytes <= self.budget_bytes, "used_bytes is above the budget")
        _expect(set(self._idle) <= self._branches, "an idle branch is not alive")
        for segment in self._segments:
            _expect(segment.length <= segment.capacity, "a segment is longer than its capacity")
            _expect(segment.needed_rows() == segment.length, "a segment keeps rows that nobody needs, or lost some")
            _expect(bool(segment.users or segment.children or segment.pins), "an unused segment was not freed")
            _expect(segment.parent is None or segment in segment.parent.children, "a child is unknown to its parent")
        for name, (segment, end) in self._index.items():
            _expect(segment in self._segments and segment.blocks.get(end) == name, "the index names a lost block")
            _expect(end <= segment.end, "the index names rows beyond the segment")
        for branch in self._branches:
            spans = self.spans(branch)
            rows = sum(s.segment.covers or s.stop - s.start for s in spans)
            _expect(rows == branch.length, "a branch's parts do not add up")
            _expect(branch.approx_from is None or branch.approx_from < branch.length, "a branch is approximate beyond its end")


class PinnedRows:
    """K and V of consecutive tokens in one or more parts, each ``[layers, kv_heads, rows, head_dim]``."""

    __slots__ = ("k_parts", "pins", "v_parts")

    def __init__(self, k_parts: tuple[Tensor, ...], v_parts: tuple[Tensor, ...], pins: tuple[tuple[Segment, int], ...]) -> None:
        self.k_parts = k_parts
        self.v_parts = v_parts
        self.pins = pins

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return K and V, ``[layers, kv_heads, tokens, head_dim]``: the rows themselves where they lie in one part. Any thread."""
        if len(self.k_parts) == 1:
            return self.k_parts[0], self.v_parts[0]
        return torch.cat(self.k_parts, dim=2), torch.cat(self.v_parts, dim=2)


def _expect(ok: bool, problem: str) -> None:
    if not ok:
        raise InternalError(f"pool integrity: {problem}")
