from __future__ import annotations

import math

import torch
from support.segments import line, make_segment, plain_weights
from torch.testing import assert_close

from agentmem.compression import KVzip, Observe


def test_the_highest_weight_of_all_queries_and_heads_counts() -> None:
    """Keys 0 and log 3: a query of 1 splits 1:3, one of 0 evenly. The query at position 0 sees the key behind it too."""
    segment = line([0.0, math.log(3)], queries=[[1.0, 1.0], [0.0, 1.0]], positions=[0, 1])
    assert_close(KVzip().score(segment)[0, 0], torch.tensor([0.5, 0.75]))


def test_it_equals_the_plain_formula() -> None:
    """Number by number: the maximum over queries and group of weights without a causal mask."""
    segment = make_segment(Observe.RECONSTRUCT, start=5, tokens=12)
    scores = KVzip().score(segment)
    for layer in range(2):
        for kv_head in range(2):
            rows = [row for head in plain_weights(segment, layer, kv_head, causal=False) for row in head]
            assert_close(scores[layer, kv_head], torch.tensor([max(column) for column in zip(*rows, strict=True)]))
