"""What a reply says of where its context came from."""

from __future__ import annotations

from dataclasses import replace

from agentmem.engine.run import Run
from agentmem.types import MissReason, ReuseReport

# What had been in the archive and is not: it is to be archived again.
LOST = (MissReason.EVICTED, MissReason.MISSING, MissReason.CORRUPT, MissReason.MODEL_CHANGED, MissReason.TEMPLATE_CHANGED)


def reuse_of(run: Run) -> ReuseReport:
    """Return what ``run`` reused. A block that was found damaged before is gone by now: what was wrong with it is the reason, not that."""
    report, hint = run.reuse_report(), run.request.hint
    if report.reason is MissReason.EVICTED and hint is not None and hint[0] in LOST:
        return replace(report, reason=hint[0], detail=hint[1])
    return report
