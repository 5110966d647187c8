"""The bytes of a block file: what was written comes back bit by bit, anything else does not come back at all."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.stores import HEADER, digest, stored

from agentmem.errors import InvalidInput
from agentmem.stores.format import MAX_HEADER_BYTES, decode, encode
from agentmem.stores.quantise import quantise
from agentmem.stores.records import DTYPES, ArchiveFormat, BlockFile, BlockHeader, BlockUnavailable, StoredBlock
from agentmem.types import MissReason

torch.set_num_threads(1)


def block_file(block: StoredBlock, header: BlockHeader = HEADER) -> BlockFile:
    """Return the file that holds ``block``."""
    return BlockFile(block.hash, header, block.k, block.v)


BLOCK = stored("block")
GOOD = encode(block_file(BLOCK))
HEADER_END = 8 + int.from_bytes(GOOD[:8], "little")


def read(data: bytes, header: BlockHeader = HEADER, name: str = "block") -> tuple[torch.Tensor, torch.Tensor]:
    """Decode ``data`` as a file of that size."""
    tensors = decode(io.BufferedReader(io.BytesIO(data)), len(data), digest(name), header)  # type: ignore[arg-type]
    return tensors["k"], tensors["v"]


def refusal(data: bytes, header: BlockHeader = HEADER, name: str = "block") -> BlockUnavailable:
    """Return the error that decoding ``data`` raises."""
    with pytest.raises(BlockUnavailable) as caught:
        read(data, header, name)
    return caught.value


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype: str) -> None:
    """K and V come back with the same bits in every dtype, also from slices of a larger tensor."""
    header = replace(HEADER, dtype=dtype)
    block = stored("block", header=header)
    larger = torch.cat([block.k, block.k], dim=2)
    sliced = replace(block, k=larger[:, :, : header.n_tokens])
    k, v = read(encode(block_file(sliced, header)), header)
    assert (True, True) == (torch.equal(block.k, k), torch.equal(block.v, v))
    assert (DTYPES[dtype], header.shape) == (k.dtype, tuple(k.shape))


@pytest.mark.parametrize("archive_format", [ArchiveFormat.INT8, ArchiveFormat.INT4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(4, 256), (33, 6), (1, 1)])
def test_quantised_round_trip(archive_format: ArchiveFormat, dtype: str, size: tuple[int, int]) -> None:
    """Codes and scales come back with the bits that quantising made, from any dtype, also where groups are not full."""
    header = replace(HEADER, dtype=dtype, n_tokens=size[0], head_dim=size[1])
    block = stored("block", header=header)
    codes, scales = quantise(block.k, block.v, archive_format.bits)
    data = encode(BlockFile(block.hash, header, block.k, block.v, archive_format))
    found = decode(io.BufferedReader(io.BytesIO(data)), len(data), block.hash, header, archive_format)  # type: ignore[arg-type]
    expected = dict(zip(("k", "v", "k_scale", "k_zero", "v_scale", "v_zero"), (*codes, *scales), strict=True))
    assert expected.keys() == found.keys() == safetensors.torch.load(data).keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


def test_native_file_says_nothing_of_formats() -> None:
    """A native file is what it was before there were other formats: the same header and K, then V, bit for bit."""
    header = json.loads(GOOD[8:HEADER_END])
    metadata = header.pop("__metadata__")
    names = ["blake3", "block_hash", "dtype", "fingerprint", "first_token", "format_version"]
    assert [*names, "head_dim", "kv_heads", "layers", "n_tokens", "rope"] == sorted(metadata)
    half = HEADER.payload_bytes // 2
    described = {"dtype": "F32", "shape": [2, 1, 4, 256]}
    assert {"k": described | {"data_offsets": [0, half]}, "v": described | {"data_offsets": [half, 2 * half]}} == header
    assert BLOCK.k.numpy().tobytes() + BLOCK.v.numpy().tobytes() == GOOD[HEADER_END:]


def test_file_of_another_format_is_model_changed() -> None:
    """A quantised file is not taken for a native one or one of other bits, and the detail names the formats."""
    data = encode(BlockFile(BLOCK.hash, HEADER, BLOCK.k, BLOCK.v, ArchiveFormat.INT8))
    for archive_format in (ArchiveFormat.NATIVE, ArchiveFormat.INT4):
        with pytest.raises(BlockUnavailable, match=rf"archive_format 'int8' instead of '{archive_format}'") as caught:
            decode(io.BufferedReader(io.BytesIO(data)), len(data), BLOCK.hash, HEADER, archive_format)  # type: ignore[arg-type]
        assert MissReason.MODEL_CHANGED == caught.value.reason


def test_file_is_plain_safetensors() -> None:
    """Any safetensors reader finds K and V in the file."""
    tensors = safetensors.torch.load(GOOD)
    assert torch.equal(BLOCK.k, tensors["k"])
    assert torch.equal(BLOCK.v, tensors["v"])


@pytest.mark.parametrize("wrong", [BLOCK.k.double(), BLOCK.k[:1], BLOCK.k.transpose(0, 1)])
def test_tensor_that_its_header_does_not_describe_is_refused(wrong: torch.Tensor) -> None:
    """A wrong dtype or shape is InvalidInput that names both."""
    with pytest.raises(InvalidInput, match=r"block v is torch.* its header says float32 \[2, 1, 4, 256\]"):
        encode(block_file(replace(BLOCK, v=wrong)))


@given(st.binary(max_size=2000))
@example(b"")
@example((2**63).to_bytes(8, "little") + b"{}")
@example((MAX_HEADER_BYTES).to_bytes(8, "little") + b"[" * MAX_HEADER_BYTES)
@example((2).to_bytes(8, "little") + b"[]")
@example((2).to_bytes(8, "little") + b"{}")
@example((6).to_bytes(8, "little") + b'"\xff\xff"  ')
def test_random_bytes_are_corrupt(data: bytes) -> None:
    """Bytes that are no block file are CORRUPT, never another exception."""
    assert MissReason.CORRUPT == refusal(data).reason


@given(st.integers(0, len(GOOD) - 1))
def test_truncated_file_is_corrupt(size: int) -> None:
    """A file cut off anywhere is CORRUPT."""
    assert MissReason.CORRUPT == refusal(GOOD[:size]).reason


def test_file_that_shrinks_while_it_is_read_is_corrupt() -> None:
    """A file that ends before the size that was seen at its opening is CORRUPT."""
    with pytest.raises(BlockUnavailable, match="shrank"):
        decode(io.BufferedReader(io.BytesIO(GOOD[:-1])), len(GOOD), digest("block"), HEADER)  # type: ignore[arg-type]


def test_longer_file_is_corrupt() -> None:
    """Bytes after the payload are CORRUPT."""
    assert MissReason.CORRUPT == refusal(GOOD + b"\0").reason


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_flipped_byte_never_gives_other_tensors(place: int, mask: int) -> None:
    """After a change of one byte anywhere the file is refused, or the tensors are still the ones that were stored."""
    data = bytearray(GOOD)
    data[place] ^= mask
    try:
        k, v = read(bytes(data))
    except BlockUnavailable as error:
        assert error.reason in {MissReason.CORRUPT, MissReason.MODEL_CHANGED}  # noqa: PT017
        return
    assert place < HEADER_END  # JSON knows several spellings of one header; the payload has only one
    assert torch.equal(BLOCK.k, k)
    assert torch.equal(BLOCK.v, v)


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "model-2"},
        {"format_version": 2},
        {"dtype": "float16"},
        {"layers": 4},
        {"kv_heads": 2},
        {"head_dim": 128},
        {"rope": "yarn"},
    ],
)
def test_block_of_another_model_is_model_changed(changed: dict[str, Any]) -> None:
    """A sound file of another model, dtype, geometry or rope is MODEL_CHANGED, and the detail names the field."""
    error = refusal(GOOD, replace(HEADER, **changed))
    assert MissReason.MODEL_CHANGED == error.reason
    assert next(iter(changed)) in error.detail


@pytest.mark.parametrize("changed", [{"first_token": 4}, {"n_tokens": 8}])
def test_block_of_another_place_is_corrupt(changed: dict[str, Any]) -> None:
    """A block whose tokens stand elsewhere than its hash says is CORRUPT."""
    assert MissReason.CORRUPT == refusal(GOOD, replace(HEADER, **changed)).reason


def test_swapped_file_is_corrupt() -> None:
    """A file under another block's name is CORRUPT, and the detail tells whose it is."""
    error = refusal(GOOD, name="another")
    assert MissReason.CORRUPT == error.reason
    assert digest("block").hex() in error.detail


