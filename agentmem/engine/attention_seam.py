"""The function that transformers calls instead of its own attention.

Registered under our own name; the step's batch travels as the keyword ``step``, so nothing is global and several engines
can live in one process. Keys arrive with their RoPE phase already applied and are stored so (invariant 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from agentmem.engine.batch import Slice, StepBatch
from agentmem.errors import UnsupportedModel
from agentmem.memory.attention import AttendFn, attend_window, choose_backend, merge
from agentmem.memory.decode import DecodePlan, is_available

NAME = "agentmem"
REFUSED = ("softcap", "s_aux", "position_bias", "alibi")  # keyword arguments that would change what attention computes


def register() -> None:
    """Make ``attn_implementation="agentmem"`` known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, attention)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - part of transformers' signature; masks follow from the plan
    *,
    step: StepBatch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,  # noqa: ANN401 - whatever transformers passes on
) -> tuple[Tensor, None]:
    """Write this step's K and V of one layer and attend to each session's view.

    query ``[1, heads, T, D]``, key and value ``[1, kv_heads, T, D]``; returns ``[1, T, heads, D]``. Raises UnsupportedModel for a
    keyword that would change what attention computes.
    """
    for name in REFUSED:
        if kwargs.get(name) is not None:
            raise UnsupportedModel(f"attention argument {name!r} is not supported by the attention seam")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    _write(step, layer, key[0], value[0])
    if sliding_window is not None and step.cut_by(sliding_window):
        out = _attend_windows(step, layer, query[0], sliding_window, scale)
    else:
        out = _attend_parts(step, layer, query[0], choose_backend(query.device, query.dtype), scale)
    return out.transpose(0, 1)[None], None


def _write(step: StepBatch, layer: int, key: Tensor, value: Tensor) -> None:
    for item in step.slices:
        stop = item.row + item.stop - item.start
        item.segment.k[layer, :, item.row : stop] = key[:, item.start : item.stop]
        item.segment.v[layer, :, item.row : stop] = value[:, item.start : item.stop]


def _attend_parts(step: StepBatch, layer: int, query: Tensor, attend: AttendFn, scale: float) -> Tensor:
    """Run the plan's calls and merge their parts; ``[heads, T, D]`` in and out."""
    heads, n_rows, dim = query.shape
    compiled = bool(step.singles) and is_available(query.device)
    direct = step.n_slots == 1
    outs = torch.zeros(
        (step.n_slots, heads, n_rows, dim), dtype=query.dtype if direct and not compiled else torch.float32, device=query.device
    )
    lses = torch.full((step.n_slots, heads, n_rows), float("-inf"), dtype=torch.float32, device=query.device)
    calls = step.calls if compiled else step.every_call()
    if compiled:
        step.decode = step.decode or DecodePlan(step.singles, heads)
        step.decode.run(layer, query, outs, lses, scale)
    for call in calls:
        keys = call.segment.k[layer, :, call.start : call.stop]
        values = call.segment.v[layer, :, call.start : call.stop]
        out, lse = attend(query[:, call.rows], keys, values, call.causal, scale)
        outs[call.slot, :, call.rows] = out.to(outs.dtype)
        if not direct:
            lses[call.slot, :, call.rows] = lse
    return (outs[0] if direct else merge(outs, lses)).to(query.dtype)


def _attend_windows(step: StepBatch, layer: int, query: Tensor, window: int, scale: float) -> Tensor:
    """Attend session by session to the rows that the window leaves visible; ``[heads, T, D]`` in and out."""
    out = torch.empty_like(query)
    for item in step.slices:
        lowest = max(0, item.position - window + 1)
        keys, values = _gather(item, layer, lowest)
        rows = slice(item.start, item.stop)
        out[:, rows] = attend_window(query[:, rows], keys, values, offset=item.position - lowest, window=window, scale=scale)
    return out


def _gather(item: Slice, layer: int, lowest: int) -> tuple[Tensor, Tensor]:
    """Return K and V of one session from position ``lowest`` on, ``[kv_heads, N, D]``."""
    keys, values = [], []
    for span in item.spans:
        start = max(span.start, lowest - span.segment.base)
        if start < span.stop:
            keys.append(span.segment.k[layer, :, start : span.stop])
            values.append(span.segment.v[layer, :, start : span.stop])
    if len(keys) == 1:
        return keys[0], values[0]
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)
