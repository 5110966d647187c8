"""From logits to a reply: sampling each run's row and deciding whether the reply ends with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor

from agentmem.engine.run import Output, Run
from agentmem.engine.sampling import Sampler, SampleRow
from agentmem.errors import InternalError
from agentmem.types import FinishReason

log = logging.getLogger(__name__)


def sample_each(sampler: Sampler, runs: Sequence[Run], logits: Tensor) -> list[Output | Exception]:
    """Return the next output of each run from its row of ``logits`` ``[len(runs), vocab]``, fp32, or what went wrong with it.

    A row that cannot be sampled is that run's failure alone: others, of other tenants too, go on.
    """
    try:
        return [*sample_rows(sampler, runs, logits)]
    except Exception as error:
        if len(runs) == 1:
            log.exception("a row could not be sampled")
            return [error]
    return [sample_each(sampler, [run], logits[index : index + 1])[0] for index, run in enumerate(runs)]


def sample_rows(sampler: Sampler, runs: Sequence[Run], logits: Tensor) -> list[Output]:
    """Return the next output of each run from its row of ``logits`` ``[len(runs), vocab]``, fp32. Raises for any bad row."""
    if not runs:
        return []
    drawn = sampler.sample(logits, [_row(run) for run in runs])
    outputs = []
    for run, sampled in zip(runs, drawn, strict=True):
        text = run.reply_text.push(sampled.token_id) if run.reply_text and not _ends(run, sampled.token_id) else ""
        outputs.append(Output(sampled.token_id, text, sampled.logprob, sampled.top))
    return outputs


def _row(run: Run) -> SampleRow:
    params = run.request.sampling
    if params is None:
        raise InternalError("a prefill-only run was asked for a token")
    return SampleRow(params, run.request.seed, len(run.chain), run.chain.tokens)


def _ends(run: Run, token_id: int) -> bool:
    params = run.request.sampling
    if params is None:
        return False
    return token_id in params.stop_token_ids or (token_id in run.request.end_token_ids and not params.ignore_eos)


def finish_of(run: Run) -> FinishReason | None:
    """Return why the reply ends with its last output, or None when it goes on."""
    params = run.request.sampling
    if params is None:
        return None
    if _ends(run, run.outputs[-1].token_id):
        return FinishReason.STOP
    if run.reply_text is not None and run.reply_text.stopped:
        return FinishReason.STOP_STRING
    if len(run.outputs) >= params.max_tokens:
        return FinishReason.LENGTH
    if len(run.chain) >= run.request.max_length:
        return FinishReason.CONTEXT_FULL
    return None
