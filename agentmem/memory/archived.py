"""Rows of K and V that stay in the archive: read where they lie, block by block, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.stores.mapped import ArchiveFormat, MappedBlock

Source = tuple[NDArray[np.uint64], int, int]
"""What compiled code reads rows from: addresses ``[arrays, blocks]``, tokens of a block, KV heads (``archived_kernel.py``)."""

_STORED = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.float16: torch.uint16}


def _stored(tensor: Tensor) -> NDArray[np.generic]:
    """Return the memory of ``tensor``, its elements as compiled code sees them."""
    array: NDArray[np.generic] = tensor.view(_STORED[tensor.dtype]).numpy()
    return array


def _source(arrays: Sequence[Sequence[Tensor]], tokens: int, kv_heads: int) -> Source:
    return np.array([[tensor.data_ptr() for tensor in array] for array in arrays], np.uint64), tokens, kv_heads


class ArchivedRows:
    """Tokens 0 to ``length`` of one session. Any thread may read; holds its mappings until it is dropped.

    ``blocks`` are consecutive, of one format and one number of tokens; NATIVE ones hold ``dtype``. Quantised rows are dequantised on
    reading: code * scale + zero in fp32, rounded to ``dtype``. Raises ValueError for blocks that do not fit together.
    """

    def __init__(self, blocks: Sequence[MappedBlock], length: int, dtype: torch.dtype) -> None:
        from agentmem.memory import archived_kernel  # noqa: PLC0415 - numba is heavy, and sessions that attend to all need none of it

        first = blocks[0]
        self.length = length
        self.dtype = dtype
        self.format = first.format
        self.layers, self.kv_heads, tokens, packed = first.k.shape
        self.head_dim = packed * 2 if first.format is ArchiveFormat.INT4 else packed
        if any(block.format is not first.format or block.k.shape != first.k.shape for block in blocks):
            raise ValueError("archived blocks differ in format or shape")
        if not 0 < length <= tokens * len(blocks):
            raise ValueError(f"{len(blocks)} blocks of {tokens} tokens do not hold {length}")
        if first.format is ArchiveFormat.NATIVE and first.k.dtype is not dtype:
            raise ValueError(f"archived blocks hold {first.k.dtype}, not {dtype}")
        self._blocks = tuple(blocks)
        scales = list(zip(*(block.scales for block in blocks), strict=True))
        self.k = _source([[block.k for block in blocks], *scales[:2]], tokens, self.kv_heads)
        self.v = _source([[block.v for block in blocks], *scales[2:]], tokens, self.kv_heads)
        kind = (self.format, str(dtype).removeprefix("torch."), self.head_dim)
        self.kind = kind  # what compiled code that reads these rows depends on
        self._copy_k = archived_kernel.layer_copier(*kind, keys=True)
        self._copy_v = archived_kernel.layer_copier(*kind, keys=False)
        self._gather = archived_kernel.row_gatherer(*kind)

    def keys(self, layer: int) -> Tensor:
        """Return K of one layer, ``[kv_heads, length, head_dim]`` contiguous, in the model's dtype: a copy, for one call's use."""
        out = torch.empty(self.kv_heads, self.length, self.head_dim, dtype=self.dtype)
        self._copy_k(self.k, layer, _stored(out))
        return out

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return K and V of one layer, ``[kv_heads, length, head_dim]`` contiguous, in the model's dtype: a copy, for one call's use."""
        v = torch.empty(self.kv_heads, self.length, self.head_dim, dtype=self.dtype)
        self._copy_v(self.v, layer, _stored(v))
        return self.keys(layer), v

    def gather(self, layer: int, ids: NDArray[np.int32], counts: NDArray[np.int64], out_k: Tensor, out_v: Tensor) -> None:
        """Copy single rows of one layer to the front of ``out_k`` and ``out_v`` ``[kv_heads, n, head_dim]``, model's dtype, on the CPU.

        Of KV head h the rows of ``ids[h, :counts[h]]``, positions below ``length`` (not checked).
        """
        self._gather(self.k, self.v, layer, ids, counts, _stored(out_k), _stored(out_v))
