"""Results of sealing: durable, verified, shared by processes, gone with their block."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.stores import HEADER, digest, stored
from torch import Tensor

from agentmem import faults
from agentmem.errors import InvalidInput
from agentmem.stores import ArchiveFormat, BlockFiles, BlockUnavailable, SealFiles, SweepReport
from agentmem.stores.records import BlockFile
from agentmem.stores.seal_files import Shape
from agentmem.types import BlockHash, MissReason

torch.set_num_threads(1)

A, NAME, OTHER_NAME = digest("a"), "ab" * 16, "cd" * 16
SHAPES: dict[str, Shape] = {
    "keep": (torch.int32, (2, 1, None)),
    "codes": (torch.uint8, (2, 1, None, 3)),
    "mean": (torch.float32, (2, 1, 256)),
}


def result(kept: int = 3, tokens: int = 5) -> dict[str, Tensor]:
    """Return what a seal job makes of a unit of ``tokens`` tokens."""
    noise = torch.Generator().manual_seed(kept)
    return {
        "keep": torch.arange(2 * kept, dtype=torch.int32).view(2, 1, kept),
        "codes": torch.randint(256, (2, 1, tokens, 3), dtype=torch.uint8, generator=noise),
        "mean": torch.randn(2, 1, 256, generator=noise),
    }


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    """Return the server's store, with one block at position 8."""
    files = BlockFiles(tmp_path / "blocks", quarantine=tmp_path / "quarantine")
    block = stored("a")
    files.write_all([BlockFile(A, replace(HEADER, first_token=8), block.k, block.v)])
    return files


@pytest.fixture
def seal(files: BlockFiles) -> SealFiles:
    """Return the server's seal files."""
    return SealFiles(files.root, HEADER, ArchiveFormat.NATIVE, files=files)


@pytest.fixture
def worker(files: BlockFiles) -> SealFiles:
    """Return what another process opens: it knows the directory and nothing of the server's books."""
    return SealFiles(files.root, HEADER, ArchiveFormat.NATIVE)


def assert_result(seal: SealFiles, expected: dict[str, Tensor], name: str = NAME) -> None:
    """Read the result and compare it with ``expected``."""
    found = seal.read(A, name, SHAPES)
    assert list(SHAPES) == list(found)
    assert all(torch.equal(expected[key], tensor) for key, tensor in found.items())


def reason(seal: SealFiles, shapes: dict[str, Shape] = SHAPES, block_hash: BlockHash = A, name: str = NAME) -> MissReason:
    """Return why a result cannot be read."""
    with pytest.raises(BlockUnavailable) as caught:
        seal.read(block_hash, name, shapes)
    return caught.value.reason


def quarantined(files: BlockFiles) -> list[str]:
    """Return what was set aside."""
    return sorted(path.name.partition("-")[2] for path in (files.root.parent / "quarantine").iterdir())


def test_result_written_by_a_worker_is_read_by_the_server(files: BlockFiles, seal: SealFiles, worker: SealFiles) -> None:
    """Another process writes; the server reads the same tensors, aligned and mapped, and counts the file from then on, once."""
    blocks = files.bytes_used
    assert not seal.exists(A, NAME)
    worker.write(A, NAME, result())
    assert seal.exists(A, NAME)
    assert blocks == files.bytes_used
    for _ in range(2):
        assert_result(seal, result())
    path = files.path(A, NAME)
    assert f"{A.hex()}.{NAME}.safetensors" == path.name
    assert blocks + path.stat().st_size == files.bytes_used
    assert (0o600, []) == (path.stat().st_mode & 0o777, files.check_integrity())


def test_server_counts_what_it_writes(files: BlockFiles, seal: SealFiles) -> None:
    """A result that the server's own threads write is counted at once."""
    seal.write(A, NAME, result())
    seal.write(A, OTHER_NAME, result(7))
    assert sum(files.path(A, name).stat().st_size for name in (NAME, OTHER_NAME)) == files.sizes.result_bytes
    assert_result(seal, result(7), OTHER_NAME)


def test_file_is_plain_safetensors(files: BlockFiles, seal: SealFiles) -> None:
    """Any safetensors reader finds the tensors, and the header says whose they are."""
    seal.write(A, NAME, result())
    data = files.path(A, NAME).read_bytes()
    assert all(torch.equal(result()[key], tensor) for key, tensor in safetensors.torch.load(data).items())
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert 64 == len(metadata.pop("blake3"))
    expected = {"result_version": "1", "format_version": "1", "fingerprint": "model-1", "block_hash": A.hex(), "name": NAME}
    assert expected == metadata


