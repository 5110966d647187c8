from __future__ import annotations

import pytest
import torch
from support.segments import make_segment

from agentmem.compression import Streaming, select


@pytest.mark.parametrize(("start", "expected"), [(0, [5, 5, 5, 5, 4]), (2, [5, 5, 2, 3, 4]), (4, [0, 1, 2, 3, 4]), (100, [0, 1, 2, 3, 4])])
def test_sinks_first_then_the_latest(start: int, expected: list[int]) -> None:
    """Session tokens 0 to 3 score highest, the others by their order; all heads alike."""
    scores = Streaming().score(make_segment(tokens=5, start=start))
    assert torch.equal(torch.tensor(expected).float().expand(2, 2, 5), scores)


def test_the_selection_is_sinks_and_recent_tokens() -> None:
    """With a quarter of 4 + 12 tokens: the four sinks and the last three."""
    scores = Streaming().score(make_segment(tokens=16))
    assert [0, 1, 2, 3, 13, 14, 15] == select(scores, 0.25, start=0, protect=0)[1, 1].tolist()
