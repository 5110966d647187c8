from __future__ import annotations

import math

import torch
from support.segments import line, make_segment, plain_weights
from torch.testing import assert_close

from agentmem.compression import HeavyHitters, Observe

LOG3 = math.log(3)


def test_attention_of_all_queries_is_added_up() -> None:
    """Keys 0 and log 3. A query of 1 splits 1:3, one of 0 evenly; at position 0 either sees the first key alone; two heads are averaged."""
    segment = line([0.0, LOG3], queries=[[1.0, 1.0], [0.0, 0.0]], positions=[0, 1])
    assert_close(HeavyHitters().score(segment)[0, 0], torch.tensor([1.375, 0.625]))


def test_queries_from_before_the_segment_say_nothing() -> None:
    """A query that precedes all keys adds nothing, and is no division by zero."""
    both = line([0.0, LOG3], queries=[[7.0, 1.0]], positions=[9, 11], start=10)
    assert_close(HeavyHitters().score(both)[0, 0], torch.tensor([0.25, 0.75]))
    early = line([0.0, LOG3], queries=[[7.0, 1.0]], positions=[8, 9], start=10)
    assert [0.0, 0.0] == HeavyHitters().score(early)[0, 0].tolist()


def test_it_equals_the_plain_formula() -> None:
    """Number by number: the sum over queries of the mean over the group of causal softmax weights."""
    segment = make_segment(Observe.SPREAD, start=5, tokens=12)
    scores = HeavyHitters().score(segment)
    for layer in range(2):
        for kv_head in range(2):
            group = plain_weights(segment, layer, kv_head)
            expected = [math.fsum(row[token] for head in group for row in head) / len(group) for token in range(12)]
            assert_close(scores[layer, kv_head], torch.tensor(expected))
