"""From logits to token ids. A token depends on its logits, its seed and its position, never on what else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.engine.stats import Stopwatch
from agentmem.errors import InternalError
from agentmem.types import SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What one row of logits is sampled with.

    ``seed`` is used even if ``params`` names none. ``position``: index in the context of the token to come. ``seen``: the ids of
    the context so far, prompt included, for the repetition penalty. ``allowed``: what a grammar leaves, bits as ``Guide.allowed`` has them;
    None: everything. ``forced``: the token that comes whatever the logits say, None: none does. ``masking`` times what leaving out the
    tokens that are not allowed takes.
    """

    params: SamplingParams
    seed: int
    position: int
    seen: Sequence[int] = ()
    allowed: NDArray[np.int32] | None = None
    forced: int | None = None
    masking: Stopwatch = field(default_factory=Stopwatch, compare=False)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sampled token; with ``params.logprobs``, its log probability and the likeliest tokens', before penalties and temperature."""

    token_id: int
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()


class Sampler:
    """Stateless and thread safe."""

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[Sampled]:
        """Return the next token of each row of ``logits`` ``[len(rows), vocab]``, fp32, which stay as they are.

        Greedy rows take the likeliest token, the lowest id of equals. Raises InternalError naming a row that holds NaN or +inf, or
        nothing but -inf.
        """
        if logits.shape[0] != len(rows):
            raise InternalError(f"{logits.shape[0]} rows of logits for {len(rows)} rows to sample")
        likeliest = self.likeliest(logits)
        return [self.sample_row(logits[index], row, *likeliest[index]) for index, row in enumerate(rows)]

    def likeliest(self, logits: Tensor) -> list[tuple[int, float]]:
        """Return the likeliest token of each row of ``logits`` ``[rows, vocab]`` and its logit, NaN where the row holds one."""
        highest, ids = logits.float().max(dim=-1)  # NaN is the maximum of a row that holds one; of equals the first is taken
        return list(zip(ids.tolist(), highest.tolist(), strict=True))

    def sample_row(self, logits: Tensor, row: SampleRow, likeliest: int, highest: float) -> Sampled:
        """Return the next token for one row of ``logits`` ``[vocab]``, given what ``likeliest`` said of it. Raises as ``sample``."""
        if not math.isfinite(highest):
            raise InternalError(f"logits of the row at position {row.position} have the maximum {highest}")
        if row.forced is not None and row.forced >= logits.numel():
            raise InternalError("the grammar forces a token that the model does not have")
        if row.forced is not None and row.params.logprobs is None:
            return Sampled(row.forced)
        if _is_plain(row.params) and row.forced is None and (row.allowed is None or _is_allowed(row.allowed, likeliest)):
            return Sampled(likeliest)
        return _sample_row(logits.float(), row, likeliest)


