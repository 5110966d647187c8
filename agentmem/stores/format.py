"""The bytes of a block file: a safetensors file of ``k`` and ``v`` that says whose it is and carries its own checksum.

Layout as in https://github.com/huggingface/safetensors#format: 8 bytes of header length, JSON header, payload (K, then V). In a quantised
archive K and V are codes, and their scales and zeros lie before them.
Reading parses the header itself, so that nothing is allocated or believed before every field was compared with what the
caller expects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from io import BufferedReader
from typing import Any

import safetensors.torch
import torch
from blake3 import blake3
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.stores.host import host_tensor
from agentmem.stores.quantise import GROUP, quantise
from agentmem.stores.records import DTYPES, ArchiveFormat, BlockFile, BlockHeader, BlockUnavailable
from agentmem.types import BlockHash, MissReason

MAX_HEADER_BYTES = 16 * 1024  # ours have below 1 KiB
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int32: "I32"}
_FORMAT = "archive_format"
_PLACE = ("first_token", "n_tokens")  # what differs between the blocks of one model; all else identifies the model


def layout(header: BlockHeader, archive_format: ArchiveFormat) -> Mapping[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of the tensors of a block file in their order there: larger dtypes first, then by name."""
    layers, kv_heads, tokens, head_dim = header.shape
    if archive_format is ArchiveFormat.NATIVE:
        return dict.fromkeys("kv", (DTYPES[header.dtype], header.shape))
    codes = (layers, kv_heads, tokens, -(-head_dim * archive_format.bits // 8))
    k_groups = (layers, kv_heads, -(-tokens // GROUP), head_dim)
    v_groups = (layers, kv_heads, tokens, -(-head_dim // GROUP))
    scales = {"k_scale": k_groups, "k_zero": k_groups, "v_scale": v_groups, "v_zero": v_groups}
    return {name: (torch.float16, shape) for name, shape in scales.items()} | dict.fromkeys("kv", (torch.uint8, codes))


def payload_bytes(header: BlockHeader, archive_format: ArchiveFormat) -> int:
    """Return the bytes of all tensors of a block file."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout(header, archive_format).values())


def encode(block: BlockFile) -> bytes:
    """Return the file's bytes. Raises InvalidInput when K or V have another dtype or shape than the header says."""
    header = block.header
    k, v = (tensor.detach().cpu().contiguous() for tensor in (block.k, block.v))
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != DTYPES[header.dtype] or tuple(tensor.shape) != header.shape:
            raise InvalidInput(f"block {name} is {tensor.dtype} {list(tensor.shape)}; its header says {header.dtype} {list(header.shape)}")
    tensors = {"k": k, "v": v}
    if block.format is not ArchiveFormat.NATIVE:
        (k, v), scales = quantise(k, v, block.format.bits)
        tensors = dict(zip(layout(header, block.format), (*scales, k, v), strict=True))
    metadata = {**_metadata(block.hash, header, block.format), "blake3": checksum_of(*map(bytes_of, tensors.values()))}
    return safetensors.torch.save(tensors, metadata)


def decode(
    file: BufferedReader, size: int, block_hash: BlockHash, expected: BlockHeader, archive_format: ArchiveFormat = ArchiveFormat.NATIVE
) -> dict[str, Tensor]:
    """Read the tensors of ``layout`` from ``file`` of ``size`` bytes, all in one new buffer: K and V as ``k`` and ``v``.

    Raises BlockUnavailable: MODEL_CHANGED when a sound header names another model, geometry or archive format, CORRUPT for all else that
    differs from what was stored. Allocates at most the expected payload and a header of MAX_HEADER_BYTES.
    """
    _, checksum = locate(file, size, block_hash, expected, archive_format)
    payload = host_tensor((payload_bytes(expected, archive_format),), torch.uint8)
    if file.readinto(bytes_of(payload)) != len(payload):
        raise corrupt("the file shrank while it was read")
    verify(payload, checksum)
    return views(payload, expected, archive_format)


def locate(
    file: BufferedReader, size: int, block_hash: BlockHash, expected: BlockHeader, archive_format: ArchiveFormat
) -> tuple[int, object]:
    """Read the file up to its payload and compare it with what is expected; return where the payload starts and the checksum it claims.

    Raises BlockUnavailable as ``decode``.
    """
    start, header, metadata = read_header(file, size)
    wanted = {_FORMAT: archive_format.value, **_metadata(block_hash, expected, archive_format)}
    found = {_FORMAT: ArchiveFormat.NATIVE.value, **metadata}
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if "block_hash" in differing or not wanted.keys() <= found.keys():
        raise corrupt(f"the file holds block {metadata.get('block_hash')!r}")
    if differing and not set(differing) <= set(_PLACE):
        named = ", ".join(f"{name} {found[name]!r} instead of {wanted[name]!r}" for name in differing)
        raise BlockUnavailable(MissReason.MODEL_CHANGED, f"written with {named}")
    if differing or header != _described(expected, archive_format):
        raise corrupt("the header describes other tensors")
    if size != start + payload_bytes(expected, archive_format):
        raise corrupt(f"{size} bytes instead of {start + payload_bytes(expected, archive_format)}")
    return start, metadata.get("blake3")


def verify(payload: Tensor, checksum: object) -> None:
    """Raise BlockUnavailable(CORRUPT) unless ``checksum`` is that of ``payload``, uint8."""
    if checksum_of(bytes_of(payload)) != checksum:
        raise corrupt("the checksum of the tensors differs")


def views(payload: Tensor, expected: BlockHeader, archive_format: ArchiveFormat) -> dict[str, Tensor]:
    """Return the tensors that lie in ``payload``, uint8, without copying."""
    tensors, start = {}, 0
    for name, (dtype, shape) in layout(expected, archive_format).items():
        stop = start + math.prod(shape) * dtype.itemsize
        tensors[name] = payload[start:stop].view(dtype).view(shape)
        start = stop
    return tensors


def read_header(file: BufferedReader, size: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Read a safetensors header; return where the payload starts, what is said of the tensors, and the metadata.

    Raises BlockUnavailable(CORRUPT) for what is none.
    """
    header_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
        raise corrupt(f"header length {header_bytes} in a file of {size} bytes")
    try:
        header: Any = json.loads(file.read(header_bytes))
    except (ValueError, RecursionError) as error:
        raise corrupt("the header is not JSON") from error
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise corrupt("the header has no metadata")
    return 8 + header_bytes, header, metadata


def _metadata(block_hash: BlockHash, header: BlockHeader, archive_format: ArchiveFormat) -> dict[str, str]:
    named = {} if archive_format is ArchiveFormat.NATIVE else {_FORMAT: archive_format.value}  # native files say nothing of it
    return {"block_hash": block_hash.hex(), **{name: str(value) for name, value in asdict(header).items()}, **named}


def _described(header: BlockHeader, archive_format: ArchiveFormat) -> dict[str, object]:
    """Return what safetensors writes about the tensors; offsets count from the start of the payload."""
    described: dict[str, object] = {}
    start = 0
    for name, (dtype, shape) in layout(header, archive_format).items():
        stop = start + math.prod(shape) * dtype.itemsize
        described[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    return described


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def checksum_of(*parts: memoryview | bytes) -> str:
    """Return the blake3 of ``parts`` one after the other, in hex."""
    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    digest: str = hasher.hexdigest()
    return digest


def corrupt(detail: str) -> BlockUnavailable:
    """Return the error for a file that is not what was stored."""
    return BlockUnavailable(MissReason.CORRUPT, detail)
