from __future__ import annotations

from dataclasses import replace

import pytest

from agentmem.sessions.budgets import after, budgets_at, effective, last_report, step_of
from agentmem.types import FidelityReport, Policy, Turn

POLICY = Policy(keep=0.1, recall_tokens=256, objective=0.95)


def history(policy: Policy, *agreements: float) -> list[Turn]:
    """Return turns whose reports follow from these agreements, each with the budgets that the one before led to."""
    turns = [Turn(0)]
    for agreement in agreements:
        report = after(policy, turns, FidelityReport(tokens=10, top1_agreement=agreement))
        turns.append(Turn(len(turns), report=report))
    return turns


def test_below_the_objective_budgets_grow_within_limits() -> None:
    """Each bad turn gives the next 1.5 times as much to keep and to recall, up to half of the tokens and 4 times the policy's."""
    seen = [(b.keep, b.recall_tokens) for n in range(7) if (b := effective(POLICY, history(POLICY, *[0.5] * n)))]
    assert [(0.1, 256), (0.15, 384), (0.225, 576), (0.3375, 864), (0.5, 1024), (0.5, 1024), (0.5, 1024)] == seen


def test_at_the_objective_budgets_shrink_back() -> None:
    """A turn at or above the objective takes a step back, never below the policy's own; the steps are those of the way up."""
    turns = history(POLICY, 0.5, 0.5, 0.95, 1.0, 1.0)
    keeps = [turn.report.next_keep for turn in turns[1:] if turn.report]
    assert [0.15, 0.225, 0.15, 0.1, 0.1] == keeps
    assert POLICY == effective(POLICY, turns)


def test_the_limit_is_left_at_once() -> None:
    """However many bad turns ran at the limit, the first good one takes a step back."""
    assert 0.3375 == effective(POLICY, history(POLICY, *[0.0] * 9, 1.0)).keep


def test_a_turn_without_comparisons_moves_nothing() -> None:
    """An EXACT turn, or one whose distributions were lost, neither raises nor lowers what others have shown."""
    turns = history(POLICY, 0.5)
    report = after(POLICY, turns, FidelityReport(tokens=0, top1_agreement=1.0))
    assert (0.15, 384) == (report.next_keep, report.next_recall_tokens)


def test_objective_0_leaves_budgets_alone() -> None:
    """Then they stay what the policy says."""
    still = replace(POLICY, objective=0.0)
    assert still == effective(still, history(still, 0.1, 0.1))


def test_a_changed_policy_starts_anew() -> None:
    """Reports under another budget say nothing about this one."""
    assert 0.3 == effective(replace(POLICY, keep=0.3), history(POLICY, 0.5)).keep


@pytest.mark.parametrize(("keep", "most"), [(0.8, 0.8), (1.0, 1.0), (0.5, 0.5), (0.001, 0.5)])
def test_a_policy_gets_what_it_asks_for(keep: float, most: float) -> None:
    """Half of the tokens is the limit of growing, not of the policy; tiny budgets reach it too."""
    policy = replace(POLICY, keep=keep, recall_tokens=1)
    grown = effective(policy, history(policy, *[0.0] * 30))
    assert (most, 4) == (grown.keep, grown.recall_tokens)


def test_steps_are_found_again() -> None:
    """A restart reads the step from the last report in the ledger, which an earlier turn's does not change."""
    turns = [*history(POLICY, 0.5, 0.5), Turn(3)]
    assert turns[2].report == last_report(turns)
    assert 2 == step_of(POLICY, last_report(turns))
    assert 0 == step_of(POLICY, None)
    assert budgets_at(POLICY, 2).keep == effective(POLICY, turns).keep
