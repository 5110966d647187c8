from __future__ import annotations

import torch
from support.kv import SHAPE

from agentmem.memory.segment import Branch, Segment, spans_of
from agentmem.memory.shape import KVShape


def segment(parent: Segment | None, base: int, length: int, capacity: int = 16) -> Segment:
    made = Segment(SHAPE, parent, base, capacity)
    made.length = length
    return made


def test_row_bytes() -> None:
    """A row is K and V of one token over all layers and heads, in the dtype's size."""
    shape = KVShape(layers=3, kv_heads=2, head_dim=8, dtype=torch.bfloat16, device=torch.device("cpu"))

    assert 2 * 3 * 2 * 8 * 2 == shape.row_bytes
    assert (3, 2, 5, 8) == shape.empty(5).shape
    assert torch.bfloat16 == shape.empty(5).dtype


def test_grow_keeps_rows_and_old_views() -> None:
    """Growing copies the valid rows; a view taken before still reads the old ones."""
    one = segment(None, 0, 3, capacity=4)
    one.k[:, :, :3] = 7.0
    one.v[:, :, :3] = 8.0
    view = one.k[:, :, :3]
    one.grow(SHAPE, 9)
    one.k[:, :, :3] += 1.0

    assert 9 == one.capacity
    assert torch.equal(torch.full_like(view, 7.0), view)
    assert torch.equal(torch.full_like(view, 8.0), one.k[:, :, :3])
    assert torch.equal(torch.full_like(view, 8.0), one.v[:, :, :3])


def test_needed_rows() -> None:
    """Branches, children and pins each need rows; one branch may be left out of the count."""
    root = segment(None, 10, 12)
    branch = Branch(root, 19)

    assert 9 == root.needed_rows()
    assert 0 == root.needed_rows(without=branch)
    segment(root, 14, 1)
    assert 4 == root.needed_rows(without=branch)
    root.pins[7] += 1
    assert 7 == root.needed_rows(without=branch)


def test_spans_follow_the_path() -> None:
    """The parts of a view are in order of position, disjoint, and cut where each child begins."""
    root = segment(None, 0, 10)
    middle = segment(root, 6, 5)
    leaf = segment(middle, 11, 4)
    spans = spans_of(leaf, 13)

    assert [(root, 0, 6), (middle, 0, 5), (leaf, 0, 2)] == [(s.segment, s.start, s.stop) for s in spans]
    assert [0, 6, 11] == [span.segment.base + span.start for span in spans]


def test_spans_skip_segments_beyond_the_length() -> None:
    """A view that ends before a segment begins has no part in it; an empty view has no part at all."""
    root = segment(None, 0, 10)
    leaf = segment(root, 6, 5)

    assert [(root, 0, 4)] == [(s.segment, s.start, s.stop) for s in spans_of(leaf, 4)]
    assert [] == spans_of(leaf, 0)
    assert [] == spans_of(None, 0)
