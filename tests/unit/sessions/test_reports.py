from __future__ import annotations

import pytest
import torch

from agentmem.engine.run import MAX_DECODED, Comparison
from agentmem.sessions.reports import Evidence, report_of, shed, with_exact_report
from agentmem.types import Fidelity, FidelityReport, Policy, Turn, TurnState, Usage

POLICY = Policy(keep=0.2, recall_tokens=32)
ROW = torch.zeros(1)


def turns(fidelity: Fidelity) -> list[Turn]:
    """Return a prelude of 3 tokens and two turns of 4, the last of the fidelity."""
    earlier = Turn(1, token_ids=(1,) * 4, state=TurnState.SEALED)
    last = Turn(2, token_ids=(1,) * 4, state=TurnState.SEALED, fidelity=fidelity, usage=Usage(attended=0.25))
    return [Turn(0, token_ids=(1,) * 3), earlier, last]


def report(evidence: Evidence, fidelity: Fidelity = Fidelity.RECALL, *, reencoded: bool = True) -> FidelityReport:
    return report_of(turns(fidelity), 2, POLICY, evidence, reencoded=reencoded, reference="full cache")


def test_an_exact_turn_is_equal_by_construction() -> None:
    """Nothing was compared, everything was attended to; other turns, and open ones, get no report this way."""
    made = with_exact_report(turns(Fidelity.EXACT), POLICY).report
    assert made is not None
    assert with_exact_report(turns(Fidelity.RECALL), POLICY).report is None
    assert with_exact_report([Turn(0)], POLICY).report is None
    assert (0, 1.0, 1.0, None, 1.0, 0) == (
        made.tokens,
        made.top1_agreement,
        made.attended,
        made.worst_position,
        made.keep,
        made.recall_tokens,
    )
    assert (0.2, 32) == (made.next_keep, made.next_recall_tokens)


def test_the_turns_own_comparisons_count() -> None:
    """Agreement, mean and worst are those of the positions of this turn; the budgets are those it ran with."""
    evidence = Evidence()
    evidence.add_turn(2, Policy(keep=0.3, recall_tokens=48), {})
    evidence.add_compared([Comparison(6, 9.0, agrees=False), Comparison(7, 0.5, agrees=True), Comparison(10, 1.5, agrees=False)])
    made = report(evidence)
    assert (2, 0.5, 1.0, 1.5, 10) == (made.tokens, made.top1_agreement, made.mean_kl, made.max_kl, made.worst_position)
    assert (0.25, 0.3, 48) == (made.attended, made.keep, made.recall_tokens)
    assert (0.3, 48) == (made.next_keep, made.next_recall_tokens)
    assert 0 == report(evidence, Fidelity.COMPACT).recall_tokens


@pytest.mark.parametrize("reencoded", [True, False])
def test_without_evidence_nothing_is_claimed(reencoded: bool) -> None:
    """After a restart, or without a re-encode, the report says that it compared nothing, and with which budgets the turn must have run."""
    made = report(Evidence(), reencoded=reencoded)
    assert (0, 1.0, 0.0, None, 0.2, 32) == (
        made.tokens,
        made.top1_agreement,
        made.mean_kl,
        made.worst_position,
        made.keep,
        made.recall_tokens,
    )
    assert reencoded is made.reencoded


def test_evidence_is_bounded_and_goes_when_it_was_used() -> None:
    """The newest distributions stay; a comparison takes its distribution along; a fork takes what it shares."""
    evidence = Evidence()
    evidence.add_turn(1, POLICY, dict.fromkeys(range(10), ROW))
    evidence.add_turn(2, POLICY, dict.fromkeys(range(10, MAX_DECODED + 5), ROW))
    assert (5, MAX_DECODED) == (min(evidence.decoded), len(evidence.decoded))
    evidence.add_compared([Comparison(8, 0.0, agrees=True), Comparison(20, 0.0, agrees=True)])
    assert not {7, 19} & evidence.decoded.keys()
    fork = evidence.upto(1, 15)
    assert ({1}, {8}, 14) == (fork.policies.keys(), fork.compared.keys(), max(fork.decoded))
    assert {8, 20} == evidence.compared.keys()


def test_who_has_most_sheds_its_oldest() -> None:
    """Above the bound the largest loses its older half, again and again; below it nobody loses anything."""
    small, large = Evidence(decoded=dict.fromkeys(range(2), ROW)), Evidence(decoded=dict.fromkeys(range(9), ROW))
    shed([small, large], max_bytes=11 * ROW.nbytes)
    assert (2, 9) == (len(small.decoded), len(large.decoded))
    shed([small, large], max_bytes=5 * ROW.nbytes)
    assert ([0, 1], [7, 8]) == (sorted(small.decoded), sorted(large.decoded))
    shed([small, large, Evidence()], max_bytes=0)
    assert small.decoded == large.decoded == {}