def test_sound_result_is_kept(files: BlockFiles, seal: SealFiles, worker: SealFiles) -> None:
    """Writing a result that is there changes nothing, whoever wrote it."""
    worker.write(A, NAME, result())
    before = files.path(A, NAME).stat()
    seal.write(A, NAME, result())
    assert (before.st_ino, before.st_mtime_ns) == ((now := files.path(A, NAME).stat()).st_ino, now.st_mtime_ns)


def test_empty_and_transposed_tensors(seal: SealFiles) -> None:
    """A unit that keeps nothing, and tensors that are not contiguous, survive."""
    codes = torch.arange(30, dtype=torch.uint8).view(2, 1, 3, 5).transpose(2, 3)
    expected = {**result(0), "codes": codes}
    seal.write(A, NAME, expected)
    assert_result(seal, expected)


def test_dtype_that_results_do_not_have_is_refused(files: BlockFiles, seal: SealFiles) -> None:
    """A tensor of another dtype is InvalidInput that names it, and nothing is written."""
    with pytest.raises(InvalidInput, match=r"keep torch.int64; allowed: .*torch.int32"):
        seal.write(A, NAME, {"keep": torch.zeros(1, dtype=torch.int64)})
    assert not files.exists(A, NAME)


def test_result_of_a_deleted_block_is_not_written(files: BlockFiles, seal: SealFiles) -> None:
    """A job that ends after its block was deleted leaves no file behind."""
    files.delete(A)
    with pytest.raises(BlockUnavailable, match="missing"):
        seal.write(A, NAME, result())
    assert [] == [path for path in files.root.rglob("*") if path.is_file()]


def cut(data: bytes) -> bytes:
    """Return the first half of a file."""
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, MissReason.CORRUPT),
        (lambda data: data[:4], MissReason.CORRUPT),
        (lambda data: data[:0], MissReason.CORRUPT),
        (lambda data: data + b"\0", MissReason.CORRUPT),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), MissReason.CORRUPT),
        (lambda data: data.replace(b"[2, 1, 5, 3]", b"[2, 1, 3, 5]"), MissReason.CORRUPT),
        (lambda data: data.replace(b"blake3", b"blake4"), MissReason.CORRUPT),
        (lambda data: data.replace(NAME.encode(), OTHER_NAME.encode()), MissReason.CORRUPT),
        (lambda data: data.replace(A.hex().encode(), digest("b").hex().encode()), MissReason.CORRUPT),
        (lambda data: data.replace(b'"result_version": "1"', b'"result_version": "9"'), MissReason.CORRUPT),
        (lambda data: data.replace(b"model-1", b"model-2"), MissReason.MODEL_CHANGED),
        (lambda data: data.replace(b'"format_version": "1"', b'"format_version": "2"'), MissReason.MODEL_CHANGED),
    ],
)
def test_unsound_result_is_set_aside_and_made_again(
    files: BlockFiles, seal: SealFiles, worker: SealFiles, damage: Callable[[bytes], bytes], expected: MissReason
) -> None:
    """A result that is cut, altered or foreign is refused and moved away; then it is MISSING, and can be written anew."""
    seal.write(A, NAME, result())
    path = files.path(A, NAME)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    assert expected == reason(worker)
    assert [path.name] == quarantined(files)
    assert MissReason.MISSING == reason(seal)
    assert 0 == files.sizes.result_bytes
    worker.write(A, NAME, result())
    assert_result(seal, result())
    assert [] == files.check_integrity()


def test_writing_over_a_damaged_result(files: BlockFiles, seal: SealFiles) -> None:
    """A worker that makes a result again replaces the damaged one without being told of it."""
    seal.write(A, NAME, result())
    path = files.path(A, NAME)
    path.write_bytes(cut(path.read_bytes()))
    seal.write(A, NAME, result())
    assert_result(seal, result())
    assert [] == files.check_integrity()


@pytest.mark.parametrize(
    "changed",
    [
        {"keep": (torch.int32, (2, 2, None))},
        {"keep": (torch.int32, (2, None))},
        {"keep": (torch.float32, (2, 1, None))},
        {"codes": (torch.uint8, (2, 1, 6, 3))},
        {"extra": (torch.uint8, (None,))},
    ],
)
def test_result_of_another_shape_is_corrupt(seal: SealFiles, changed: dict[str, Shape]) -> None:
    """A sound file with other tensors than were asked for is CORRUPT: it cannot be attended to."""
    seal.write(A, NAME, result())
    assert MissReason.CORRUPT == reason(seal, SHAPES | changed)


