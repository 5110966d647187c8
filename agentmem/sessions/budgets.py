"""Auto budgets: how a turn's fidelity report moves what the next turn may keep and recall (DESIGN 7).

Budgets grow by the same factor from step to step, so a session that swings between two steps finds the results of its earlier seal jobs.
Nothing is remembered beside the reports in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentmem.types import FidelityReport, Policy, Turn

GROWTH = 1.5
MOST_KEPT = 0.5  # share; a policy that asks for more gets it and no more
MOST_RECALLED = 4  # times the policy's recall_tokens
_MAX_STEPS = 32  # more than any policy needs to reach both limits


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a turn may keep (a share) and recall (tokens for each KV head and step)."""

    keep: float
    recall_tokens: int


def budgets_at(policy: Policy, step: int) -> Budgets:
    """Return the budgets ``step`` steps above the policy's own."""
    factor = GROWTH**step
    keep = min(max(MOST_KEPT, policy.keep), policy.keep * factor)
    tokens = min(MOST_RECALLED * policy.recall_tokens, math.ceil(policy.recall_tokens * factor))
    return Budgets(round(keep, 6), tokens)


def step_of(policy: Policy, report: FidelityReport | None) -> int:
    """Return on which step ``report`` puts the next turn; 0 without one, or when the policy has changed since."""
    if report is None or not policy.objective:
        return 0
    wanted = Budgets(report.next_keep, report.next_recall_tokens)
    return next((step for step in range(_MAX_STEPS) if budgets_at(policy, step) == wanted), 0)


def last_report(turns: Sequence[Turn]) -> FidelityReport | None:
    """Return the newest report there is."""
    return next((turn.report for turn in reversed(turns) if turn.report is not None), None)


def effective(policy: Policy, turns: Sequence[Turn]) -> Policy:
    """Return ``policy`` with the budgets that the next turn runs with."""
    now = budgets_at(policy, step_of(policy, last_report(turns)))
    return replace(policy, keep=now.keep, recall_tokens=now.recall_tokens)


def after(policy: Policy, turns: Sequence[Turn], report: FidelityReport) -> FidelityReport:
    """Return ``report`` with the budgets of the turn after it: a step up below the objective, a step down at or above it.

    ``turns`` are those before the report's. A turn of which nothing was compared moves nothing.
    """
    step = step_of(policy, last_report(turns))
    if report.tokens and policy.objective:
        step = _up(policy, step) if report.top1_agreement < policy.objective else max(0, step - 1)
    following = budgets_at(policy, step)
    return replace(report, next_keep=following.keep, next_recall_tokens=following.recall_tokens)


def _up(policy: Policy, step: int) -> int:
    return step + 1 if budgets_at(policy, step + 1) != budgets_at(policy, step) else step