def noise(seed: int, position: int, size: int) -> NDArray[np.float64]:
    """Return ``size`` standard exponential variates, float64, a pure function of ``seed`` and ``position``.

    Philox4x64 (Salmon et al. 2011) keyed by (seed, position): its raw stream is the same in every version of NumPy.
    """
    raw = np.random.Philox(key=np.array([seed, position], dtype=np.uint64)).random_raw(size)
    uniform = ((raw >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53  # in (0, 1]
    return np.negative(np.log(uniform), dtype=np.float64)


def _is_allowed(allowed: NDArray[np.int32], token_id: int) -> bool:
    word = token_id >> 5
    return word < len(allowed) and bool(int(allowed[word]) >> (token_id & 31) & 1)


def _masked(scores: Tensor, allowed: NDArray[np.int32]) -> Tensor:
    """Return ``scores`` ``[vocab]``, on the CPU, with -inf for every token whose bit is not set. Raises InternalError if none is left."""
    bits = np.unpackbits(allowed.view(np.uint8), count=scores.numel(), bitorder="little")
    # NumPy, since torch would share out among its threads what takes one of them 20 microseconds.
    masked = scores.cpu().numpy().copy()
    np.copyto(masked, -np.inf, where=bits == 0)
    if not math.isfinite(masked.max()):
        raise InternalError("the grammar allows no token that the model has")
    return torch.from_numpy(masked)


def _is_plain(params: SamplingParams) -> bool:
    return params.temperature == 0.0 and params.repetition_penalty == 1.0 and params.logprobs is None


def _sample_row(logits: Tensor, row: SampleRow, likeliest: int) -> Sampled:
    params = row.params
    token_id = _choose(logits, row, likeliest) if row.forced is None else row.forced
    if params.logprobs is None:
        return Sampled(token_id)
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.topk(min(params.logprobs, logprobs.numel()))
    top = tuple(map(TokenLogprob, ids.tolist(), values.tolist()))
    return Sampled(token_id, TokenLogprob(token_id, float(logprobs[token_id])), top)


def _choose(logits: Tensor, row: SampleRow, likeliest: int) -> int:
    params = row.params
    scores = penalise(logits, row.seen, params.repetition_penalty)
    if row.allowed is not None:
        with row.masking:
            scores = _masked(scores, row.allowed)
    if params.temperature > 0.0:
        return _draw(scores, row)
    return likeliest if scores is logits else int(scores.max(dim=-1).indices)


def _draw(scores: Tensor, row: SampleRow) -> int:
    """Sample from the softmax of what the filters keep of ``scores`` ``[vocab]``.

    Exponential race, the Gumbel-max trick without its second logarithm: the token with the least e / p wins with probability p.
    """
    exponential = noise(row.seed, row.position, scores.numel())
    # Shifted so that a tiny temperature can't overflow to infinity, and never 0 in the scores' dtype, where 0 / 0 would be NaN.
    temperature = max(row.params.temperature, torch.finfo(scores.dtype).tiny)
    scores = ((scores - scores.max()) / temperature).cpu()
    ids = kept(scores, row.params)
    with np.errstate(divide="ignore"):  # e may be 0: that token wins
        race = scores[ids].double().numpy() - np.log(exponential[ids.numpy()])
    return int(ids[int(race.argmax())])


def penalise(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Return ``logits`` ``[vocab]`` with those of ``seen`` ids divided (positive) or multiplied (negative) by ``penalty``.

    Keskar et al. 2019 (CTRL), as in Hugging Face's RepetitionPenaltyLogitsProcessor.
    """
    if penalty == 1.0 or not seen:
        return logits
    ids = torch.as_tensor(seen, dtype=torch.long, device=logits.device)
    found = logits[ids]
    largest = torch.finfo(logits.dtype).max  # a penalty near 0 must not make infinities, whose differences are NaN
    return logits.index_copy(0, ids, torch.where(found < 0, found * penalty, (found / penalty).clamp(max=largest)))


def kept(scores: Tensor, params: SamplingParams) -> Tensor:
    """Return the ids, ascending, that top-k, top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024) keep, in this order.

    ``scores`` ``[vocab]`` are after temperature. Equals of the k-th score are all kept; the likeliest token always is.
    """
    ids = (scores > -torch.inf).nonzero().squeeze(-1)
    if 0 < params.top_k < ids.numel():
        ids = ids[scores[ids] >= scores[ids].topk(params.top_k).values[-1]]
    if params.top_p < 1.0:
        probabilities = scores[ids].softmax(dim=-1)
        # Together these weigh less than what is to be cut, so they needn't be sorted: nearly the whole vocabulary.
        rare = probabilities < min((1.0 - params.top_p) / ids.numel(), float(probabilities.max()))
        ascending, order = probabilities[~rare].sort(stable=True)
        below = probabilities[rare].sum() + ascending.cumsum(dim=-1) <= 1.0 - params.top_p
        below[-1] = False
        ids = ids[~rare][order[~below]].sort().values
    if params.min_p > 0.0:
        probabilities = scores[ids].softmax(dim=-1)
        ids = ids[probabilities >= params.min_p * probabilities.max()]
    return ids
