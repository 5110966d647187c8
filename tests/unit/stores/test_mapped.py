"""Mapped blocks: zero copy, verified once, shared while used, refused like files that are read."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.stores import HEADER, digest, stored

from agentmem.stores import ArchiveFormat, BlockFiles, BlockUnavailable, MappedBlock, MappedBlocks
from agentmem.stores import mapped as module
from agentmem.stores.mapped import native
from agentmem.stores.quantise import dequantise
from agentmem.stores.records import BlockFile
from agentmem.types import BlockHash, MissReason, Tier

torch.set_num_threads(1)

A = digest("a")


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    """Return an empty store."""
    return BlockFiles(tmp_path / "blocks", quarantine=tmp_path / "quarantine")


def write(files: BlockFiles, name: str = "a", archive_format: ArchiveFormat = ArchiveFormat.NATIVE) -> Path:
    """Write the block of ``name`` at position 8 and return its file."""
    block = stored(name)
    files.write_all([BlockFile(block.hash, replace(HEADER, first_token=8), block.k, block.v, archive_format)])
    return files.path(block.hash)


def reason(mapped: MappedBlocks, block_hash: BlockHash = A, first_token: int = 8) -> MissReason:
    """Return why a block cannot be mapped."""
    with pytest.raises(BlockUnavailable) as caught:
        mapped.map(block_hash, first_token)
    return caught.value.reason


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each payload that is verified."""
    found: list[int] = []
    real = module.verify
    monkeypatch.setattr(module, "verify", lambda payload, checksum: (found.append(len(payload)), real(payload, checksum))[1])
    return found


def test_mapped_block_is_the_file(files: BlockFiles) -> None:
    """K and V come back bit by bit, from the disk, in one mapping that takes no descriptor."""
    write(files)
    before = len(list(Path("/proc/self/fd").iterdir()))
    block = MappedBlocks(files, HEADER).map(A, 8)
    assert before == len(list(Path("/proc/self/fd").iterdir()))
    assert (A, ArchiveFormat.NATIVE, (), Tier.DISK) == (block.hash, block.format, block.scales, block.tier)
    assert torch.equal(stored("a").k, block.k)
    assert torch.equal(stored("a").v, block.v)
    assert block.k.untyped_storage().data_ptr() == block.v.untyped_storage().data_ptr()
    assert (True, True) == (block.k.is_contiguous(), block.v.is_contiguous())
    assert all(got is kept for got, kept in zip(native(block, HEADER.dtype), (block.k, block.v), strict=True))


