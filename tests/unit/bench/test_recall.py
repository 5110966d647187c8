from __future__ import annotations

from typing import Any

import pytest

from agentmem.bench import recall
from agentmem.bench.recall import FULL, Answer, Sizes
from agentmem.compression import compressors
from agentmem.errors import InvalidInput
from agentmem.memory.recall.port import recallers
from agentmem.types import Fidelity, FidelityReport, Prefill

JUDGED = ("keydiff", 0.1, "lsh")


def row(key: recall.Key, *answers: Answer) -> dict[str, Any]:
    return dict(recall._row(key, answers))


def answer(tokens: int, kl: float = 0.0, top1: float = 1.0, *, exact: bool = True, attended: float = 0.2) -> Answer:
    return Answer(exact, FidelityReport(tokens, top1, kl, 2 * kl, attended=attended))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"compressors": ("keydif",)}, "keydiff"),
        ({"methods": ("lsh", "best")}, "best"),
        ({"keeps": (0.1, 0.0)}, "policy.keep"),
        ({"recall_tokens": 0}, "policy.recall_tokens"),
        ({"turns": 9}, "9 turns"),
        ({"facts": 0}, "0 facts"),
        ({"keeps": ()}, "nothing to compare"),
        ({"methods": ()}, "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_named(given: dict[str, Any], named: str) -> None:
    """A wrong name or number is refused before anything is loaded."""
    with pytest.raises(InvalidInput, match=named):
        Sizes(**given)


def test_every_compressor_meets_every_method() -> None:
    """Without a choice the table has all registered compressors, each with the four methods, budget by budget."""
    cells = list(Sizes(keeps=(0.1, 0.25)).cells())
    assert 4 * 2 * len(list(compressors)) == len(cells) == len(set(cells))
    assert {"none", "lsh", "pages", "oracle"} == {method for _, _, method in cells}
    assert set(recall.METHODS) <= set(recallers)
    assert [("knorm", 0.1, "none"), ("knorm", 0.1, "lsh")] == list(Sizes(compressors=("knorm",), methods=("none", "lsh")).cells())


def test_the_budgets_of_a_row_stay_what_they_are() -> None:
    """The policy of a row is the row's, for questions that see the view alone, without an objective that would raise budgets."""
    policy = Sizes(recall_tokens=64, prefill=Prefill.VIEW).policy(("knorm", 0.25, "pages"))
    assert ("knorm", 0.25, "pages", 64) == (policy.compressor, policy.keep, policy.recall, policy.recall_tokens)
    assert (Fidelity.RECALL, Prefill.VIEW, 0.0) == (policy.fidelity, policy.prefill, policy.objective)


def test_means_are_over_tokens() -> None:
    """A turn of which more tokens were compared counts more; answers and shares count by turn."""
    found = row(JUDGED, answer(8, 0.1, 1.0), answer(24, 0.3, 0.5, exact=False, attended=0.1))
    assert (0.5, 32) == (found["answers"], found["compared"])
    assert pytest.approx((0.25, 0.625, 0.6, 0.15)) == (found["mean_kl"], found["top1"], found["max_kl"], found["attended"])


def test_the_full_cache_agrees_with_itself() -> None:
    """Turns of exact steps only have nothing to compare: no KL, full agreement."""
    found = row((FULL, 1.0, ""), answer(0, attended=1.0))
    assert (0.0, 1.0, 1.0) == (found["mean_kl"], found["top1"], found["attended"])


def test_thresholds_are_about_one_row() -> None:
    """The default compressor and method are judged against the full cache of the same run."""
    full = row((FULL, 1.0, ""), answer(0), answer(0, exact=False), answer(0))
    other = row(("random", 0.1, "lsh"), answer(8, 9.0))
    judged = row(JUDGED, answer(8, 0.02, 0.97), answer(8, 0.02, 0.97, exact=False), answer(8, 0.02, 0.97, exact=False))
    measured = recall._measured([full, other, judged])
    assert {"full_answers", "mean_kl", "top1", "attended", "answers_of_full"} == set(measured)
    assert pytest.approx((0.5, 0.02)) == (measured["answers_of_full"], measured["mean_kl"])
    assert {"full_answers"} == set(recall._measured([full, other]))


def test_a_full_cache_without_answers_measures_no_share() -> None:
    """Nothing is better than nothing: the share is missing, so that its threshold is missed."""
    full = row((FULL, 1.0, ""), answer(0, exact=False))
    assert "answers_of_full" not in recall._measured([full, row(JUDGED, answer(8))])


def test_the_chart_joins_the_budgets_of_one_pair() -> None:
    """Accuracy and KL against what was attended to: a line for each compressor and method, and a bound for the full cache."""
    rows = [row((FULL, 1.0, ""), answer(0, exact=False))]
    rows += [row(("keydiff", keep, "lsh"), answer(8, 1 - keep, attended=keep)) for keep in (0.25, 0.1)]
    answers, kl = recall._charts(rows)
    assert [0.0, None] == [line.bound for line in answers.lines]
    assert [("keydiff + lsh", [(0.1, pytest.approx(0.9)), (0.25, pytest.approx(0.75))])] == [(line.label, line.points) for line in kl.lines]