@pytest.mark.parametrize("point", ["blocks.write", "blocks.after_temp_write", "blocks.after_rename"])
def test_full_disk_leaves_nothing_half_written(files: BlockFiles, seal: SealFiles, point: str) -> None:
    """ENOSPC is OSError; either nothing is there or the whole result is, never a temporary file, and the next try works."""
    faults.arm(point, "enospc", 1)
    with pytest.raises(OSError, match="No space left"):
        seal.write(A, NAME, result())
    assert {files.path(A), files.path(A, NAME)} >= {path for path in files.root.rglob("*") if path.is_file()}
    assert (point == "blocks.after_rename") == seal.exists(A, NAME)
    seal.write(A, NAME, result())
    assert_result(seal, result())
    assert [] == files.check_integrity()


def test_results_go_with_their_block(files: BlockFiles, seal: SealFiles, worker: SealFiles) -> None:
    """Deleting a block deletes its results, counted or not, and those of no other block; what is mapped stays readable."""
    other = stored("b")
    files.write_all([BlockFile(other.hash, HEADER, other.k, other.v)])
    seal.write(other.hash, NAME, result())
    seal.write(A, NAME, result())
    worker.write(A, OTHER_NAME, result(9))
    live = seal.read(A, NAME, SHAPES)
    assert files.delete(A)
    assert [False, False, True] == [seal.exists(A, NAME), seal.exists(A, OTHER_NAME), seal.exists(other.hash, NAME)]
    assert torch.equal(result()["mean"], live["mean"])
    assert [] == files.check_integrity()
    files.delete(other.hash)
    assert 0 == files.bytes_used


def test_sweep_takes_results_without_a_row_and_counts_the_others(files: BlockFiles, seal: SealFiles, worker: SealFiles) -> None:
    """A result whose block nobody promises is an orphan; one that a worker left beside a promised block is counted at the sweep."""
    other = stored("b")
    files.write_all([BlockFile(other.hash, HEADER, other.k, other.v)])
    worker.write(other.hash, NAME, result())
    worker.write(A, NAME, result())
    assert 0 == files.sizes.result_bytes
    assert SweepReport(orphans=2, temps=0) == files.sweep(lambda hashes: [h for h in hashes if h == A], min_age_s=0)
    assert [True, False] == [seal.exists(A, NAME), seal.exists(other.hash, NAME)]
    assert files.path(A, NAME).stat().st_size == files.sizes.result_bytes
    assert files.bytes_used == BlockFiles(files.root, quarantine=files.root.parent / "quarantine").bytes_used


def test_blocks_are_read_in_the_models_dtype(seal: SealFiles) -> None:
    """A native block is the mapped file itself; a missing one and one at another place are refused."""
    k, v = seal.block(A, 8)
    assert torch.equal(stored("a").k, k)
    assert torch.equal(stored("a").v, v)
    for block_hash, first_token, expected in ((digest("new"), 0, MissReason.MISSING), (A, 12, MissReason.CORRUPT)):
        with pytest.raises(BlockUnavailable) as caught:
            seal.block(block_hash, first_token)
        assert expected == caught.value.reason


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_quantised_blocks_are_dequantised(tmp_path: Path, dtype: str) -> None:
    """A worker on a quantised archive gets K and V in the model's dtype, close to what was stored."""
    header = replace(HEADER, dtype=dtype)
    block = stored("a", header=header)
    files = BlockFiles(tmp_path / "blocks", quarantine=tmp_path / "quarantine")
    files.write_all([BlockFile(A, header, block.k, block.v, ArchiveFormat.INT8)])
    for found, expected in zip(SealFiles(files.root, header, ArchiveFormat.INT8).block(A, 0), (block.k, block.v), strict=True):
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0.01)


def test_writers_at_once_leave_one_result(files: BlockFiles, seal: SealFiles, worker: SealFiles) -> None:
    """Two processes that make the same result at once, while the server reads, end with one sound file and no temporary ones."""
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def work(writer: SealFiles) -> None:
        barrier.wait()
        try:
            for kept in range(1, 6):
                writer.write(A, f"{kept:032x}", result(kept))
                assert_result(writer, result(kept), f"{kept:032x}")
        except BaseException as error:  # noqa: BLE001 - carried to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(writer,)) for writer in (seal, seal, worker, worker)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
    assert 6 == len([path for path in files.root.rglob("*") if path.is_file()])
    assert [] == files.check_integrity()
