"""From scores to index lists: what stays resident of a segment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from agentmem.compression.recipe import SINKS
from agentmem.errors import InvalidInput


def select(scores: Tensor, keep: float, *, start: int, protect: int, beside: int = 0) -> Tensor:
    """Return the session positions that stay, int32 ``[layers, kv_heads, kept]``, ascending, the same number in every head.

    ``scores`` ``[layers, kv_heads, tokens]``, any float dtype, of the tokens from session position ``start`` on. The session's first
    ``protect`` tokens (at least SINKS) that lie in the segment always stay; of the rest the share ``keep`` with the highest scores,
    rounded up. Of that share, ``beside`` tokens stay resident elsewhere (the recent window), up to half of it. Of equal scores the earlier
    token stays. Does not write to ``scores``; the result is on its device.

    Raises InvalidInput for a share outside (0, 1], negative positions, scores that are not finite or have another shape.
    """
    _check(scores, keep, start, protect)
    tokens = scores.shape[2]
    fixed = min(tokens, max(0, max(protect, SINKS) - start))
    rest = tokens - fixed
    # A share such as 0.07 of 100 comes out a hair above 7 in floating point, which must not become 8.
    share = math.ceil(keep * rest - 1e-9)
    kept = min(rest, max(1, share - min(beside, share // 2))) if keep < 1 else rest
    best = scores[:, :, fixed:].sort(dim=-1, descending=True, stable=True).indices[:, :, :kept] + fixed
    leading = torch.arange(fixed, device=scores.device).expand(*scores.shape[:2], fixed)
    return (torch.cat([leading, best.sort(dim=-1).values], dim=-1) + start).to(torch.int32)


def _check(scores: Tensor, keep: float, start: int, protect: int) -> None:
    if not 0.0 < keep <= 1.0:
        raise InvalidInput(f"keep is {keep}; allowed: above 0, up to 1 (everything stays)")
    if start < 0 or protect < 0:
        raise InvalidInput(f"start is {start} and protect {protect}; allowed: 0 or more")
    if scores.ndim != 3 or 0 in scores.shape or not scores.is_floating_point():
        raise InvalidInput(f"scores are {scores.dtype} {list(scores.shape)}; needed: floats [layers, kv_heads, tokens], 1 or more in each")
    if not bool(scores.isfinite().all()):
        raise InvalidInput("scores are not all finite")
