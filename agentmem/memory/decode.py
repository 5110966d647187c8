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

    The pieces of a row of the batch are merged; the result is part number the row's lowest ``slot``. Keeps addresses, not memory: between
    planning and the last layer nobody may grow or free the segments.
    """

    def __init__(self, singles: Sequence[Single], recalled: Sequence[Recalled], heads: int) -> None:
        first = singles[0].segment.k
        self._dtype = str(first.dtype).removeprefix("torch.")
        _, kv_heads, _, self._dim = first.shape
        group, item = heads // kv_heads, first.dtype.itemsize
        everyone: list[Single | Recalled] = [*singles, *recalled]
        queries = sorted(everyone, key=lambda query: (query.row, query.slot))
        sources = [(q.segment.k, q.segment.v, q.start, q.stop) if isinstance(q, Single) else (q.state.k, q.state.v, 0, 0) for q in queries]
        pieces = [(*source, head) for source in sources for head in range(kv_heads)]
        self._k = _int64([k.data_ptr() + (head * k.stride(1) + start * self._dim) * item for k, _, start, _, head in pieces])
        self._v = _int64([v.data_ptr() + (head * v.stride(1) + start * self._dim) * item for _, v, start, _, head in pieces])
        self._layer_bytes = _int64([k.stride(0) * item for k, _, _, _, _ in pieces])
        self._n_rows = _int64([stop - start for _, _, start, stop, _ in pieces])
        self._recalled = [(slice(at * kv_heads, (at + 1) * kv_heads), q.state) for at, q in enumerate(queries) if isinstance(q, Recalled)]
        rows, bounds = np.unique(_int64([query.row for query in queries]), return_index=True)
        self._slots = _int64([queries[at].slot for at in bounds])
        self._bounds = np.append(bounds, len(queries)).astype(np.int64)
        self._rows = rows
        number = np.repeat(np.arange(len(rows)), np.diff(self._bounds))
        self._query = (number[:, None] * heads + np.arange(0, heads, group)).ravel()
        self._out = np.empty((len(pieces), group, self._dim), np.float32)
        self._top = np.empty((len(pieces), group), np.float32)
        self._total = np.empty((len(pieces), group), np.float32)

    def run(self, layer: int, query: Tensor, outs: Tensor, lses: Tensor, scale: float) -> None:
        """Attend in one layer; what is recalled in it must have been refreshed.

        query ``[heads, T, D]``, any float dtype; writes its rows of ``outs`` ``[slots, heads, T, D]`` and ``lses``
        ``[slots, heads, T]``, both fp32.
        """
        from agentmem.memory.decode_kernel import merge_pieces, piece_kernel  # noqa: PLC0415 - numba is heavy, and optional

        kernel = piece_kernel(self._dtype, self._dim, self._out.shape[1])
        own = query if len(self._rows) == query.shape[1] else query[:, torch.from_numpy(self._rows)]
        q: NDArray[np.float32] = (own.transpose(0, 1).float() * scale).reshape(-1, self._dim).numpy()
        for pieces, state in self._recalled:
            self._n_rows[pieces] = state.counts[layer]
        k = (self._k + layer * self._layer_bytes).view(np.uint64)
        v = (self._v + layer * self._layer_bytes).view(np.uint64)
        kernel(k, v, self._n_rows, self._query, q, self._out, self._top, self._total)
        merge_pieces(self._bounds, self._slots, self._rows, self._out, self._top, self._total, outs.numpy(), lses.numpy())


def _int64(values: list[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
