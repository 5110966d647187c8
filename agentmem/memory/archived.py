"""Rows of K and V that stay in the archive: read where they lie, block by block, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from agentmem.stores.mapped import MappedBlock


class ArchivedRows:
    """Tokens 0 to ``length`` of one session. Any thread may read; holds its mappings until it is dropped."""

    def __init__(self, blocks: Sequence[MappedBlock], length: int, dtype: object) -> None:
        raise NotImplementedError

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return K and V of one layer, ``[kv_heads, length, head_dim]`` contiguous, in the model's dtype: a copy, for one call's use."""
        raise NotImplementedError
