"""From a weight for each token to spans of text that a person can read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from agentmem.chat import Chat
from agentmem.views import RecalledSpan

SMOOTH_TOKENS = 8  # peaks are those of the mean over so many tokens
MAX_TOKENS = 24  # of a span, before it is extended to whole words
MAX_WORD = 16  # tokens; what has no end within so many is not split into words
SPARE = 16  # spans beyond those asked for that are looked at: a lower peak may be broader
EDGE = 0.5  # a span reaches as far as the smoothed weight is above this share of its peak


@dataclass(frozen=True, slots=True)
class Memory:
    """All tokens of a session, and how many of them each turn has."""

    tokens: Sequence[int]
    turn_lengths: Sequence[int]


def spans_of(memory: Memory, weights: Tensor, chat: Chat, k: int) -> list[RecalledSpan]:
    """Return the ``k`` heaviest of the spans around the highest peaks of ``weights``, fp32 ``[tokens]``; a span's weight is its sum.

    No token is in two spans, and no span reaches beyond a turn or over a special token. Spans without visible text are left out.
    """
    ends = list(accumulate(memory.turn_lengths))
    taken = torch.tensor([token in chat.special_token_ids for token in memory.tokens], dtype=torch.bool)
    found: list[RecalledSpan] = []
    while len(found) < k + SPARE:
        level = _smooth(weights.masked_fill(taken, 0.0)).masked_fill(taken, 0.0)
        peak = int(level.argmax())
        if level[peak] <= 0:
            break
        turn = bisect_right(ends, peak)
        bounds = range(ends[turn] - memory.turn_lengths[turn], ends[turn])
        span, text = _whole_words(_around(level, peak, bounds), _free(taken, peak, bounds), memory.tokens, chat)
        taken[span.start : span.stop] = True
        if text.strip():
            weight = float(weights[span.start : span.stop].sum())
            found.append(RecalledSpan(turn, span.start, len(span), text.strip(), min(1.0, weight)))
    return sorted(found, key=lambda span: -span.weight)[:k]


def _smooth(weights: Tensor) -> Tensor:
    """Return the mean over SMOOTH_TOKENS around each token."""
    total = torch.cat([torch.zeros(1, dtype=torch.float64), weights.double().cumsum(0)])
    at = torch.arange(len(weights))
    first, last = (at - SMOOTH_TOKENS // 2).clamp_min(0), (at + SMOOTH_TOKENS // 2).clamp_max(len(weights))
    return ((total[last] - total[first]) / SMOOTH_TOKENS).clamp_min(0.0)


def _around(level: Tensor, peak: int, bounds: range) -> range:
    """Return the tokens around ``peak``, within ``bounds``, that are high enough: towards the higher side first."""
    start, stop, least = peak, peak + 1, max(float(level[peak]) * EDGE, 1e-12)
    while stop - start < MAX_TOKENS:
        left = float(level[start - 1]) if start > bounds.start else 0.0
        right = float(level[stop]) if stop < bounds.stop else 0.0
        if max(left, right) < least:
            break
        start, stop = (start - 1, stop) if left >= right else (start, stop + 1)
    return range(start, stop)


def _free(taken: Tensor, at: int, bounds: range) -> range:
    """Return the tokens around ``at``, within ``bounds``, up to the next that is taken."""
    before = torch.nonzero(taken[bounds.start : at])
    after = torch.nonzero(taken[at : bounds.stop])
    start = bounds.start + int(before[-1]) + 1 if len(before) else bounds.start
    return range(start, at + int(after[0]) if len(after) else bounds.stop)


def _whole_words(span: range, free: range, tokens: Sequence[int], chat: Chat) -> tuple[range, str]:
    """Return ``span`` extended to whole words within ``free``, and its text."""
    low, high = max(free.start, span.start - MAX_WORD), min(free.stop, span.stop + MAX_WORD)
    detokenizer = chat.detokenizer()
    pieces = [detokenizer.push(token) for token in tokens[low:high]]
    pieces[-1] += detokenizer.finish()

    def is_boundary(at: int) -> bool:
        if low < at < high:
            return pieces[at - low][:1].isspace() or pieces[at - low - 1][-1:].isspace()
        return at in (free.start, free.stop)

    start = next((at for at in range(span.start, low - 1, -1) if is_boundary(at)), span.start)
    stop = next((at for at in range(span.stop, high + 1) if is_boundary(at)), span.stop)
    return range(start, stop), "".join(pieces[start - low : stop - low])
