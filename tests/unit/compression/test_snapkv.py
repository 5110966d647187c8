from __future__ import annotations

import math
from statistics import fmean

import pytest
import torch
from support.segments import line, make_segment, plain_weights
from torch.testing import assert_close

from agentmem.compression import Observe, SnapKV
from agentmem.errors import InvalidInput

POOLS = {"avg": fmean, "max": max}
# One query whose weights are 1, 2, 4 and 1 eighths.
EIGHTHS = line([0.0, math.log(2), math.log(4), 0.0], queries=[[1.0]], positions=[3])


@pytest.mark.parametrize(
    ("pooling", "kernel", "expected"),
    [
        ("avg", 1, [1, 2, 4, 1]),
        ("avg", 3, [3 / 2, 7 / 3, 7 / 3, 5 / 2]),
        ("max", 3, [2, 4, 4, 4]),
        ("avg", 5, [7 / 3, 8 / 4, 8 / 4, 7 / 3]),
        ("max", 9, [4, 4, 4, 4]),
    ],
)
def test_votes_are_pooled_over_neighbours(pooling: str, kernel: int, expected: list[float]) -> None:
    """At the ends only the neighbours that exist count."""
    scores = SnapKV(pooling, kernel).score(EIGHTHS)[0, 0]
    assert_close(scores, torch.tensor(expected) / 8)


@pytest.mark.parametrize("pooling", list(POOLS))
def test_it_equals_the_plain_formula(pooling: str) -> None:
    """Number by number: votes summed over the window, averaged over the group, then pooled."""
    segment = make_segment(Observe.WINDOW, start=5, tokens=12)
    scores = SnapKV(pooling).score(segment)
    for layer in range(2):
        for kv_head in range(2):
            group = plain_weights(segment, layer, kv_head)
            votes = [math.fsum(row[token] for head in group for row in head) / len(group) for token in range(12)]
            expected = [POOLS[pooling](votes[max(0, token - 2) : token + 3]) for token in range(12)]
            assert_close(scores[layer, kv_head], torch.tensor(expected))


@pytest.mark.parametrize(("pooling", "kernel", "named"), [("median", 5, "pooling"), ("avg", 4, "kernel"), ("max", 0, "kernel")])
def test_settings_that_cannot_work_are_refused(pooling: str, kernel: int, named: str) -> None:
    """The error names the setting."""
    with pytest.raises(InvalidInput, match=named):
        SnapKV(pooling, kernel)
