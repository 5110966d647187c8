"""Block files on disk."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.stores import HEADER, digest, stored

from agentmem import faults
from agentmem.errors import InvalidInput
from agentmem.stores.blocks import MAX_QUARANTINED, BlockFiles
from agentmem.stores.records import BlockFile, BlockUnavailable, SweepReport
from agentmem.types import BlockHash, MissReason

torch.set_num_threads(1)


@pytest.fixture
def files(tmp_path: Path) -> BlockFiles:
    """Return an empty store."""
    return BlockFiles(tmp_path / "blocks", quarantine=tmp_path / "quarantine")


def write(files: BlockFiles, *names: str) -> list[int]:
    """Write the blocks of ``names``."""
    return files.write_all([BlockFile(block.hash, HEADER, block.k, block.v) for block in map(stored, names)])


def on_disk(files: BlockFiles) -> set[str]:
    """Return the names of all files below the root."""
    return {path.name for path in files.root.rglob("*") if path.is_file()}


def assert_reads(files: BlockFiles, name: str) -> None:
    """Read the block of ``name`` and compare it with what was stored."""
    tensors = files.read(digest(name), HEADER)
    assert torch.equal(stored(name).k, tensors["k"])
    assert torch.equal(stored(name).v, tensors["v"])


def reason(files: BlockFiles, name: str) -> MissReason:
    """Return why the block of ``name`` cannot be read."""
    with pytest.raises(BlockUnavailable) as caught:
        files.read(digest(name), HEADER)
    return caught.value.reason


def test_write_then_read(files: BlockFiles) -> None:
    """A block comes back as it was written, from a file named by its hash, below the first two letters."""
    block = stored("a")
    (size,) = files.write_all([BlockFile(block.hash, HEADER, block.k, block.v)])
    path = files.root / block.hash.hex()[:2] / f"{block.hash.hex()}.safetensors"
    assert path == files.path(block.hash)
    assert size == path.stat().st_size == files.bytes_used
    assert_reads(files, "a")


def test_batch_is_written_in_order(files: BlockFiles) -> None:
    """A batch returns one size per block, and an empty batch returns none."""
    assert 3 == len(write(files, "a", "b", "c"))
    for name in "abc":
        assert_reads(files, name)
    assert [] == write(files)


def test_only_the_owner_can_read_the_file(files: BlockFiles) -> None:
    """K and V tell what was said: nobody else on the machine may read them."""
    write(files, "a")
    assert 0o600 == files.path(digest("a")).stat().st_mode & 0o777


def test_sound_file_is_kept(files: BlockFiles) -> None:
    """Writing a block that is there changes nothing."""
    write(files, "a")
    before = files.path(digest("a")).stat()
    write(files, "a", "a")
    assert before.st_ino == files.path(digest("a")).stat().st_ino
    assert [] == files.check_integrity()


def test_unsound_file_is_written_anew(files: BlockFiles) -> None:
    """Writing a block over a damaged file makes it readable again and sets the damaged one aside."""
    write(files, "a")
    files.path(digest("a")).write_bytes(b"damage")
    files.note(files.path(digest("a")))
    write(files, "a")
    assert_reads(files, "a")
    assert [] == files.check_integrity()


def test_every_file_and_directory_is_synced_before_return(files: BlockFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks cost two file syncs, then one sync for each directory; the root is synced when a directory is new."""
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real(fd))[1])
    write(files, "a", "b")
    directories = {str(files.path(digest(name)).parent) for name in "ab"}
    assert str(files.root) == synced[0]
    assert [True, True] == [path.endswith(".tmp") for path in synced[1:3]]
    assert (directories, len(directories)) == (set(synced[3:]), len(synced[3:]))


def test_missing_file(files: BlockFiles) -> None:
    """A block without a file is MISSING, and does not exist."""
    assert MissReason.MISSING == reason(files, "a")
    assert not files.exists(digest("a"))


