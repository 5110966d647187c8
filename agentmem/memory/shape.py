"""The geometry of K and V."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVShape:
    """The geometry of a model's K and V; one row is one token over all layers."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def row_bytes(self) -> int:
        """Bytes of K and V of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def empty(self, rows: int) -> Tensor:
        """Return uninitialised memory ``[layers, kv_heads, rows, head_dim]``."""
        return torch.empty(self.layers, self.kv_heads, rows, self.head_dim, dtype=self.dtype, device=self.device)
