"""What sealing reads and leaves behind: blocks of the archive, and results beside them, shared by server and worker processes.

A result is a pure cache, named by everything that it depends on: a missing, damaged or foreign one is made again. Its file is
``<block's hash>.<name>.safetensors``; it goes when its block's file goes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.durable import map_file
from agentmem.stores.format import CODES, bytes_of, checksum_of, corrupt, read_header
from agentmem.stores.mapped import MappedBlocks, native
from agentmem.stores.records import ArchiveFormat, BlockHeader, BlockUnavailable
from agentmem.types import BlockHash, MissReason

Shape = tuple[torch.dtype, tuple[int | None, ...]]
_FORMAT_VERSION = "1"
_DTYPES = {code: dtype for dtype, code in CODES.items()}


class SealFiles:
    """Blocks to read and results to read and write below ``root``, the directory of block files. Thread safe; processes may share it.

    A worker gives no ``files``; the server gives its own, so that results count in the quota of its archive.
    """

    def __init__(self, root: Path, header: BlockHeader, archive_format: ArchiveFormat, *, files: BlockFiles | None = None) -> None:
        self._files = files or BlockFiles(root, quarantine=root.parent / "quarantine")
        self._header = header
        self._mapped = MappedBlocks(self._files, header, archive_format)

    def block(self, block_hash: BlockHash, first_token: int) -> tuple[Tensor, Tensor]:
        """Return K and V ``[layers, kv_heads, tokens, head_dim]`` in the model's dtype. Never write to them.

        Mapped where the archive is NATIVE, dequantised copies where it is not. Raises BlockUnavailable as ``MappedBlocks.map``.
        """
        return native(self._mapped.map(block_hash, first_token), self._header.dtype)

    def exists(self, block_hash: BlockHash, name: str) -> bool:
        """Return whether there is a result, sound or not. Raises InvalidInput unless ``name`` is 32 hex digits."""
        return self._files.exists(block_hash, name)

    def write(self, block_hash: BlockHash, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a result, durable on return; a sound one that exists is kept. ``tensors``: float, int32 or uint8, on any device.

        Raises OSError when the disk refuses: then nothing is visible. Raises BlockUnavailable(MISSING) when the block was deleted
        meanwhile, InvalidInput for another dtype.
        """
        unknown = [f"{key} {tensor.dtype}" for key, tensor in tensors.items() if tensor.dtype not in CODES]
        if unknown:
            raise InvalidInput(f"a result holds {', '.join(unknown)}; allowed: {', '.join(map(str, CODES))}")
        if not self._files.exists(block_hash):
            raise BlockUnavailable(MissReason.MISSING, f"block {block_hash.hex()} has no file that a result could stand beside")
        if not self._is_sound(block_hash, name, tensors):
            self._files.write_result(block_hash, name, self._encode(block_hash, name, tensors))

    def read(self, block_hash: BlockHash, name: str, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Return the tensors of a result, mapped and verified: exactly those of ``shapes``, where None stands for any size.

        Never write to them. Raises BlockUnavailable: MISSING; CORRUPT, or MODEL_CHANGED for another model's, and the file is set aside.
        """
        path = self._files.path(block_hash, name)
        tensors = self._files.examine(path, lambda file, status: self._decode(file, status, block_hash, name, shapes))
        self._files.note(path)  # another process may have written it
        return tensors

    def _is_sound(self, block_hash: BlockHash, name: str, tensors: Mapping[str, Tensor]) -> bool:
        if not self.exists(block_hash, name):
            return False
        try:
            self.read(block_hash, name, {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()})
        except BlockUnavailable:
            return False  # and set aside, so it is written anew
        return True

    def _metadata(self, block_hash: BlockHash, name: str) -> dict[str, str]:
        return {
            "result_version": _FORMAT_VERSION,
            "format_version": str(self._header.format_version),
            "fingerprint": self._header.fingerprint,
            "block_hash": block_hash.hex(),
            "name": name,
        }

    def _encode(self, block_hash: BlockHash, name: str, tensors: Mapping[str, Tensor]) -> bytes:
        metadata = self._metadata(block_hash, name)
        plain = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        start = 8 + int.from_bytes(plain[:8], "little")
        header = json.loads(plain[8:start])
        metadata["blake3"] = _checksum(header, memoryview(plain)[start:])
        text = json.dumps(header | {"__metadata__": metadata}).encode()
        text += b" " * (-len(text) % 8)  # so that the payload can be read in place
        return len(text).to_bytes(8, "little") + text + plain[start:]

    def _decode(
        self, file: BufferedReader, status: os.stat_result, block_hash: BlockHash, name: str, shapes: Mapping[str, Shape]
    ) -> dict[str, Tensor]:
        start, header, metadata = read_header(file, status.st_size)
        wanted = self._metadata(block_hash, name)
        differing = [key for key, value in wanted.items() if metadata.get(key) != value]
        if {"fingerprint", "format_version"} & set(differing) and not {"block_hash", "name"} & set(differing):
            raise BlockUnavailable(MissReason.MODEL_CHANGED, f"written with another {', '.join(differing)}")
        if differing:
            raise corrupt(f"the file holds result {metadata.get('name')!r} of block {metadata.get('block_hash')!r}")
        payload = map_file(file.fileno(), status.st_size)[start:]
        if _checksum(header, bytes_of(payload)) != metadata.get("blake3"):
            raise corrupt("the checksum of the tensors differs")
        if header.keys() != shapes.keys():
            raise corrupt(f"the file holds {', '.join(header)} instead of {', '.join(shapes)}")
        return {key: _tensor(payload, key, header[key], shapes[key]) for key in shapes}


def _checksum(header: Mapping[str, object], payload: memoryview) -> str:
    """Return the blake3 of what the header says of the tensors and of their bytes, so that no flipped shape is believed."""
    return checksum_of(json.dumps(header, sort_keys=True).encode(), payload)


def _tensor(payload: Tensor, key: str, said: Mapping[str, Any], expected: Shape) -> Tensor:
    """Return the tensor that ``said`` describes, a view of ``payload``. Raises BlockUnavailable(CORRUPT) unless it is what is expected."""
    dtype, wanted = expected
    shape, (start, stop) = said["shape"], said["data_offsets"]
    fits = len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))
    if _DTYPES.get(said["dtype"]) is not dtype or not fits or stop - start != math.prod(shape) * dtype.itemsize:
        raise corrupt(f"{key} is {said['dtype']} {shape} instead of {dtype} {list(wanted)}")
    return payload[start:stop].view(dtype).view(shape)
