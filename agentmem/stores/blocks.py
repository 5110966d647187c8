"""Block files: content-addressed, immutable, durable before anybody is told of them. Results of sealing lie beside them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from agentmem import faults
from agentmem.stores.durable import TEMP_SUFFIX, make_directories, sync_directory, write_temp
from agentmem.stores.format import decode, encode
from agentmem.stores.naming import SUFFIX, FileSizes, file_name, parse_name
from agentmem.stores.records import ArchiveFormat, BlockFile, BlockHeader, BlockUnavailable, SweepReport
from agentmem.types import BlockHash, MissReason

MAX_QUARANTINED = 16  # enough to look at what went wrong
_WRITERS = 4  # concurrent fsyncs share one journal commit

_log = logging.getLogger(__name__)
T = TypeVar("T")


class BlockFiles:
    """``root/ab/<hex>.safetensors`` and the results beside them, ``root/ab/<hex>.<name>.safetensors``; thread safe.

    Other processes may add results and set files aside. ``bytes_used`` is the size of all block files, promised or not, and of the
    results that this object has seen (``note``) or found when it last counted: at its start and at a sweep. Writes raise OSError
    (ENOSPC and the like) and leave no temporary file. The lock guards what a name points to and the byte counts; it is never held while
    tensors are read or written.
    """

    def __init__(self, root: Path, *, quarantine: Path) -> None:
        self.root = root
        self._quarantine = quarantine
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        quarantine.mkdir(parents=True, exist_ok=True)
        self._count()

    @property
    def bytes_used(self) -> int:
        """Bytes of blocks and results."""
        return self.sizes.block_bytes + self.sizes.result_bytes

    def path(self, block_hash: BlockHash, name: str = "") -> Path:
        """Return where the block's file is or would be, or that of its result ``name``. Raises InvalidInput for a name of another form."""
        return self.root / block_hash.hex()[:2] / file_name(block_hash, name)

    def exists(self, block_hash: BlockHash, name: str = "") -> bool:
        """Return whether the block, or its result ``name``, has a file, sound or not."""
        return self.path(block_hash, name).is_file()

    def write_all(self, blocks: Sequence[BlockFile]) -> list[int]:
        """Write blocks durably and return the bytes of each file, in order. A sound file that exists is kept.

        All temporary files are written and synced before the first is renamed, so a full disk changes nothing.
        Raises OSError, InvalidInput for tensors that their header does not describe.
        """
        missing = [block for block in blocks if not self._is_sound(block)]
        make_directories(self.path(block.hash).parent for block in blocks)
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
            sync_directory(directory)
        return [self.path(block.hash).stat().st_size for block in blocks]

    def write_result(self, block_hash: BlockHash, name: str, data: bytes) -> None:
        """Write a result durably, replacing one that is there. Raises OSError; then nothing has changed."""
        target = self.path(block_hash, name)
        make_directories([target.parent])
        temps: list[tuple[Path, Path]] = []
        try:
            write_temp(target, data, temps)
            temps[0][0].replace(target)
            faults.point("blocks.after_rename")
        finally:
            for temp, _ in temps:
                temp.unlink(missing_ok=True)
        sync_directory(target.parent)
        self.note(target)

    def note(self, path: Path) -> None:
        """Count a file that may be there, come or gone by another process. Counting it twice counts it once."""
        with self._lock:
            try:
                self.sizes.put(path.name, path.stat().st_size)
            except OSError:
                self.sizes.put(path.name, None)

    def read(self, block_hash: BlockHash, expected: BlockHeader, archive_format: ArchiveFormat = ArchiveFormat.NATIVE) -> dict[str, Tensor]:
        """Return the tensors of the block's file, exactly as they were written: ``k`` and ``v`` ``[layers, kv_heads, tokens, head_dim]``.

        In another format than NATIVE these are codes, and their scales come with them (``format.layout``). Raises BlockUnavailable:
        MISSING without a readable file, CORRUPT or MODEL_CHANGED for a file that is not what ``expected`` says; such a file is moved to
        quarantine.
        """
        return self.examine(self.path(block_hash), lambda file, status: decode(file, status.st_size, block_hash, expected, archive_format))

    def examine(self, path: Path, look: Callable[[BufferedReader, os.stat_result], T]) -> T:
        """Open ``path`` and return what ``look`` makes of it; a file for which it raises BlockUnavailable is moved to quarantine.

        Raises that error, or BlockUnavailable(MISSING) without a readable file.
        """
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                try:
                    return look(file, status)
                except BlockUnavailable as error:
                    self._set_aside(path, status, error)
                    raise
        except OSError as error:
            self.note(path)
            raise BlockUnavailable(MissReason.MISSING, f"{path} cannot be read: {error.strerror or error}") from error

    def delete(self, block_hash: BlockHash) -> bool:
        """Remove the block's file and its results, and return whether there was a block. Its row must be gone already."""
        path = self.path(block_hash)
        gone = self._remove(path)
        if path.parent.is_dir():
            for result in path.parent.glob(f"{path.stem}.*{SUFFIX}"):
                self._remove(result)
        return gone

    def erase(self, block_hash: BlockHash) -> bool:
        """Delete the block, and from quarantine what was damaged of it: what somebody wants gone is nowhere to be read."""
        for aside in self._quarantine.glob(f"*-{self.path(block_hash).stem}.*"):
            aside.unlink(missing_ok=True)
        return self.delete(block_hash)

    def sweep(
        self, known: Callable[[list[BlockHash]], Collection[BlockHash]], *, min_age_s: float, temp_age_s: float | None = None
    ) -> SweepReport:
        """Remove blocks, and results of blocks, that ``known`` does not return when older than ``min_age_s`` seconds; count bytes anew.

        Temporary files go when older than ``temp_age_s``, if not given than ``min_age_s``: other processes may be writing results. 0 is for
        moments when nobody writes; else the age must exceed what a write and its commit may take.
        """
        orphans = temps = 0
        for entry in self._entries():
            try:
                age = time.time() - entry.stat().st_mtime
            except FileNotFoundError:
                continue  # a temporary file that was renamed just now
            temp = entry.name.endswith(TEMP_SUFFIX)
            if age < (temp_age_s if temp and temp_age_s is not None else min_age_s):
                continue
            if temp:
                Path(entry.path).unlink(missing_ok=True)
                temps += 1
            elif (named := parse_name(entry.name)) is not None and not known([named[0]]):
                orphans += self._remove(Path(entry.path))
        self._count()  # somebody else may have removed or damaged files
        return SweepReport(orphans, temps)

    def check_integrity(self) -> list[str]:
        """Return the broken rules: the counts of bytes. For moments when nothing is being written.

        Results that other processes add or set aside are theirs to do, so the results counted may be others than those that are there.
        """
        return self.sizes.check_integrity(self._list())

    def _count(self) -> None:
        with self._lock:
            self.sizes = FileSizes(self._list())

    def _list(self) -> dict[str, int]:
        found = {}
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):  # another process set it aside just now
                found[entry.name] = entry.stat().st_size
        return found

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        for directory in sorted(self.root.iterdir()):
            if directory.is_dir():
                with os.scandir(directory) as entries:
                    yield from (entry for entry in entries if entry.is_file(follow_symlinks=False))

    def _is_sound(self, block: BlockFile) -> bool:
        if not self.exists(block.hash):
            return False
        try:
            self.read(block.hash, block.header, block.format)
        except BlockUnavailable:
            return False  # and set aside, so it is written anew
        return True

    def _write_temp(self, block: BlockFile, temps: list[tuple[Path, Path]]) -> None:
        write_temp(self.path(block.hash), encode(block), temps)

    def _publish(self, temp: Path, target: Path) -> None:
        with self._lock:
            temp.replace(target)
            self.sizes.put(target.name, target.stat().st_size)
        faults.point("blocks.after_rename")

    def _remove(self, path: Path) -> bool:
        with self._lock:
            self.sizes.put(path.name, None)
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            return True

    def _set_aside(self, path: Path, seen: os.stat_result, error: BlockUnavailable) -> None:
        """Move the file that was read, and not one that has replaced it since, to quarantine."""
        _log.warning("block file %s: %s", path, error)
        with self._lock:
            try:
                if not os.path.samestat(path.stat(), seen):
                    return
                path.replace(self._quarantine / f"{time.time_ns()}-{path.name}")
                self.sizes.put(path.name, None)
                for old in sorted(self._quarantine.iterdir())[:-MAX_QUARANTINED]:
                    old.unlink()
            except OSError as failure:
                _log.warning("block file %s could not be moved to quarantine: %s", path, failure)  # it will be refused again
