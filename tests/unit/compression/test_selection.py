from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentmem.compression import select
from agentmem.errors import InvalidInput


def scores_of(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[None, None]


def plain_select(scores: list[float], share: Fraction, start: int, protect: int) -> list[int]:
    """Return what stays, by the definition."""
    positions = range(start, start + len(scores))
    fixed = [position for position in positions if position < max(4, protect)]
    rest = sorted((position for position in positions if position not in fixed), key=lambda position: (-scores[position - start], position))
    return sorted(fixed + rest[: math.ceil(share * len(rest))])


@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    percent=st.integers(1, 100),
    start=st.integers(0, 30),
    protect=st.integers(0, 60),
)
def test_it_equals_the_definition(scores: list[int], percent: int, start: int, protect: int) -> None:
    """Leading tokens always, then the best of the rest rounded up; of equal scores the earlier token."""
    expected = plain_select(list(map(float, scores)), Fraction(percent, 100), start, protect)
    assert expected == select(scores_of(list(map(float, scores))), percent / 100, start=start, protect=protect)[0, 0].tolist()


def test_heads_choose_for_themselves_the_same_number() -> None:
    """Each head keeps its own best; the result is int32, ascending."""
    scores = torch.tensor([[[0, 0, 0, 0, 5, 1, 1, 9], [0, 0, 0, 0, 1, 9, 5, 1]]]).float()
    kept = select(scores, 0.5, start=0, protect=0)
    assert torch.int32 == kept.dtype
    assert [[[0, 1, 2, 3, 4, 7], [0, 1, 2, 3, 5, 6]]] == kept.tolist()


def test_keep_of_one_keeps_all() -> None:
    """The share 1 is the whole segment."""
    assert list(range(70, 80)) == select(torch.zeros(1, 1, 10), 1.0, start=70, protect=4)[0, 0].tolist()


def test_the_smallest_share_keeps_one_token() -> None:
    """A unit is never left without a resident."""
    assert [72] == select(scores_of([0.0, 1.0, 2.0]), 1e-12, start=70, protect=4)[0, 0].tolist()


def test_a_share_is_not_rounded_up_by_floating_point() -> None:
    """0.07 * 100 is a hair above 7 in floating point, and 7 tokens stay."""
    assert (1, 1, 7) == select(torch.zeros(1, 1, 100), 0.07, start=64, protect=0).shape


@pytest.mark.parametrize(("protect", "kept"), [(0, [60, 69]), (66, [60, 61, 62, 63, 64, 65, 69]), (70, list(range(60, 70)))])
def test_the_system_prompt_always_stays(protect: int, kept: list[int]) -> None:
    """A prompt that ends in the segment keeps its part of it; one that covers it keeps all."""
    scores = torch.zeros(1, 1, 10)
    scores[..., 9], scores[..., 0] = 2.0, 1.0
    assert kept == select(scores, 0.2, start=60, protect=protect)[0, 0].tolist()


def test_scores_are_not_written_to() -> None:
    """Half precision works, and stays as it was."""
    scores = torch.arange(8.0, dtype=torch.bfloat16)[None, None]
    before = scores.clone()
    assert [0, 1, 2, 3, 7] == select(scores, 0.25, start=0, protect=0)[0, 0].tolist()
    assert torch.equal(before, scores)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_shares_that_make_no_sense_are_refused(keep: float) -> None:
    """The error names the value and what is allowed."""
    with pytest.raises(InvalidInput, match="keep is .*allowed"):
        select(torch.zeros(1, 1, 4), keep, start=0, protect=0)


@pytest.mark.parametrize(
    "scores", [torch.zeros(4), torch.zeros(1, 4), torch.zeros(1, 1, 0), torch.zeros(0, 1, 4), torch.zeros(1, 1, 4, dtype=torch.int64)]
)
def test_scores_of_another_shape_are_refused(scores: torch.Tensor) -> None:
    """Three dimensions, none empty, floats."""
    with pytest.raises(InvalidInput, match="scores are"):
        select(scores, 0.5, start=0, protect=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    """A NaN would sort anywhere, so nothing is selected at all."""
    with pytest.raises(InvalidInput, match="finite"):
        select(scores_of([0.0, bad]), 0.5, start=0, protect=0)


@pytest.mark.parametrize(("start", "protect"), [(-1, 0), (0, -1)])
def test_negative_positions_are_refused(start: int, protect: int) -> None:
    """Positions count from the session's first token."""
    with pytest.raises(InvalidInput, match="0 or more"):
        select(torch.zeros(1, 1, 4), 0.5, start=start, protect=protect)


@pytest.mark.parametrize(("beside", "kept"), [(0, 10), (4, 6), (5, 5), (64, 5)])
def test_what_stays_elsewhere_counts(beside: int, kept: int) -> None:
    """Tokens that are resident beside the segment come off its share, up to half of it; where all stay, all stay."""
    assert (1, 1, kept) == select(torch.zeros(1, 1, 100), 0.1, start=64, protect=0, beside=beside).shape
    assert (1, 1, 100) == select(torch.zeros(1, 1, 100), 1.0, start=64, protect=0, beside=beside).shape
