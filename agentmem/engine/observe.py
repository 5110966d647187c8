"""Looking at queries as they pass: what the sealing pass records for compressors, and what Recall measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Observer(Protocol):
    """Sees the queries of a run's observed tokens, layer by layer. Engine thread only."""

    def see(self, layer: int, positions: range, queries: Tensor, keys: Sequence[Tensor]) -> None:
        """Look at one layer of one step. Never keeps or writes to what it is given: copy.

        ``queries`` ``[heads, len(positions), head_dim]``, RoPE applied; ``keys`` the parts ``[kv_heads, N, head_dim]`` of all tokens up
        to and with these, in order of position.
        """
        ...


class QueryRecorder:
    """Keeps queries on the CPU in the model's dtype."""

    def __init__(self) -> None:
        self._seen: dict[int, list[Tensor]] = {}
        self._positions: list[int] = []

    def see(self, layer: int, positions: range, queries: Tensor, keys: Sequence[Tensor]) -> None:
        """Copy the queries."""
        if layer == 0:
            self._positions.extend(positions)
        self._seen.setdefault(layer, []).append(queries.detach().to("cpu", copy=True))

    @property
    def queries(self) -> Tensor:
        """``[layers, heads, n, head_dim]``, in the order in which they were seen."""
        return torch.stack([torch.cat(self._seen[layer], dim=1) for layer in sorted(self._seen)])

    @property
    def positions(self) -> Tensor:
        """Session positions of the queries, int64 ``[n]``."""
        return torch.tensor(self._positions, dtype=torch.long)
