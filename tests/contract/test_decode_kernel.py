"""The compiled kernel for single queries against the judge of every backend."""

from __future__ import annotations

import pytest
import torch

from agentmem.memory.attention import attend_reference
from agentmem.memory.decode import DecodePlan, Single, is_available
from agentmem.memory.segment import Segment
from agentmem.memory.shape import KVShape

LAYERS = 2
TOLERANCE = 1e-5  # rounding of fp32 sums in another order; K and V are the same rounded numbers on both sides


def segment(kv_heads: int, dim: int, rows: int, dtype: torch.dtype, seed: int) -> Segment:
    """Return a segment with room to spare, so that heads do not lie one after the other, full of random rows."""
    made = Segment(KVShape(LAYERS, kv_heads, dim, dtype, torch.device("cpu")), None, 0, rows + 3)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (made.k, made.v):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 2)
    made.length = rows
    return made


def outcome(plan: DecodePlan, layer: int, query: torch.Tensor, n_slots: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the plan and return (outs, lses)."""
    heads, n_rows, dim = query.shape
    outs = torch.zeros(n_slots, heads, n_rows, dim)
    lses = torch.full((n_slots, heads, n_rows), float("-inf"))
    plan.run(layer, query, outs, lses, scale)
    return outs, lses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kv_heads", "group", "dim"), [(3, 3, 64), (2, 1, 16), (1, 4, 128)])
def test_every_row_equals_the_reference(dtype: torch.dtype, kv_heads: int, group: int, dim: int) -> None:
    """Any length, from one row over whole and broken tiles, of several sessions in one call, in any layer."""
    lengths = [1, 2, 5, 63, 64, 65, 130, 1000]
    segments = [segment(kv_heads, dim, length, dtype, length) for length in lengths]
    generator = torch.Generator().manual_seed(dim)
    query = torch.randn(len(lengths), kv_heads * group, dim, generator=generator).to(dtype).transpose(0, 1)
    scale = dim**-0.5  # as models have it; the error of a sum grows with its scores
    plan = DecodePlan([Single(row, s, 0, s.length, 0) for row, s in enumerate(segments)], [], kv_heads * group)

    for layer in range(LAYERS):
        outs, lses = outcome(plan, layer, query, 1, scale)
        for row, s in enumerate(segments):
            keys, values = s.k[layer, :, : s.length], s.v[layer, :, : s.length]
            out, lse = attend_reference(query[:, row : row + 1], keys, values, causal=False, scale=scale)
            torch.testing.assert_close(outs[0, :, row : row + 1], out, rtol=TOLERANCE, atol=TOLERANCE)
            torch.testing.assert_close(lses[0, :, row : row + 1], lse, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("slots", [(0, 1, 2), (2, 1, 3)])
def test_parts_merge_and_other_rows_are_left_alone(slots: tuple[int, ...]) -> None:
    """Views in several parts equal the whole, each in its row's lowest slot; what the plan does not name keeps what it had."""
    whole = segment(2, 32, 100, torch.float32, 1)
    query = torch.randn(4, 4, 32, generator=torch.Generator().manual_seed(4))
    parts = [Single(3, whole, 0, 9, slots[0]), Single(1, whole, 0, 37, slots[0]), Single(1, whole, 37, 40, slots[1])]
    plan = DecodePlan([*parts, Single(1, whole, 40, 100, slots[2])], [], 4)
    outs, lses = outcome(plan, 0, query, 4, 0.2)

    for row, stop, slot in ((1, 100, min(slots)), (3, 9, slots[0])):
        out, lse = attend_reference(query[:, row : row + 1], whole.k[0, :, :stop], whole.v[0, :, :stop], causal=False, scale=0.2)
        torch.testing.assert_close(outs[slot, :, row : row + 1], out, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(lses[slot, :, row : row + 1], lse, rtol=TOLERANCE, atol=TOLERANCE)
        outs[slot, :, row], lses[slot, :, row] = 0, float("-inf")
    assert not outs.any()
    assert lses.isneginf().all()


def test_extreme_scores() -> None:
    """Scores far apart neither overflow nor vanish: the highest takes all, and equal ones share."""
    lone = segment(1, 16, 70, torch.float32, 2)
    lone.k.zero_()
    lone.k[:, :, 66] = 100.0
    query = torch.full((1, 1, 16), 10.0)
    outs, lses = outcome(DecodePlan([Single(0, lone, 0, 70, 0)], [], 1), 0, query, 1, 1.0)
    torch.testing.assert_close(outs[0, 0, 0], lone.v[0, 0, 66])
    assert 16000.0 == lses.item()

    lone.k.zero_()
    outs, lses = outcome(DecodePlan([Single(0, lone, 0, 70, 0)], [], 1), 0, query, 1, 1.0)
    torch.testing.assert_close(outs[0, 0, 0], lone.v[0, 0, :70].mean(0), rtol=TOLERANCE, atol=TOLERANCE)


def test_only_the_processor_has_the_kernel() -> None:
    """Other devices attend through their own backends."""
    assert is_available(torch.device("cpu"))
    assert not is_available(torch.device("cuda"))
