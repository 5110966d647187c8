"""The host tier: the blocks read or written last, in memory, within a bound of bytes."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from agentmem.types import BlockHash


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised CPU tensor for K and V: page-locked where there is CUDA, so that copies overlap with the device's work."""
    return torch.empty(shape, dtype=dtype, pin_memory=torch.cuda.is_available())


class HostTier:
    """Least recently used blocks leave first. Not thread safe: the archive's lock guards it. 0 bytes turn it off."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self.num_evicted = 0  # dropped for want of room
        self._blocks: OrderedDict[BlockHash, tuple[Tensor, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def size_of(self, block_hash: BlockHash) -> int:
        """Return the bytes of the block here, 0 when it is not, without marking it as used."""
        return sum(tensor.nbytes for tensor in self._blocks.get(block_hash, ()))

    def get(self, block_hash: BlockHash) -> tuple[Tensor, Tensor] | None:
        """Return K and V and mark the block as used, None when it is not here."""
        if block_hash not in self._blocks:
            return None
        self._blocks.move_to_end(block_hash)
        return self._blocks[block_hash]

    def put(self, block_hash: BlockHash, k: Tensor, v: Tensor) -> None:
        """Keep K and V, CPU tensors nobody writes to, dropping older blocks for them. A block above the bound is not kept."""
        self.drop(block_hash)
        size = k.nbytes + v.nbytes
        if size > self.max_bytes:
            return
        while self.bytes_used + size > self.max_bytes:
            self.drop(next(iter(self._blocks)))
            self.num_evicted += 1
        self._blocks[block_hash] = (k, v)
        self.bytes_used += size

    def drop(self, block_hash: BlockHash) -> None:
        """Forget the block, if it is here."""
        gone = self._blocks.pop(block_hash, None)
        if gone is not None:
            self.bytes_used -= gone[0].nbytes + gone[1].nbytes

    def check_integrity(self) -> list[str]:
        """Return the broken rules: the count of bytes, and the bound."""
        real = sum(k.nbytes + v.nbytes for k, v in self._blocks.values())
        found = [] if real == self.bytes_used else [f"host tier counts {self.bytes_used} bytes and holds {real}"]
        return found if real <= self.max_bytes else [*found, f"host tier holds {real} bytes of {self.max_bytes}"]