@pytest.mark.parametrize(("archive_format", "bits"), [(ArchiveFormat.INT8, 8), (ArchiveFormat.INT4, 4)])
def test_quantised_block_is_mapped_as_codes(files: BlockFiles, archive_format: ArchiveFormat, bits: int) -> None:
    """A quantised file gives codes and scales of the stated shapes, and what they decode to is close to what was stored."""
    write(files, archive_format=archive_format)
    block = MappedBlocks(files, HEADER, archive_format).map(A, 8)
    layers, heads, tokens, dim = HEADER.shape
    assert (layers, heads, tokens, dim * bits // 8) == block.k.shape == block.v.shape
    groups = [(layers, heads, 1, dim)] * 2 + [(layers, heads, tokens, dim // 32)] * 2
    assert groups == [tuple(scale.shape) for scale in block.scales]
    k, v = native(block, HEADER.dtype)
    assert torch.equal(k, dequantise((block.k, block.v), block.scales, bits, torch.float32)[0])
    assert max((k - stored("a").k).abs().max(), (v - stored("a").v).abs().max()) < 6 / (2**bits - 1)


def test_users_share_one_mapping(files: BlockFiles, verified: list[int]) -> None:
    """While somebody uses a block others get the same object; after that it is unmapped, and mapped anew without verifying it again."""
    write(files)
    mapped = MappedBlocks(files, HEADER)
    block = mapped.map(A, 8)
    assert block is mapped.map(A, 8)
    assert block.nbytes == mapped.bytes_mapped == HEADER.payload_bytes
    rows = block.k
    del block
    gc.collect()
    assert 0 == mapped.bytes_mapped
    assert torch.equal(stored("a").k, rows)  # a view keeps the pages of its own
    assert torch.equal(stored("a").v, mapped.map(A, 8).v)
    assert 1 == len(verified)


def test_another_file_is_verified_again(files: BlockFiles, verified: list[int]) -> None:
    """A file that was replaced is another file: it is read through, and damage is found although the old one was sound."""
    path = write(files)
    mapped = MappedBlocks(files, HEADER)
    old = mapped.map(A, 8)
    data = bytearray(path.read_bytes())
    path.unlink()
    path.write_bytes(data)
    assert old is not mapped.map(A, 8)
    assert 2 == len(verified)
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert MissReason.CORRUPT == reason(mapped)
    assert torch.equal(stored("a").v, old.v)


def test_deleted_file_stays_readable_while_it_is_mapped(files: BlockFiles) -> None:
    """A block that is deleted under a live mapping can be read to the end; a new mapping says MISSING."""
    path = write(files)
    mapped = MappedBlocks(files, HEADER)
    block = mapped.map(A, 8)
    files.delete(A)
    assert torch.equal(stored("a").k, block.k)
    assert (False, MissReason.MISSING) == (path.exists(), reason(mapped))


def test_writing_to_a_mapping_does_not_reach_the_file(files: BlockFiles) -> None:
    """The mapping is private, so a bug that writes to it cannot damage the archive."""
    path = write(files)
    before = path.read_bytes()
    MappedBlocks(files, HEADER).map(A, 8).k.zero_()
    assert before == path.read_bytes()


def respell(data: bytes) -> bytes:
    """Return the file with its JSON header spelled with one space more, which moves the payload off its place."""
    stop = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(json.loads(data[8:stop])).encode()
    text += b" " * (1 - len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[stop:]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[: len(data) // 2], MissReason.CORRUPT),
        (lambda data: data[:20], MissReason.CORRUPT),
        (lambda data: data[:0], MissReason.CORRUPT),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), MissReason.CORRUPT),
        (lambda data: data.replace(b"model-1", b"model-2"), MissReason.MODEL_CHANGED),
        (lambda data: data.replace(A.hex().encode(), digest("b").hex().encode()), MissReason.CORRUPT),
        (respell, MissReason.CORRUPT),
    ],
)
def test_unsound_file_is_set_aside(files: BlockFiles, tmp_path: Path, damage: Callable[[bytes], bytes], expected: MissReason) -> None:
    """A file that is cut, altered, foreign or cannot be read in place is refused like one that is read, moved away, and uncounted."""
    path = write(files)
    path.write_bytes(damage(path.read_bytes()))
    files.note(path)
    mapped = MappedBlocks(files, HEADER)
    assert expected == reason(mapped)
    assert (False, 1) == (path.exists(), len(list((tmp_path / "quarantine").iterdir())))
    assert (0, MissReason.MISSING, []) == (files.bytes_used, reason(mapped), files.check_integrity())


def test_block_of_another_place_or_format_is_refused(files: BlockFiles) -> None:
    """A block at another position is CORRUPT, also when it is mapped elsewhere already; a file of another format is MODEL_CHANGED."""
    write(files)
    mapped = MappedBlocks(files, HEADER)
    kept = mapped.map(A, 8)
    assert MissReason.CORRUPT == reason(mapped, first_token=12)
    assert torch.equal(stored("a").k, kept.k)
    write(files)
    assert MissReason.MODEL_CHANGED == reason(MappedBlocks(files, HEADER, ArchiveFormat.INT8))
    write(files, archive_format=ArchiveFormat.INT4)
    assert MissReason.MODEL_CHANGED == reason(mapped)


def test_memory_of_what_is_sound_is_bounded(files: BlockFiles, verified: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has seen very many blocks forgets which were sound and verifies them again."""
    monkeypatch.setattr(module, "_MAX_VERIFIED", 1)
    mapped = MappedBlocks(files, HEADER)
    for name in ("a", "b", "a"):
        write(files, name)
        mapped.map(digest(name), 8)
    assert 3 == len(verified)


def test_threads_share_one_mapping(files: BlockFiles) -> None:
    """Threads that map a block at once end up with one object."""
    write(files)
    mapped = MappedBlocks(files, HEADER)
    barrier = threading.Barrier(4)
    found: list[MappedBlock] = []

    def work() -> None:
        barrier.wait()
        found.append(mapped.map(A, 8))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0]] * 4 == found
