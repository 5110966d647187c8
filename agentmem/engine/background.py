"""What background runs do in idle steps: re-encode, prefill, observe; and the comparison that a re-encode yields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from agentmem.engine.batch import Work
from agentmem.engine.run import Comparison, Run
from agentmem.engine.view import rows_from
from agentmem.memory.segment import Branch

CHUNK_TOKENS = 128  # of one idle step: what a turn that comes in may have to wait for


def background_work(run: Run, branch: Branch) -> Work | None:
    """Return the run's next chunk: approximate tokens first, then those without K and V, then those to look at; None when done.

    A chunk of tokens that stand already lies in one segment.
    """
    tokens = run.chain.tokens
    if run.request.reencode and branch.approx_from is not None:
        start = branch.approx_from
        count = min(CHUNK_TOKENS, rows_from(branch, start))
        logits = [offset for offset in range(count) if start + offset in run.request.decoded]
        return Work(branch, tokens[start : start + count], logits, start=start, rewrite=True)
    if run.pending:
        return Work(branch, run.pending[:CHUNK_TOKENS], expect=len(run.pending))
    for start, stop in _unseen(run.request.observe, run.num_observed):
        count = min(CHUNK_TOKENS, stop - start, rows_from(branch, start))
        return Work(branch, tokens[start : start + count], start=start, observer=run.request.observer)
    return None


def is_complete(run: Run, branch: Branch) -> bool:
    """Return whether a run has nothing left to do; one that samples ends by what it samples."""
    if run.request.sampling is not None:
        return False
    return background_work(run, branch) is None if run.request.background else not run.pending


def note_background(run: Run, branch: Branch, work: Work, logits: Tensor) -> None:
    """Book what a step has done of ``work``; ``logits`` fp32 ``[len(work.logits), vocab]``, exact ones."""
    if work.start is None:
        return
    if not work.rewrite:
        run.num_observed += len(work.token_ids)
        return
    stop = work.start + len(work.token_ids)
    branch.approx_from = stop if stop < branch.length else None
    run.comparisons.extend(_compare(run.request.decoded, [work.start + offset for offset in work.logits], logits))


def log_probabilities(logits: Tensor) -> Tensor:
    """Return what is kept of a prediction, ``[vocab]``: fp16 is finest near 0, where the likely tokens are."""
    return torch.log_softmax(logits, dim=-1).half().cpu()


def _unseen(ranges: Sequence[range], num_seen: int) -> Iterator[tuple[int, int]]:
    for wanted in ranges:
        if num_seen < len(wanted):
            yield wanted.start + num_seen, wanted.stop
        num_seen = max(0, num_seen - len(wanted))


def _compare(decoded: Mapping[int, Tensor], positions: Sequence[int], logits: Tensor) -> list[Comparison]:
    exact = torch.log_softmax(logits.cpu(), dim=-1)
    found = []
    for position, row in zip(positions, exact, strict=True):
        other = decoded[position].float()
        kl = float((row.exp() * (row - other)).sum())
        found.append(Comparison(position + 1, max(0.0, kl), bool(row.argmax() == other.argmax())))
    return found