def test_file_that_cannot_be_opened_is_missing(files: BlockFiles) -> None:
    """A name that the system cannot open as a file is MISSING and is left where it is."""
    files.path(digest("a")).mkdir(parents=True)
    assert MissReason.MISSING == reason(files, "a")
    assert files.path(digest("a")).is_dir()


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\xff" * 3000])
def test_damaged_file_goes_to_quarantine(files: BlockFiles, tmp_path: Path, damage: bytes) -> None:
    """A damaged file is CORRUPT once, kept in quarantine, and MISSING from then on."""
    write(files, "a")
    path = files.path(digest("a"))
    path.write_bytes(damage)
    files = BlockFiles(files.root, quarantine=tmp_path / "quarantine")
    assert MissReason.CORRUPT == reason(files, "a")
    assert [damage] == [file.read_bytes() for file in (tmp_path / "quarantine").iterdir()]
    assert MissReason.MISSING == reason(files, "a")
    assert [] == files.check_integrity()


def test_swapped_files_are_corrupt(files: BlockFiles) -> None:
    """Two files whose names were exchanged give back neither block."""
    write(files, "a", "b")
    a, b = files.path(digest("a")), files.path(digest("b"))
    a.rename(files.root / "third")
    b.rename(a)
    (files.root / "third").rename(b)
    assert [MissReason.CORRUPT] * 2 == [reason(files, "a"), reason(files, "b")]


def test_block_of_another_model(files: BlockFiles) -> None:
    """A block written by another model is MODEL_CHANGED and set aside."""
    block = stored("a")
    files.write_all([BlockFile(block.hash, replace(HEADER, fingerprint="model-2"), block.k, block.v)])
    assert MissReason.MODEL_CHANGED == reason(files, "a")
    assert not files.exists(block.hash)


def test_quarantine_is_bounded(files: BlockFiles, tmp_path: Path) -> None:
    """Only the newest damaged files are kept."""
    for n in range(MAX_QUARANTINED + 3):
        write(files, str(n))
        files.path(digest(str(n))).write_bytes(b"damage")
        reason(files, str(n))
    assert MAX_QUARANTINED == len(list((tmp_path / "quarantine").iterdir()))


def test_quarantine_that_cannot_be_written(files: BlockFiles, tmp_path: Path) -> None:
    """Without a quarantine the damaged file is still refused, every time."""
    write(files, "a")
    files.path(digest("a")).write_bytes(b"damage")
    (tmp_path / "quarantine").rmdir()
    assert [MissReason.CORRUPT] * 2 == [reason(files, "a"), reason(files, "a")]


def test_file_that_was_replaced_meanwhile_stays(files: BlockFiles) -> None:
    """A reader that saw damage does not take away the sound file that a writer has put there since."""
    write(files, "a")
    path = files.path(digest("a"))
    seen = path.stat()
    fresh = path.with_name("fresh")
    fresh.write_bytes(path.read_bytes())
    fresh.replace(path)
    files._set_aside(path, seen, BlockUnavailable(MissReason.CORRUPT, "damage"))
    assert_reads(files, "a")