def rewritten(change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the good file with a changed JSON header."""
    header = json.loads(GOOD[8:HEADER_END])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + GOOD[HEADER_END:]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["k"].update(dtype="I32"),
        lambda header: header["k"].update(shape=[2, 1, 2, 512]),
        lambda header: header["k"].update(data_offsets=[8192, 16384]),
        lambda header: header.update(v=header["k"]),
        lambda header: header.update(w=header["k"]),
        lambda header: header.pop("k"),
        lambda header: header.update(k=None),
        lambda header: header["__metadata__"].pop("rope"),
        lambda header: header["__metadata__"].pop("blake3"),
        lambda header: header["__metadata__"].update(blake3=[]),
        lambda header: header["__metadata__"].update(blake3=None),
        lambda header: header["__metadata__"].update(block_hash=None),
        lambda header: header.update(__metadata__="text"),
        lambda header: header.pop("__metadata__"),
    ],
)
def test_header_that_describes_other_tensors_is_corrupt(change: Callable[[dict[str, Any]], None]) -> None:
    """A header whose JSON is sound and says something else is CORRUPT."""
    assert MissReason.CORRUPT == refusal(rewritten(change)).reason


def test_header_with_other_spelling_is_read() -> None:
    """The same header with other white space gives the same tensors."""
    k, v = read(rewritten(dict.copy))
    assert torch.equal(BLOCK.k, k)
    assert torch.equal(BLOCK.v, v)


def test_huge_header_length_allocates_nothing() -> None:
    """A header length of exabytes is refused before memory is taken for it."""
    tracemalloc.start()
    refusal((2**62).to_bytes(8, "little") + GOOD[8:])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
