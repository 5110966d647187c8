"""What happens when archived blocks turn out to be gone: it is noticed, said, and made good with what is computed again."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.engine.run import Run
from agentmem.sessions.reuse import LOST
from agentmem.sessions.session import Session
from agentmem.stores.archive import Archive
from agentmem.stores.records import BlockUnavailable
from agentmem.types import BlockHash, MissReason


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


def first_lost(archive: Archive, hashes: Sequence[BlockHash]) -> tuple[int, MissReason, str] | None:
    """Return which of ``hashes`` is the first that cannot be read, and why; None when all can. Reads the files."""
    for index, name in enumerate(hashes):
        try:
            archive.map(name)
        except BlockUnavailable as error:
            return index, error.reason, error.detail
    return None
