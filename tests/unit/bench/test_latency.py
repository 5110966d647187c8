from __future__ import annotations

from typing import Any

import pytest

from agentmem.bench import latency
from agentmem.bench.latency import EXACT, RECALL, Sizes, Timing, fidelities_of
from agentmem.bench.measure import TimedReply, TokenTimes
from agentmem.bench.texts import TextSource
from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent
from agentmem.types import FinishReason, ReuseReport, Usage


def reply(ms: float, attended: float = 0.1) -> TimedReply:
    """Return a reply of three tokens, ``ms`` each after the first."""
    finish = FinishEvent(1, FinishReason.LENGTH, None, "", Usage(attended=attended), ReuseReport(), RECALL, durable=True)
    return TimedReply(TokenTimes((1, 2, 3), 1.0, 1.0 + 2 * ms / 1000), finish)


@pytest.fixture
def timing() -> Timing:
    return Timing(Sizes(contexts=(2048, 32768)), 3, TextSource(None), lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["recall", "both"])
def test_recall_is_never_timed_alone(name: str) -> None:
    """Its number means something beside EXACT in the same run only."""
    assert (EXACT, RECALL) == fidelities_of(name)


def test_an_unknown_fidelity_names_the_known_ones() -> None:
    """EXACT alone may be asked for; another word is refused."""
    assert (EXACT,) == fidelities_of("exact")
    with pytest.raises(InvalidInput, match="recall, both, exact"):
        fidelities_of("compact")


@pytest.mark.parametrize("contexts", [(), (8, 8), (16, 8), (0, 8)])
def test_contexts_must_grow(contexts: tuple[int, ...]) -> None:
    """One session grows through them, so each must be longer than the one before."""
    with pytest.raises(InvalidInput, match="contexts"):
        Sizes(contexts=contexts)


def test_a_row_shows_medians_and_what_lies_beyond_training(timing: Timing) -> None:
    """Times are medians; a context longer than the model was trained for says so."""
    exact, recall = (EXACT, "none"), (RECALL, "none")
    timing.replies = {(32768, exact): [reply(90), reply(100), reply(400)], (32768, recall): [reply(25, 0.05)] * 3}
    timing.resident = {32768: 3300}
    row: dict[str, Any] = timing.row(32768, 8192)
    assert pytest.approx((100, 25, 4.0, 0.05)) == (row["exact_ms"], row["recall_ms"], row["ratio"], row["attended"])
    assert (3300, "beyond the trained length", "") == (row["resident"], row["note"], timing.row(2048, 8192)["note"])


def test_thresholds_need_contexts_that_grow_sixteen_times() -> None:
    """A short run, or one of EXACT alone, has not measured what the thresholds are about."""
    rows = [
        {"context": 2048, "exact_ms": 20.0, "recall_ms": 15.0, "ratio": 1.33},
        {"context": 32768, "exact_ms": 100.0, "recall_ms": 24.0, "ratio": 4.2},
    ]
    assert {"exact_growth": 5.0, "recall_growth": 1.6, "exact_over_recall": 4.2} == latency._measured(rows)
    assert {"exact_growth": 1.0} == latency._measured(rows[:1])
    assert {"exact_growth": 5.0} == latency._measured([{"context": row["context"], "exact_ms": row["exact_ms"]} for row in rows])


def test_the_chart_has_a_line_for_each_fidelity_that_was_timed() -> None:
    """Time against context, on an axis where each doubling is equally far."""
    rows = [{"context": 2048, "exact_ms": 20.0, "recall_ms": 15.0}, {"context": 4096, "exact_ms": 40.0, "recall_ms": 16.0}]
    chart = latency._chart(rows)
    assert (["EXACT", "RECALL"], True) == ([line.label for line in chart.lines], chart.log_x)
    assert [(2048.0, 15.0), (4096.0, 16.0)] == chart.lines[1].points
    assert ["EXACT"] == [line.label for line in latency._chart([{"context": 1, "exact_ms": 1.0}]).lines]


def test_drafts_are_timed_beside_exact_alone() -> None:
    """With a drafter EXACT is measured twice, and RECALL never drafts; an unknown drafter is refused with the known ones."""
    assert ((EXACT, "none"), (RECALL, "none"), (EXACT, "compact")) == Sizes(drafter="compact").variants
    assert ((EXACT, "none"),) == Sizes(fidelities=(EXACT,)).variants
    with pytest.raises(InvalidInput, match="unknown drafter 'compost'"):
        Sizes(drafter="compost")
