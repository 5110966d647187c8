"""Fidelity reports: what is known of how a turn was decoded, put together when its exact re-encode is over."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from torch import Tensor

from agentmem.engine.run import MAX_DECODED, Comparison
from agentmem.sessions import budgets
from agentmem.types import Fidelity, FidelityReport, Policy, Turn, TurnState
from agentmem.units import MIB

FULL_CACHE = "full cache"
MAX_DECODED_BYTES = 512 * MIB  # distributions that all sessions keep for reports to come


@dataclass(slots=True)
class Evidence:
    """What the reports to come need, in memory only: after a restart they say that nothing was compared.

    ``policies``: turn -> the budgets it ran with. ``decoded``: position of the token fed -> fp16 log-probabilities ``[vocab]``.
    ``compared``: position of the predicted token -> comparison.
    """

    policies: dict[int, Policy] = field(default_factory=dict)
    decoded: dict[int, Tensor] = field(default_factory=dict)
    compared: dict[int, Comparison] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the distributions."""
        return sum(row.nbytes for row in self.decoded.values())

    def add_turn(self, index: int, policy: Policy, decoded: dict[int, Tensor]) -> None:
        """Take in what a run has left; of too many distributions the oldest go."""
        self.policies[index] = policy
        self.decoded |= decoded
        for position in sorted(self.decoded)[:-MAX_DECODED]:
            del self.decoded[position]

    def add_compared(self, comparisons: Iterable[Comparison]) -> None:
        """Take in what a re-encode has compared; those distributions are needed no more."""
        for found in comparisons:
            self.compared[found.position] = found
            self.decoded.pop(found.position - 1, None)

    def upto(self, last_turn: int, length: int) -> Evidence:
        """Return what is known of turns up to ``last_turn``, whose tokens end at ``length``."""
        other = Evidence(
            {index: policy for index, policy in self.policies.items() if index <= last_turn}, dict(self.decoded), dict(self.compared)
        )
        other.forget(length, sys.maxsize)
        return other

    def forget(self, start: int, stop: int) -> None:
        """Drop what is known of positions ``start`` to ``stop``: their report is made, or they are gone."""
        for known in (self.decoded, self.compared):
            for position in [position for position in known if start <= position < stop]:
                del known[position]


def shed(evidences: Iterable[Evidence], max_bytes: int = MAX_DECODED_BYTES) -> None:
    """Drop distributions until all take at most ``max_bytes``: the older half of who has most. Their reports compare fewer tokens."""
    sizes = [(evidence, evidence.nbytes) for evidence in evidences]
    while sum(size for _, size in sizes) > max_bytes:
        sizes.sort(key=itemgetter(1))
        most, _ = sizes.pop()
        for position in sorted(most.decoded)[: -(-len(most.decoded) // 2)]:
            del most.decoded[position]
        sizes.append((most, most.nbytes))


def with_exact_report(turns: Sequence[Turn], policy: Policy) -> Turn:
    """Return the last of ``turns``, with its report where it is sealed and attended to everything: it is equal by construction."""
    turn = turns[-1]
    if turn.state is not TurnState.SEALED or turn.fidelity is not Fidelity.EXACT:
        return turn
    return replace(turn, report=budgets.after(policy, turns[:-1], FidelityReport(reference=FULL_CACHE)))


def report_of(turns: Sequence[Turn], index: int, policy: Policy, evidence: Evidence, *, reencoded: bool, reference: str) -> FidelityReport:
    """Return the report of an approximate turn; ``policy`` is what the session has now, ``reference`` what the re-encode attended to."""
    turn, before = turns[index], turns[:index]
    start = sum(len(earlier.token_ids) for earlier in before)
    found = [c for position, c in sorted(evidence.compared.items()) if start <= position < start + len(turn.token_ids)]
    ran = evidence.policies.get(index) or budgets.effective(policy, before)
    report = FidelityReport(
        tokens=len(found),
        top1_agreement=sum(c.agrees for c in found) / len(found) if found else 1.0,
        mean_kl=sum(c.kl for c in found) / len(found) if found else 0.0,
        max_kl=max((c.kl for c in found), default=0.0),
        worst_position=max(found, key=lambda c: c.kl).position if found else None,
        attended=turn.usage.attended,
        keep=ran.keep,
        recall_tokens=ran.recall_tokens if turn.fidelity is Fidelity.RECALL else 0,
        reencoded=reencoded,
        reference=reference,
    )
    return budgets.after(policy, before, report)
