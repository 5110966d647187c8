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
        "approximate_tokens": Threshold("at least", 1, "tokens generated under RECALL, without seeing all of the context"),
        "exact_after_recall": Threshold("at least", 1, "tokens of EXACT replies right after one under RECALL, compared with HF generate"),
        "sealed_tokens": Threshold("at least", 1, "tokens that were compressed and indexed at the end"),
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
    "latency": {
        "recall_growth": Threshold("at most", 1.8, "time a token under RECALL at the longest context, over that at the shortest"),
        "exact_over_recall": Threshold("at least", 2, "time a token under EXACT over RECALL's, at the longest context"),
    },
    "recall": {
        "mean_kl": Threshold("at most", 0.05, "keydiff 10% + lsh: mean KL to the full cache, nats"),
        "top1": Threshold("at least", 0.95, "keydiff 10% + lsh: top-1 agreement with the full cache"),
        "answers_of_full": Threshold("at least", 0.9, "keydiff 10% + lsh: exact answers over those of the full cache"),
        "attended": Threshold("at most", 0.2, "keydiff 10% + lsh: share of the context that a decode step attends to"),
        "full_answers": Threshold("at least", 0.5, "exact answers of the full cache, without which the others would mean little"),
    },
    "density": {
        "recall_of_exact": Threshold("at most", 0.3, "private bytes of a RECALL session over an EXACT one's, as the server counts them"),
        "process_of_exact": Threshold("at most", 0.3, "the same of what the server's anonymous memory grows by"),
        "silent_sessions": Threshold("at most", 0, "sessions that fit in the budget and did not answer"),
    },
    "toolloop": {
        "speedup": Threshold("at least", 2.5, "tokens a second with the controller, over those without drafts, all traces together"),
        "slowest_trace": Threshold("at least", 0.97, "the same on the trace that gains least"),
        "hf_turn": Threshold("at least", 4, "HF's time for a turn at 4,000 tokens of context, over ours, median"),
    },
    "constrained": {
        "valid_share": Threshold("at least", 1, "share of all calls whose arguments match their schema"),
        "guide_overhead": Threshold("at most", 0.03, "time of grammars over that of the steps that they take part in"),
    },
    "drift": {
        "growth": Threshold("at most", 2, "KL of turn 12 over that of turn 2, with re-encode"),
    },
}

THRESHOLDS["equality with drafts"] = THRESHOLDS["equality"] | {
    "accepted_tokens": Threshold("at least", 1, "of the compared tokens, those that were drafted and accepted"),
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
