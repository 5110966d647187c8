"""What ``agentmem bench ... --check`` asks for: one table for all benchmarks.

A benchmark returns measurements by name; those named here decide. A threshold whose measurement is missing is missed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Threshold:
    """A bound of one measurement. ``meaning`` says in words what is bounded."""

    relation: Literal["at most", "at least"]
    limit: float
    meaning: str

    def met_by(self, value: float) -> bool:
        """Return whether ``value`` keeps the bound; not a number never does."""
        return value <= self.limit if self.relation == "at most" else value >= self.limit


THRESHOLDS: dict[str, dict[str, Threshold]] = {
    "equality": {
        "mismatching_tokens": Threshold("at most", 0, "tokens that differ from HF generate with a full cache"),
        "lost_turns": Threshold("at most", 0, "acknowledged turns that are missing or changed after SIGKILL"),
        "compared_tokens": Threshold("at least", 4 * 5 * 48, "tokens compared with HF generate"),
        "replies_at_once": Threshold("at least", 2, "most replies that were decoding at the same time"),
        "spilled_tokens": Threshold("at least", 1, "tokens that idle sessions had to read back from disk before the restart"),
        "restored_tokens": Threshold("at least", 1, "tokens read from disk after the restart"),
        "forked_tokens": Threshold("at least", 1, "tokens that the fork read instead of computing them"),
    },
    "restart": {
        "ratio": Threshold("at most", 0.2, "time to first token restored from disk, over the time when it is recomputed"),
        "restored_share": Threshold("at least", 0.95, "share of the context that came from disk after the restart"),
    },
    "throughput": {
        "speedup_at_16": Threshold("at least", 5, "tokens a second of 16 concurrent sessions, over those of one"),
    },
    "decode": {
        "slowest_prefill": Threshold("at least", 1, "prefill tokens a second over HF's, in the worst cell"),
        "slowest_decode": Threshold("at least", 1, "HF's time a token over ours, in the worst cell"),
    },
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measurement held against its threshold. ``value`` is not a number when it is missing."""

    name: str
    value: float
    threshold: Threshold

    @property
    def met(self) -> bool:
        """Whether the threshold is kept."""
        return self.threshold.met_by(self.value)


def judge(benchmark: str, measured: Mapping[str, float]) -> list[Verdict]:
    """Return one verdict for each threshold of ``benchmark``, in the table's order."""
    return [Verdict(name, measured.get(name, math.nan), threshold) for name, threshold in THRESHOLDS.get(benchmark, {}).items()]
