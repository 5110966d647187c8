from __future__ import annotations

import math

import torch
from support.segments import dot, like, line, make_segment
from torch.testing import assert_close

from agentmem.compression import KeyDiff


def test_the_odd_key_scores_highest() -> None:
    """Directions x, x, y have the mean (2, 1) / 3: cosines 2, 2 and 1 over the root of 5."""
    segment = like(line([0.0] * 3), k=torch.tensor([[[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]]]))
    assert_close(KeyDiff().score(segment)[0, 0], torch.tensor([-2.0, -2.0, -1.0]) / math.sqrt(5))


def test_vectors_without_direction_score_zero() -> None:
    """A key of zeros has no cosine; opposite keys have a mean of none."""
    assert [0.0, -1.0] == KeyDiff().score(line([0.0, 5.0]))[0, 0].tolist()
    assert [0.0, 0.0] == KeyDiff().score(line([-2.0, 5.0]))[0, 0].tolist()


def test_it_equals_the_plain_formula() -> None:
    """Number by number: the cosine to the mean direction, negative."""
    segment = make_segment()
    for layer, heads in enumerate(segment.k.double().tolist()):
        for head, keys in enumerate(heads):
            directions = [[x / math.hypot(*key) for x in key] for key in keys]
            mean = [math.fsum(column) / len(keys) for column in zip(*directions, strict=True)]
            expected = [-dot(direction, mean) / math.hypot(*mean) for direction in directions]
            assert_close(KeyDiff().score(segment)[layer, head], torch.tensor(expected))
