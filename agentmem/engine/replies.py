"""From logits to a reply: which tokens a step yields, and whether the reply ends with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from agentmem.engine.run import Output, Run
from agentmem.engine.sampling import Sampled, Sampler, SampleRow
from agentmem.engine.stats import Stopwatch
from agentmem.errors import InternalError
from agentmem.types import FinishReason, SamplingParams

log = logging.getLogger(__name__)


def reply_each(
    sampler: Sampler, runs: Sequence[Run], logits: Tensor, guiding: Stopwatch | None = None
) -> list[FinishReason | Exception | None]:
    """Extend each run by the tokens that its rows of ``logits`` ``[rows, vocab]``, fp32, yield: those of its draft that hold, and one.

    ``guiding`` runs while grammars are asked and mask logits. Returns why each reply ended with them, None where it goes on, or what went
    wrong: rows that cannot be sampled are that run's failure alone, others, of other tenants too, go on.
    """
    guiding = guiding or Stopwatch()
    likeliest = sampler.likeliest(logits) if runs else []
    ended: list[FinishReason | Exception | None] = []
    first = 0
    for run in runs:
        stop = first + 1 + len(run.draft.token_ids)
        try:
            ended.append(_reply(sampler, run, logits[first:stop], likeliest[first:stop], guiding))
        except Exception as error:
            log.exception("a row could not be sampled")
            ended.append(error)
        first = stop
    return ended


def _reply(sampler: Sampler, run: Run, logits: Tensor, likeliest: Sequence[tuple[int, float]], guiding: Stopwatch) -> FinishReason | None:
    """Sample row after row for as long as the draft had the token that was sampled.

    A token depends on its row and on the noise of its position alone, and up to the first token that differs a row is what it would
    have been without a draft. So the output is the same with any draft or none.
    """
    draft = run.draft.token_ids
    run.num_drafted += len(draft)
    run.last_accepted = 0
    for index, row in enumerate(logits):
        sampled = _next(sampler, run, row, likeliest[index], guiding)
        text = run.reply_text.push(sampled.token_id) if run.reply_text and not _ends(run, sampled.token_id) else ""
        run.outputs.append(Output(sampled.token_id, text, sampled.logprob, sampled.top))
        run.chain.extend([sampled.token_id])
        confirmed = index < len(draft) and sampled.token_id == draft[index]
        run.num_accepted += confirmed
        run.last_accepted += confirmed
        reason = finish_of(run)
        if reason is not None or not confirmed:
            return reason
    return None


def _next(sampler: Sampler, run: Run, logits: Tensor, likeliest: tuple[int, float], guiding: Stopwatch) -> Sampled:
    """Return the next token of ``run``: the one that its grammar forces, else one sampled from what it allows."""
    params, guide = params_of(run), run.guide
    row = SampleRow(params, run.request.seed, len(run.chain), run.chain.tokens)
    if guide is None:
        return sampler.sample_row(logits, row, *likeliest)
    with guiding:
        forced = guide.forced()
        row = replace(row, forced=forced[0], masking=guiding) if forced else replace(row, allowed=guide.allowed(), masking=guiding)
    sampled = sampler.sample_row(logits, row, *likeliest)
    with guiding:
        guide.advance(sampled.token_id)
    return sampled


def params_of(run: Run) -> SamplingParams:
    """Return how ``run`` samples. Raises InternalError when it does not."""
    if run.request.sampling is None:
        raise InternalError("a prefill-only run was asked for a token")
    return run.request.sampling


def _ends(run: Run, token_id: int) -> bool:
    params = params_of(run)
    goes_on = params.ignore_eos and run.guide is None  # after what a grammar has ended nothing can follow
    return token_id in params.stop_token_ids or (token_id in run.request.end_token_ids and not goes_on)


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
