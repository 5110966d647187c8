from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from agentmem.bench import drift
from agentmem.bench.drift import Conversation, Script, Sizes, Spoken, kl
from agentmem.errors import InvalidInput


class Numbers:
    """A text whose tokens count up."""

    def __init__(self) -> None:
        self.next = 0

    def token_ids(self, count: int) -> list[int]:
        self.next += count
        return list(range(self.next - count, self.next))


class Exact:
    """A reference that finds the same distribution everywhere."""

    def __init__(self, *shares: float) -> None:
        self.row = torch.tensor(shares).log()

    def log_probabilities(self, token_ids: Any, positions: list[int]) -> torch.Tensor:
        return self.row.expand(len(positions), -1)


def test_kl_by_hand() -> None:
    """KL(exact || decoded) = 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75), also of half precision; of equals it is 0."""
    exact, decoded = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert expected == pytest.approx(kl(exact, decoded))
    assert expected == pytest.approx(kl(exact, decoded.half()), rel=1e-2)
    assert 0.0 == kl(exact, exact)


def test_a_turn_is_judged_at_what_it_predicted() -> None:
    """Each turn's KL is the mean over its own steps."""
    one, other = torch.tensor([0.25, 0.75]).log(), torch.tensor([0.5, 0.5]).log()
    conversation = Conversation((1, 2, 3, 4), (Spoken({0: one, 1: other}, 0.0), Spoken({3: other}, 0.0)))
    first, second = drift._judge(Exact(0.5, 0.5), conversation)  # type: ignore[arg-type]
    assert (pytest.approx(kl(other, one) / 2), 0.0) == (first, second)


def test_both_conversations_hear_the_same() -> None:
    """A script has one context and one input for each turn, of passages that follow each other."""
    script = Script.next(Numbers(), Sizes(turns=2, context=3, input_tokens=2))  # type: ignore[arg-type]
    assert ((0, 1, 2), ((3, 4), (5, 6))) == (script.context, script.inputs)


def test_one_turn_shows_no_drift() -> None:
    """There must be a second turn to compare with."""
    with pytest.raises(InvalidInput, match="2 or more"):
        Sizes(turns=1)


def test_a_row_is_the_mean_over_conversations() -> None:
    """KL with re-encode, as reported, and without, of the same turn."""
    row = torch.zeros(2)
    spoken = [Conversation((), (Spoken({5: row, 6: row}, reported),)) for reported in (0.1, 0.3)]
    found = drift._row(0, spoken, {True: [[0.1], [0.2]], False: [[0.4], [0.5]]})
    assert (1, 4) == (found["turn"], found["tokens"])
    assert pytest.approx((0.15, 0.2, 0.45, 3.0)) == (found["kl_on"], found["reported"], found["kl_off"], found["ratio"])


def test_growth_is_from_turn_2_to_turn_12() -> None:
    """A shorter conversation has not measured it."""
    rows = [{"turn": turn, "kl_on": 0.01 * turn, "kl_off": 0.1 * turn**2} for turn in range(1, 13)]
    measured = drift._measured(rows)
    assert pytest.approx((6, 36)) == (measured["growth"], measured["growth_without"])
    assert {} == drift._measured(rows[:11])


def test_the_chart_shows_both_conversations() -> None:
    """One line with re-encode, one without, over the turns."""
    lines = drift._chart([{"turn": 1, "kl_on": 0.1, "kl_off": 0.2}, {"turn": 2, "kl_on": 0.1, "kl_off": 0.3}]).lines
    assert [("re-encoded", [(1, 0.1), (2, 0.1)]), ("not re-encoded", [(1, 0.2), (2, 0.3)])] == [(line.label, line.points) for line in lines]
