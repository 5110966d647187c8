from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.segments import make_segment

from agentmem.compression import Random


def test_the_numbers_are_those_of_philox() -> None:
    """Pinned, since another stream on another machine would select other tokens for the same session."""
    scores = Random().score(make_segment(tokens=3))
    words = np.random.Philox(key=np.array([1, 0], dtype=np.uint64)).random_raw(3)
    assert [math.floor(word / 2**40) / 2**24 for word in words.tolist()] == scores[1, 0].tolist()
    assert [0.8133540153503418, 0.7513313889503479, 0.6716490387916565] == scores[0, 1].tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 7, 1001])
def test_a_token_scores_alike_in_every_cut(start: int) -> None:
    """The score belongs to the session position, not to the place in the segment."""
    whole, part = make_segment(tokens=start + 9), make_segment(tokens=9, start=start)
    assert torch.equal(Random().score(whole)[:, :, start:], Random().score(part))


def test_layers_and_heads_draw_differently() -> None:
    """No two heads keep the same tokens by construction, and the noise is uniform."""
    scores = Random().score(make_segment(tokens=1000))
    assert all(not torch.equal(a, b) for a, b in pairwise(scores.flatten(0, 1)))
    assert 0.48 < float(scores.mean()) < 0.52
    assert 0.0 <= float(scores.min()) < 0.01
    assert 0.99 < float(scores.max()) < 1.0
