from __future__ import annotations

import math

import torch
from support.segments import like, line, make_segment
from torch.testing import assert_close

from agentmem.compression import KNorm


def test_the_shortest_key_scores_highest() -> None:
    """Keys (3, 4) and (0, 1) score -5 and -1."""
    segment = like(line([0.0] * 2), k=torch.tensor([[[[3.0, 4.0], [0.0, 1.0]]]]))
    assert [-5.0, -1.0] == KNorm().score(segment)[0, 0].tolist()


def test_it_equals_the_plain_formula() -> None:
    """Number by number: the length, negative."""
    segment = make_segment()
    expected = [[[-math.hypot(*key) for key in keys] for keys in heads] for heads in segment.k.tolist()]
    assert_close(KNorm().score(segment), torch.tensor(expected))
