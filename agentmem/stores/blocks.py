"""Block files: content-addressed, immutable, durable before anybody is told of them."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from agentmem import faults
from agentmem.stores.format import decode, encode
from agentmem.stores.records import BlockFile, BlockHeader, BlockUnavailable, SweepReport
from agentmem.types import BlockHash, MissReason

MAX_QUARANTINED = 16  # enough to look at what went wrong
_SUFFIX = ".safetensors"
_TEMP = ".tmp"
_WRITERS = 4  # concurrent fsyncs share one journal commit

_log = logging.getLogger(__name__)


class BlockFiles:
    """``root/ab/<hex>.safetensors``; thread safe. ``bytes_used`` is the size of all block files, promised or not.

    Writes raise OSError (ENOSPC and the like) and leave no temporary file. The lock guards what a name points to and the
    byte count; it is never held while tensors are read or written.
    """

    def __init__(self, root: Path, *, quarantine: Path) -> None:
        self.root = root
        self._quarantine = quarantine
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        quarantine.mkdir(parents=True, exist_ok=True)
        self.bytes_used = self._count_bytes()

    def path(self, block_hash: BlockHash) -> Path:
        """Return where the block's file is or would be."""
        name = block_hash.hex()
        return self.root / name[:2] / (name + _SUFFIX)

    def exists(self, block_hash: BlockHash) -> bool:
        """Return whether the block has a file, sound or not."""
        return self.path(block_hash).is_file()

    def write_all(self, blocks: Sequence[BlockFile]) -> list[int]:
        """Write blocks durably and return the bytes of each file, in order. A sound file that exists is kept.

        All temporary files are written and synced before the first is renamed, so a full disk changes nothing.
        Raises OSError, InvalidInput for tensors that their header does not describe.
        """
        missing = [block for block in blocks if not self._is_sound(block)]
        self._make_directories(blocks)
        temps: list[tuple[Path, Path]] = []  # appended to by the writers as soon as a file exists
        try:
            with ThreadPoolExecutor(_WRITERS, initializer=partial(torch.set_num_threads, 1)) as pool:
                for done in [pool.submit(self._write_temp, block, temps) for block in missing]:
                    done.result()
            for temp, target in temps:
                self._publish(temp, target)
        finally:
            for temp, _ in temps:
                temp.unlink(missing_ok=True)
        # Also for files that were there: another writer may have renamed them and not yet synced.
        for directory in {self.path(block.hash).parent for block in blocks}:
            _sync_directory(directory)
        return [self.path(block.hash).stat().st_size for block in blocks]

    def read(self, block_hash: BlockHash, expected: BlockHeader) -> tuple[Tensor, Tensor]:
        """Return K and V, ``[layers, kv_heads, tokens, head_dim]``, exactly as they were written.

        Raises BlockUnavailable: MISSING without a readable file, CORRUPT or MODEL_CHANGED for a file that is not what
        ``expected`` says; such a file is moved to quarantine.
        """
        path = self.path(block_hash)
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                try:
                    return decode(file, status.st_size, block_hash, expected)
                except BlockUnavailable as error:
                    self._set_aside(path, status, error)
                    raise
        except OSError as error:
            raise BlockUnavailable(MissReason.MISSING, f"{path} cannot be read: {error.strerror}") from error

    def delete(self, block_hash: BlockHash) -> bool:
        """Remove the block's file and return whether there was one. Its row must be gone already."""
        return self._remove(self.path(block_hash))

    def sweep(self, known: Callable[[list[BlockHash]], Collection[BlockHash]], *, min_age_s: float) -> SweepReport:
        """Remove temporary files and the blocks that ``known`` does not return, when older than ``min_age_s`` seconds.

        0 is for the start, before anybody writes; later the age must exceed what a write and its commit may take.
        """
        orphans = temps = 0
        for entry in self._entries():
            try:
                age = time.time() - entry.stat().st_mtime
            except FileNotFoundError:
                continue  # a temporary file that was renamed just now
            if age < min_age_s:
                continue
            if entry.name.endswith(_TEMP):
                Path(entry.path).unlink(missing_ok=True)
                temps += 1
            elif (block_hash := _hash_of(entry.name)) is not None and block_hash not in known([block_hash]):
                orphans += self._remove(Path(entry.path))
        with self._lock:
            self.bytes_used = self._count_bytes()  # somebody else may have removed or damaged files
        return SweepReport(orphans, temps)

    def check_integrity(self) -> list[str]:
        """Return the broken rules: the count of bytes. For moments when nothing is being written."""
        real = self._count_bytes()
        return [] if real == self.bytes_used else [f"block files count {self.bytes_used} bytes and use {real}"]

    def _count_bytes(self) -> int:
        return sum(entry.stat().st_size for entry in self._entries() if entry.name.endswith(_SUFFIX))

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for directory in sorted(self.root.iterdir()):
            if directory.is_dir():
                with os.scandir(directory) as entries:
                    yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))

    def _is_sound(self, block: BlockFile) -> bool:
        if not self.exists(block.hash):
            return False
        try:
            self.read(block.hash, block.header)
        except BlockUnavailable:
            return False  # and set aside, so it is written anew
        return True

    def _make_directories(self, blocks: Sequence[BlockFile]) -> None:
        new = {self.path(block.hash).parent for block in blocks if not self.path(block.hash).parent.exists()}
        for directory in new:
            directory.mkdir(exist_ok=True)
        if new:
            _sync_directory(self.root)

    def _write_temp(self, block: BlockFile, temps: list[tuple[Path, Path]]) -> None:
        data = encode(block)
        target = self.path(block.hash)
        # mkstemp's mode 0600 stays: K and V tell what was said.
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem[:16], suffix=_TEMP)
        temps.append((Path(name), target))
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            faults.point("blocks.write")
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(descriptor)
        faults.point("blocks.after_temp_write")

    def _publish(self, temp: Path, target: Path) -> None:
        with self._lock:
            replaced = target.stat().st_size if target.exists() else 0
            temp.replace(target)
            self.bytes_used += target.stat().st_size - replaced
        faults.point("blocks.after_rename")

    def _remove(self, path: Path) -> bool:
        with self._lock:
            if not path.exists():
                return False
            size = path.stat().st_size
            path.unlink()
            self.bytes_used -= size
            return True

    def _set_aside(self, path: Path, seen: os.stat_result, error: BlockUnavailable) -> None:
        """Move the file that was read, and not one that has replaced it since, to quarantine."""
        _log.warning("block file %s: %s", path, error)
        with self._lock:
            try:
                if not os.path.samestat(path.stat(), seen):
                    return
                path.replace(self._quarantine / f"{time.time_ns()}-{path.name}")
                self.bytes_used -= seen.st_size
                for old in sorted(self._quarantine.iterdir())[:-MAX_QUARANTINED]:
                    old.unlink()
            except OSError as failure:
                _log.warning("block file %s could not be moved to quarantine: %s", path, failure)  # it will be refused again


def _hash_of(name: str) -> BlockHash | None:
    stem = name.removesuffix(_SUFFIX)
    if stem == name or len(stem) != 64 or not set(stem) <= set("0123456789abcdef"):
        return None
    return BlockHash(bytes.fromhex(stem))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
