"""What happens when archived blocks turn out to be gone: it is noticed, said, and made good with what is computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentmem.engine.run import Run
from agentmem.sessions.session import Session
from agentmem.stores.archive import Archive
from agentmem.stores.records import BlockUnavailable
from agentmem.types import BlockHash, MissReason, ReuseReport

LOST = (MissReason.EVICTED, MissReason.MISSING, MissReason.CORRUPT, MissReason.MODEL_CHANGED, MissReason.TEMPLATE_CHANGED)


def note_lost(session: Session, run: Run) -> None:
    """Let what ``run`` could not read back be archived again once it is there, and the next reply say so.

    A run over compressed memory reads the tail from nowhere: only its sealed tokens tell what the archive lacks.
    """
    if not run.explained or run.miss[0] not in LOST:
        return
    if run.memory is not None and run.compacts:
        if run.memory is not run.request.memory:
            session.keep_saved(len(run.memory.blocks), run.miss)
        return
    session.keep_saved(sum(run.reused.values()) // run.chain.block_tokens, run.miss)


def reuse_of(run: Run) -> ReuseReport:
    """Return what ``run`` reused. A block that was found damaged before is gone by now: what was wrong with it is the reason, not that."""
    report, hint = run.reuse_report(), run.request.hint
    if report.reason is MissReason.EVICTED and hint is not None and hint[0] in LOST:
        return replace(report, reason=hint[0], detail=hint[1])
    return report


def first_lost(archive: Archive, hashes: Sequence[BlockHash]) -> tuple[int, MissReason, str] | None:
    """Return which of ``hashes`` is the first that cannot be read, and why; None when all can. Reads the files."""
    for index, name in enumerate(hashes):
        try:
            archive.map(name)
        except BlockUnavailable as error:
            return index, error.reason, error.detail
    return None
