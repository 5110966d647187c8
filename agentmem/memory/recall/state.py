"""What one run has recalled: the rows that its decode steps attend to beside residents and tail, and when they are searched again."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from agentmem.memory.archived import ArchivedRows
from agentmem.memory.recall.port import Found, Recaller
from agentmem.memory.recall.rank_kernel import turn_away
from agentmem.memory.shape import KVShape

# Lowest cosine, over the heads of a group, between the query that chose a layer's rows and the one that reuses them. From one token to the
# next it is 0.6 in the median (SmolLM2, code). Planted facts, searched again by the lowest of all heads: KL 0.07 at 0.5, 0.005 at 0.8.
TURN_AWAY = 0.8


class RecallState:
    """The recalled rows of every layer. Engine thread only; one per run.

    ``k`` and ``v`` ``[layers, kv_heads, n, head_dim]`` on the model's device, n = ``limit`` or, if less, all archived tokens: of KV head h
    of layer l the first ``counts[l, h]`` rows count. ``bias`` fp32 ``[layers, heads, n]`` is added to the scaled scores of these rows; None
    until a method gives one. Counters, of KV heads in layers and steps: ``searches``, ``turned_away`` (those that a query forced),
    ``reuses``, and ``tokens_read`` (rows of K and V).

    Another device gets its rows through ``staged`` memory of the host, pinned, without waiting: a layer's part of it is written again in a
    later step, when the device has long read it, since a step ends by reading its logits.
    """

    def __init__(  # noqa: PLR0917 - a session's recaller and rows, the model's geometry, the policy's numbers
        self, recaller: Recaller, rows: ArchivedRows, shape: KVShape, heads: int, limit: int, stride: int, *, staged: bool | None = None
    ) -> None:
        n = min(limit, rows.length)
        self._recaller = recaller
        self._rows = rows
        self._stride = stride
        self._step = 0
        self.k, self.v = shape.empty(n), shape.empty(n)
        self._host_k, self._host_v = self.k, self.v
        if shape.device.type != "cpu" if staged is None else staged:
            pinned = shape.device.type == "cuda"
            self._host_k, self._host_v = (torch.empty(self.k.shape, dtype=shape.dtype, pin_memory=pinned) for _ in range(2))
        self._host = list(zip(self._host_k.unbind(), self._host_v.unbind(), strict=True))
        self.counts: NDArray[np.int64] = np.zeros((shape.layers, shape.kv_heads), np.int64)
        self.bias: NDArray[np.float32] | None = None
        self._chose: NDArray[np.float32] = np.zeros((shape.layers, heads, shape.head_dim), np.float32)
        self._found: list[Found | None] = [None] * shape.layers
        self.searches = self.reuses = self.turned_away = self.tokens_read = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, on the device and staged."""
        own = [self.k, self.v] if self._host_k is self.k else [self.k, self.v, self._host_k, self._host_v]
        return sum(tensor.nbytes for tensor in own)

    def begin_step(self) -> None:
        """Count a decode step."""
        self._step += 1

    def refresh(self, layer: int, query: NDArray[np.float32]) -> None:
        """Make the layer's rows fit for ``query`` ``[heads, head_dim]`` (RoPE applied, not scaled, contiguous).

        They are searched when there are none, every ``stride`` steps, another part of the layers at a time, and for a KV
        head whose queries have turned away from those that searched last. Else they are chosen anew from what that search was about.
        """
        last, n, kv_heads = self._found[layer], self.k.shape[2], self.k.shape[1]
        if last is None or (self._step + layer) % self._stride == 0:
            found, searched = self._recaller.find(layer, query, n), kv_heads
            self._chose[layer] = query
        else:
            away = np.empty(kv_heads, np.bool_)
            searched = turn_away(query, self._chose[layer], TURN_AWAY, away)
            found = self._recaller.again(layer, query, n, last, away)
            self.turned_away += searched
        self.searches += searched
        self.reuses += kv_heads - searched
        self._found[layer] = found
        self._gather(layer, found)

    def _gather(self, layer: int, found: Found) -> None:
        """Bring the rows of what was found."""
        self._rows.gather(layer, found.ids, found.counts, self._host_k[layer], self._host_v[layer])
        if self._host_k is not self.k:
            for host, device in ((self._host_k, self.k), (self._host_v, self.v)):
                device[layer].copy_(host[layer], non_blocking=True)
        self.counts[layer] = found.counts
        if found.bias is not None:
            if self.bias is None:
                self.bias = np.zeros((len(self.counts), *found.bias.shape), np.float32)
            self.bias[layer] = found.bias
        self.tokens_read += int(found.counts.sum())
