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

from agentmem.memory.segment import Segment


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """One query, batch row ``row``, that sees rows ``start`` to ``stop`` of a segment; the result is part number ``slot``."""

    row: int
    segment: Segment
    start: int
    stop: int
    slot: int


@functools.cache
def is_available(device: torch.device) -> bool:
    """Return whether single queries have a kernel of their own: on the CPU, where numba is installed."""
    return device.type == "cpu" and importlib.util.find_spec("numba") is not None


class DecodePlan:
    """The pieces of one step, one for each query and KV head, for every layer; made once a step, on the engine thread.

    Keeps addresses, not memory: between planning and the last layer nobody may grow or free the segments.
    """

    def __init__(self, singles: Sequence[Single], heads: int) -> None:
        first = singles[0].segment.k
        self._dtype = str(first.dtype).removeprefix("torch.")
        _, kv_heads, _, self._dim = first.shape
        group, item = heads // kv_heads, first.dtype.itemsize
        pieces = [(single, head) for single in singles for head in range(kv_heads)]
        offsets = np.array([head * s.segment.k.stride(1) + s.start * self._dim for s, head in pieces], np.int64) * item
        self._k = np.array([s.segment.k.data_ptr() for s, _ in pieces], np.int64) + offsets
        self._v = np.array([s.segment.v.data_ptr() for s, _ in pieces], np.int64) + offsets
        self._layer_bytes = np.array([s.segment.k.stride(0) * item for s, _ in pieces], np.int64)
        self._n_rows = np.array([s.stop - s.start for s, _ in pieces], np.int64)
        self._row = np.array([s.row for s, _ in pieces], np.int64)
        self._slot = np.array([s.slot for s, _ in pieces], np.int64)
        self._head = np.array([head * group for _, head in pieces], np.int64)
        self._rows = torch.tensor([single.row for single in singles])
        self._query = np.repeat(np.arange(len(singles)), kv_heads) * heads + self._head
        self._out = np.empty((len(pieces), group, self._dim), np.float32)
        self._top = np.empty((len(pieces), group), np.float32)
        self._total = np.empty((len(pieces), group), np.float32)

    def run(self, layer: int, query: Tensor, outs: Tensor, lses: Tensor, scale: float) -> None:
        """Attend in one layer.

        query ``[heads, T, D]``, any float dtype; writes its rows of ``outs`` ``[slots, heads, T, D]`` and ``lses``
        ``[slots, heads, T]``, both fp32.
        """
        from agentmem.memory.decode_kernel import piece_kernel, place_pieces  # noqa: PLC0415 - numba is heavy, and optional

        kernel = piece_kernel(self._dtype, self._dim, self._out.shape[1])
        q: NDArray[np.float32] = (query.transpose(0, 1)[self._rows].float() * scale).reshape(-1, self._dim).numpy()
        k = (self._k + layer * self._layer_bytes).view(np.uint64)
        v = (self._v + layer * self._layer_bytes).view(np.uint64)
        kernel(k, v, self._n_rows, self._query, q, self._out, self._top, self._total)
        place_pieces(self._slot, self._head, self._row, self._out, self._top, self._total, outs.numpy(), lses.numpy())
