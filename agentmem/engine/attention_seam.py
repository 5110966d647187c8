"""The function that transformers calls instead of its own attention.

Registered under our own name; the step's batch travels as the keyword ``step``, so nothing is global and several engines
can live in one process. Keys arrive with their RoPE phase already applied and are stored so (invariant 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from agentmem.engine.batch import StepBatch
from agentmem.engine.plan import Rows, Slice
from agentmem.errors import UnsupportedModel
from agentmem.memory.attention import AttendFn, attend_recalled, attend_window, choose_backend, merge
from agentmem.memory.decode import DecodePlan, Recalled, is_available

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
    _observe(step, layer, query[0])
    if sliding_window is not None and step.cut_by(sliding_window):
        out = _attend_windows(step, layer, query[0], sliding_window, scale)
    else:
        out = _attend_parts(step, layer, query[0], choose_backend(query.device, query.dtype), scale)
    return out.transpose(0, 1)[None], None


def _write(step: StepBatch, layer: int, key: Tensor, value: Tensor) -> None:
    for item in step.slices:
        if item.target is not None:
            segment, row = item.target.segment, item.target.row
            stop = row + item.stop - item.start
            segment.k[layer, :, row:stop] = key[:, item.start : item.stop]
            segment.v[layer, :, row:stop] = value[:, item.start : item.stop]


def _observe(step: StepBatch, layer: int, query: Tensor) -> None:
    for item in step.slices:
        if item.observer is not None:
            keys = [part.rows(layer, part.start, part.stop)[0].to(query.device) for part in item.view.parts]
            positions = range(item.position, item.position + item.stop - item.start)
            item.observer.see(layer, positions, query[:, item.start : item.stop], keys)


@dataclass(frozen=True, slots=True, eq=False)
class _Results:
    """What the parts of a layer yield: ``outs`` ``[slots, heads, T, D]``, ``lses`` ``[slots, heads, T]``, -inf where a part is empty."""

    outs: Tensor
    lses: Tensor

    def put(self, slot: int, rows: Rows, out: Tensor, lse: Tensor) -> None:
        """Place the result of some rows of the batch."""
        self.outs[slot, :, rows] = out.to(self.outs.dtype)
        self.lses[slot, :, rows] = lse


def _attend_parts(step: StepBatch, layer: int, query: Tensor, attend: AttendFn, scale: float) -> Tensor:
    """Run the plan's calls and merge their parts; ``[heads, T, D]`` in and out."""
    heads, n_rows, dim = query.shape
    plan = step.plan(layer)
    compiled = bool(plan.singles) and is_available(query.device)
    for recalled in plan.recalls:
        recalled.state.refresh(layer, query[:, recalled.row].float().cpu().numpy())
    weighted = [recalled for recalled in plan.recalls if recalled.state.bias is not None or not compiled]  # no kernel weighs
    direct = plan.n_slots == 1 or (compiled and not weighted and not plan.calls)  # the kernel merges what it attends to
    n_slots = 1 if direct else plan.n_slots
    dtype = query.dtype if direct and not compiled else torch.float32
    results = _Results(
        torch.zeros((n_slots, heads, n_rows, dim), dtype=dtype, device=query.device),
        torch.full((n_slots, heads, n_rows), float("-inf"), dtype=torch.float32, device=query.device),
    )
    for recalled in weighted:
        _attend_recalled(recalled, layer, query, results, scale)
    if compiled:
        plan.decode = plan.decode or DecodePlan(plan.singles, [recalled for recalled in plan.recalls if recalled not in weighted], heads)
        plan.decode.run(layer, query, results.outs, results.lses, scale)
    for call in plan.calls if compiled else plan.every_call():
        keys, values = call.part.rows(layer, call.part.start, call.part.stop)
        results.put(call.slot, call.rows, *attend(query[:, call.rows], keys.to(query.device), values.to(query.device), call.causal, scale))
    return (results.outs[0] if direct else merge(results.outs, results.lses)).to(query.dtype)


def _attend_recalled(recalled: Recalled, layer: int, query: Tensor, results: _Results, scale: float) -> None:
    """Attend to what one session recalls in a layer, where no kernel does."""
    state, rows = recalled.state, slice(recalled.row, recalled.row + 1)
    bias = None if state.bias is None else torch.from_numpy(state.bias[layer]).to(query.device)
    counts = torch.from_numpy(state.counts[layer]).to(query.device)
    out, lse = attend_recalled(query[:, recalled.row], state.k[layer], state.v[layer], counts, bias=bias, scale=scale)
    results.put(recalled.slot, rows, out[:, None], lse[:, None])


def _attend_windows(step: StepBatch, layer: int, query: Tensor, window: int, scale: float) -> Tensor:
    """Attend session by session to the rows that the window leaves visible; ``[heads, T, D]`` in and out."""
    out = torch.empty_like(query)
    for item in step.slices:
        lowest = max(0, item.position - window + 1)
        keys, values = _gather(item, layer, lowest)
        rows = slice(item.start, item.stop)
        offset = keys.shape[1] - item.stop + item.start  # where there are holes, less than the positions say
        out[:, rows] = attend_window(query[:, rows], keys, values, offset=offset, window=window, scale=scale)
    return out


def _gather(item: Slice, layer: int, lowest: int) -> tuple[Tensor, Tensor]:
    """Return K and V of one session from position ``lowest`` on, ``[kv_heads, N, D]``."""
    keys, values = [], []
    for part in item.view.parts:
        start = max(part.start, lowest - part.base)
        if start < part.stop:
            k, v = part.rows(layer, start, part.stop)
            keys.append(k)
            values.append(v)
    if len(keys) == 1:
        return keys[0], values[0]
    device = keys[-1].device
    return torch.cat([k.to(device) for k in keys], dim=1), torch.cat([v.to(device) for v in values], dim=1)
