from __future__ import annotations

import math

import pytest

from agentmem.bench.cli import BENCHMARKS
from agentmem.bench.thresholds import THRESHOLDS, Threshold, judge


@pytest.mark.parametrize(
    ("relation", "value", "met"),
    [("at most", 2.0, True), ("at most", 2.1, False), ("at least", 2.0, True), ("at least", 1.9, False)],
)
def test_a_threshold_includes_its_limit(relation: str, value: float, met: bool) -> None:
    """A value on the limit keeps the bound, one beyond it does not."""
    assert met is Threshold(relation, 2.0, "x").met_by(value)


@pytest.mark.parametrize("relation", ["at most", "at least"])
def test_not_a_number_never_keeps_a_bound(relation: str) -> None:
    """What could not be measured did not pass."""
    assert False is Threshold(relation, 0, "x").met_by(math.nan)


def test_a_missing_measurement_is_missed() -> None:
    """A benchmark cannot pass by not measuring; what has no threshold is not judged."""
    verdicts = judge("restart", {"ratio": 0.1, "unknown": 5.0})
    assert {"ratio": True, "restored_share": False} == {verdict.name: verdict.met for verdict in verdicts}


def test_every_benchmark_has_thresholds() -> None:
    """The commands and the table of thresholds name the same benchmarks; decode --fidelity and equality --speculate are of their own."""
    assert {*BENCHMARKS, "latency", "equality with drafts"} == set(THRESHOLDS)