@pytest.mark.parametrize("point", ["blocks.write", "blocks.after_temp_write"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_full_disk_changes_nothing(files: BlockFiles, point: str, nth: int) -> None:
    """ENOSPC in any of three files passes through; no temporary file and no block is left, and the next try works."""
    write(files, "old")
    before = on_disk(files)
    faults.arm(point, "enospc", nth)
    with pytest.raises(OSError, match="No space left") as caught:
        write(files, "a", "b", "c")
    assert errno.ENOSPC == caught.value.errno
    assert before == on_disk(files)
    write(files, "a", "b", "c")
    assert [] == files.check_integrity()


def test_failure_after_a_rename_leaves_whole_blocks_only(files: BlockFiles) -> None:
    """When the second rename is not reached, the first block is sound and no temporary file is left."""
    faults.arm("blocks.after_rename", "enospc", 1)
    with pytest.raises(OSError, match="No space left"):
        write(files, "a", "b")
    assert 1 == len(on_disk(files))
    assert [] == files.check_integrity()


def test_wrong_tensor_leaves_no_file(files: BlockFiles) -> None:
    """A tensor that its header does not describe is refused before anything is on disk."""
    block = stored("a")
    with pytest.raises(InvalidInput, match="block k"):
        files.write_all([BlockFile(block.hash, HEADER, block.k[:1], block.v)])
    assert set() == on_disk(files)


def test_delete(files: BlockFiles) -> None:
    """Delete removes the file once and says whether there was one."""
    write(files, "a")
    assert [True, False] == [files.delete(digest("a")), files.delete(digest("a"))]
    assert (0, set()) == (files.bytes_used, on_disk(files))


def test_sweep(files: BlockFiles) -> None:
    """Sweep removes orphans and temporary files, and keeps known blocks and files that are not ours."""
    write(files, "known", "orphan")
    directory = files.path(digest("known")).parent
    (directory / "half.tmp").touch()
    (directory / "notes.txt").touch()
    (directory / "odd.safetensors").touch()

    def known(hashes: list[BlockHash]) -> Sequence[BlockHash]:
        return [block_hash for block_hash in hashes if block_hash == digest("known")]

    (files.root / "notes.txt").touch()
    files.sizes.put(files.path(digest("known")).name, 7)  # as if somebody had cut the file
    assert SweepReport(orphans=1, temps=1) == files.sweep(known, min_age_s=0)
    assert {files.path(digest("known")).name, "notes.txt", "odd.safetensors"} == on_disk(files)
    assert [] == files.check_integrity()


def test_sweep_leaves_young_files(files: BlockFiles) -> None:
    """A file younger than the limit may belong to a write that is going on."""
    write(files, "young", "old")
    past = time.time() - 100
    os.utime(files.path(digest("old")), (past, past))
    assert SweepReport(orphans=1, temps=0) == files.sweep(lambda _: [], min_age_s=50)
    assert files.exists(digest("young"))


def test_sweep_leaves_young_temporary_files_to_other_processes(files: BlockFiles) -> None:
    """A worker may be writing a result while a new server sweeps; it writes no blocks."""
    write(files, "old")
    temp = files.path(digest("old")).with_name("half.tmp")
    temp.touch()
    assert SweepReport(orphans=1, temps=0) == files.sweep(lambda _: [], min_age_s=0, temp_age_s=60)
    assert temp.exists()


def test_erased_blocks_leave_quarantine(files: BlockFiles, tmp_path: Path) -> None:
    """What is erased, maybe since it was to be forgotten, isn't kept among damaged files either."""
    write(files, "a", "b")
    for name in "ab":
        path = files.path(digest(name))
        path.write_bytes(path.read_bytes()[:-1])
        assert MissReason.CORRUPT == reason(files, name)
    files.erase(digest("a"))
    (aside,) = (tmp_path / "quarantine").iterdir()
    assert files.path(digest("b")).name in aside.name


def test_sweep_passes_over_files_that_vanish(files: BlockFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary file that is renamed between listing and looking is none of the sweep's business."""
    write(files, "a")
    entries = list(files._entries())
    files.delete(digest("a"))
    monkeypatch.setattr(files, "_entries", lambda: entries)
    assert SweepReport(orphans=0, temps=0) == files.sweep(lambda _: [], min_age_s=0)


def test_bytes_are_counted_again_at_the_start(files: BlockFiles, tmp_path: Path) -> None:
    """A store that is opened again knows the bytes of what is there."""
    write(files, "a", "b")
    assert files.bytes_used == BlockFiles(files.root, quarantine=tmp_path / "quarantine").bytes_used > 0


def test_wrong_count_is_found(files: BlockFiles) -> None:
    """check_integrity names a wrong count."""
    files.sizes.put(files.path(digest("a")).name, 5)
    assert ["block files count 5 bytes and use 0"] == files.check_integrity()
