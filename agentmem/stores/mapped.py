"""Block files mapped into memory, so that a session can read single rows of its archive without holding it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from io import BufferedReader
from weakref import WeakValueDictionary

from torch import Tensor

from agentmem.stores.blocks import BlockFiles
from agentmem.stores.durable import map_file
from agentmem.stores.format import corrupt, locate, verify, views
from agentmem.stores.quantise import dequantise
from agentmem.stores.records import DTYPES, ArchiveFormat, BlockHeader
from agentmem.types import BlockHash, Tier

__all__ = ["ArchiveFormat", "MappedBlock", "MappedBlocks", "native"]

_ALIGNMENT = 8  # where safetensors puts the payload
_MAX_VERIFIED = 1_000_000  # files remembered as sound, a few hundred bytes each


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class MappedBlock:
    """One verified block file, mapped. Never write to its tensors.

    NATIVE: ``k`` and ``v`` ``[layers, kv_heads, tokens, head_dim]`` in the model's dtype, contiguous, ``scales`` empty.

    INT8, INT4: uint8 codes of that shape (INT4: two in a byte, so ``head_dim / 2``, the even channel in the low four bits), and ``scales``
    = (k_scale, k_zero, v_scale, v_zero), fp16: K's ``[layers, kv_heads, tokens / 32, head_dim]``, V's ``[layers, kv_heads, tokens,
    head_dim / 32]``, rounded up; value = code * scale + zero. ``tier`` says whether rows lie in host memory or are read from the disk.
    """

    hash: BlockHash
    format: ArchiveFormat
    k: Tensor
    v: Tensor
    scales: tuple[Tensor, ...] = ()
    tier: Tier = Tier.DISK

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in (self.k, self.v, *self.scales))


def native(block: MappedBlock, dtype: str) -> tuple[Tensor, Tensor]:
    """Return K and V ``[layers, kv_heads, tokens, head_dim]`` in ``dtype`` (torch's name): the block's own where it is NATIVE."""
    if block.format is ArchiveFormat.NATIVE:
        return block.k, block.v
    return dequantise((block.k, block.v), block.scales, block.format.bits, DTYPES[dtype])


class MappedBlocks:
    """Maps block files, each once while anybody uses it. Thread safe.

    A file is read through and verified at its first mapping and again when it is another file (device, inode, time, size). The mapping is
    private: nothing written to a tensor reaches the file. A file that is deleted while it is mapped stays readable. Block files are only
    ever replaced or deleted; one that somebody cut in place would end a reader with SIGBUS. It takes no file descriptor per block.
    """

    def __init__(self, files: BlockFiles, header: BlockHeader, archive_format: ArchiveFormat = ArchiveFormat.NATIVE) -> None:
        self._files = files
        self._header = header
        self._format = archive_format
        self._lock = threading.Lock()
        self._verified: dict[BlockHash, tuple[int, ...]] = {}
        self._mapped: WeakValueDictionary[tuple[BlockHash, tuple[int, ...]], MappedBlock] = WeakValueDictionary()

    @property
    def bytes_mapped(self) -> int:
        """Bytes of the blocks that somebody uses now. They are the page cache's, not the process's own."""
        with self._lock:
            return sum(block.nbytes for block in self._mapped.values())

    def map(self, block_hash: BlockHash, first_token: int) -> MappedBlock:
        """Return the block that starts at session position ``first_token``.

        Raises BlockUnavailable as ``BlockFiles.read``: MISSING, CORRUPT, MODEL_CHANGED; a file that is not what it should be is set aside.
        """
        expected = replace(self._header, first_token=first_token)
        return self._files.examine(self._files.path(block_hash), lambda file, status: self._map(file, status, block_hash, expected))

    def _map(self, file: BufferedReader, status: os.stat_result, block_hash: BlockHash, expected: BlockHeader) -> MappedBlock:
        identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, expected.first_token)
        with self._lock:
            shared = self._mapped.get((block_hash, identity))
            verified = self._verified.get(block_hash) == identity
        if shared is not None:
            return shared
        start, checksum = locate(file, status.st_size, block_hash, expected, self._format)
        payload = map_file(file.fileno(), status.st_size)[start:]
        if start % _ALIGNMENT:  # a sound file, but not of our writing: it cannot be read in place
            raise corrupt(f"its tensors start at byte {start}, which is no multiple of {_ALIGNMENT}")
        if not verified:
            verify(payload, checksum)
        tensors = views(payload, expected, self._format)
        block = MappedBlock(block_hash, self._format, tensors.pop("k"), tensors.pop("v"), tuple(tensors.values()))
        with self._lock:
            if len(self._verified) >= _MAX_VERIFIED:
                self._verified.clear()
            self._verified[block_hash] = identity
            return self._mapped.setdefault((block_hash, identity), block)
