"""Plans and runs the attention of a step's single-token rows as one compiled call, where there is a kernel for it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.memory.recall.state import RecallState
from agentmem.memory.segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """One query, batch row ``row``, that sees rows ``start`` to ``stop`` of a segment; the result is part number ``slot``."""

    row: int
    segment: Segment
    start: int
    stop: int
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class Recalled:
    """One query, batch row ``row``, that sees what its state recalls in each layer; the result is part number ``slot``."""

    row: int
    state: RecallState
    slot: int


@functools.cache
def is_available(device: torch.device) -> bool:
    """Return whether single queries have a kernel of their own: on the CPU, where numba is installed."""
    return device.type == "cpu" and importlib.util.find_spec("numba") is not None


class DecodePlan:
    """The pieces of one step, one for each query and KV head, for every layer; made once a step, on the engine thread.

    Keeps addresses, not memory: between planning and the last layer nobody may grow or free the segments.
    """

    def __init__(self, singles: Sequence[Single], recalled: Sequence[Recalled], heads: int) -> None:
        first = singles[0].segment.k
        self._dtype = str(first.dtype).removeprefix("torch.")
        _, kv_heads, _, self._dim = first.shape
        group, item = heads // kv_heads, first.dtype.itemsize
        sources = [(s.segment.k, s.segment.v, s.start, s.stop - s.start) for s in singles]
        sources += [(r.state.k, r.state.v, 0, 0) for r in recalled]
        pieces = [(*source, head) for source in sources for head in range(kv_heads)]
        self._k = _int64([k.data_ptr() + (head * k.stride(1) + start * self._dim) * item for k, _, start, _, head in pieces])
        self._v = _int64([v.data_ptr() + (head * v.stride(1) + start * self._dim) * item for _, v, start, _, head in pieces])
        self._layer_bytes = _int64([k.stride(0) * item for k, _, _, _, _ in pieces])
        self._n_rows = _int64([count for _, _, _, count, _ in pieces])
        starts = range(len(singles) * kv_heads, len(pieces), kv_heads)
        self._recalled = [(slice(at, at + kv_heads), r.state) for r, at in zip(recalled, starts, strict=True)]
        queries: list[Single | Recalled] = [*singles, *recalled]
        self._row = np.repeat(_int64([query.row for query in queries]), kv_heads)
        self._slot = np.repeat(_int64([query.slot for query in queries]), kv_heads)
        self._head = _int64([head * group for *_, head in pieces])
        self._rows = torch.tensor([query.row for query in queries])
        self._query = np.repeat(np.arange(len(queries)), kv_heads) * heads + self._head
        self._out = np.empty((len(pieces), group, self._dim), np.float32)
        self._top = np.empty((len(pieces), group), np.float32)
        self._total = np.empty((len(pieces), group), np.float32)

    def run(self, layer: int, query: Tensor, outs: Tensor, lses: Tensor, scale: float) -> None:
        """Attend in one layer; what is recalled in it must have been refreshed. Weighted recall is left to others.

        query ``[heads, T, D]``, any float dtype; writes its rows of ``outs`` ``[slots, heads, T, D]`` and ``lses``
        ``[slots, heads, T]``, both fp32.
        """
        from agentmem.memory.decode_kernel import piece_kernel, place_pieces  # noqa: PLC0415 - numba is heavy, and optional

        kernel = piece_kernel(self._dtype, self._dim, self._out.shape[1])
        q: NDArray[np.float32] = (query.transpose(0, 1)[self._rows].float() * scale).reshape(-1, self._dim).numpy()
        for pieces, state in self._recalled:
            self._n_rows[pieces] = state.counts[layer] if state.bias is None else 0
        k = (self._k + layer * self._layer_bytes).view(np.uint64)
        v = (self._v + layer * self._layer_bytes).view(np.uint64)
        kernel(k, v, self._n_rows, self._query, q, self._out, self._top, self._total)
        place_pieces(self._slot, self._head, self._row, self._out, self._top, self._total, outs.numpy(), lses.numpy())


def _int64(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
