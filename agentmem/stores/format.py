"""The bytes of a block file: a safetensors file of ``k`` and ``v`` that says whose it is and carries its own checksum.

Layout as in https://github.com/huggingface/safetensors#format: 8 bytes of header length, JSON header, payload (K, then V).
Reading parses the header itself, so that nothing is allocated or believed before every field was compared with what the
caller expects.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from io import BufferedReader
from typing import Any

import safetensors.torch
import torch
from blake3 import blake3
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.stores.records import DTYPES, BlockFile, BlockHeader, BlockUnavailable
from agentmem.types import BlockHash, MissReason

MAX_HEADER_BYTES = 16 * 1024  # ours have below 1 KiB
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PLACE = ("first_token", "n_tokens")  # what differs between the blocks of one model; all else identifies the model


def encode(block: BlockFile) -> bytes:
    """Return the file's bytes. Raises InvalidInput when K or V have another dtype or shape than the header says."""
    header = block.header
    k, v = (tensor.detach().cpu().contiguous() for tensor in (block.k, block.v))
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != DTYPES[header.dtype] or tuple(tensor.shape) != header.shape:
            raise InvalidInput(f"block {name} is {tensor.dtype} {list(tensor.shape)}; its header says {header.dtype} {list(header.shape)}")
    metadata = {**_metadata(block.hash, header), "blake3": _checksum(_bytes_of(k), _bytes_of(v))}
    return safetensors.torch.save({"k": k, "v": v}, metadata)


def decode(file: BufferedReader, size: int, block_hash: BlockHash, expected: BlockHeader) -> tuple[Tensor, Tensor]:
    """Read K and V ``[layers, kv_heads, tokens, head_dim]`` from ``file`` of ``size`` bytes, both in one new buffer.

    Raises BlockUnavailable: MODEL_CHANGED when a sound header names another model or geometry, CORRUPT for all else that
    differs from what was stored. Allocates at most the expected payload and a header of MAX_HEADER_BYTES.
    """
    header_bytes = int.from_bytes(file.read(8), "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
        raise _corrupt(f"header length {header_bytes} in a file of {size} bytes")
    checksum = _check_header(file.read(header_bytes), block_hash, expected)
    if size != 8 + header_bytes + expected.payload_bytes:
        raise _corrupt(f"{size} bytes instead of {8 + header_bytes + expected.payload_bytes}")
    payload = torch.empty(expected.payload_bytes, dtype=torch.uint8)
    if file.readinto(_bytes_of(payload)) != len(payload):
        raise _corrupt("the file shrank while it was read")
    if _checksum(_bytes_of(payload)) != checksum:
        raise _corrupt("the checksum of the tensors differs")
    k, v = payload.view(DTYPES[expected.dtype]).view(2, *expected.shape)
    return k, v


def _check_header(text: bytes, block_hash: BlockHash, expected: BlockHeader) -> object:
    """Compare every field of the JSON header with what is expected and return the checksum that it claims."""
    try:
        header: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt("the header is not JSON") from error
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise _corrupt("the header has no metadata")
    wanted = _metadata(block_hash, expected)
    differing = [name for name, value in wanted.items() if metadata.get(name) != value]
    if "block_hash" in differing or not wanted.keys() <= metadata.keys():
        raise _corrupt(f"the file holds block {metadata.get('block_hash')!r}")
    if differing and not set(differing) <= set(_PLACE):
        named = ", ".join(f"{name} {metadata[name]!r} instead of {wanted[name]!r}" for name in differing)
        raise BlockUnavailable(MissReason.MODEL_CHANGED, f"written with {named}")
    if differing or header != _layout(expected):
        raise _corrupt("the header describes other tensors")
    return metadata.get("blake3")


def _metadata(block_hash: BlockHash, header: BlockHeader) -> dict[str, str]:
    return {"block_hash": block_hash.hex(), **{name: str(value) for name, value in asdict(header).items()}}


def _layout(header: BlockHeader) -> dict[str, object]:
    """Return what safetensors writes about ``k`` and ``v``; offsets count from the start of the payload."""
    code, shape, half = _CODES[header.dtype], list(header.shape), header.payload_bytes // 2
    return {
        "k": {"dtype": code, "shape": shape, "data_offsets": [0, half]},
        "v": {"dtype": code, "shape": shape, "data_offsets": [half, 2 * half]},
    }


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _checksum(*parts: memoryview) -> str:
    hasher = blake3(max_threads=blake3.AUTO)
    for part in parts:
        hasher.update(part)
    digest: str = hasher.hexdigest()
    return digest


def _corrupt(detail: str) -> BlockUnavailable:
    return BlockUnavailable(MissReason.CORRUPT, detail)
