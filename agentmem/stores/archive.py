"""The archive: host memory over block files over the ledger's promises. The one port through which K and V are kept."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from agentmem.errors import InternalError, StorageFailed
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.database import free_bytes
from agentmem.stores.format import payload_bytes
from agentmem.stores.host import HostTier, host_tensor
from agentmem.stores.ledger import Ledger
from agentmem.stores.mapped import MappedBlock, MappedBlocks
from agentmem.stores.records import (
    ArchiveFormat,
    ArchiveStats,
    BlockFile,
    BlockHeader,
    BlockRow,
    BlockUnavailable,
    LoadedBlock,
    StoredBlock,
    SweepReport,
)
from agentmem.types import BlockHash, MissReason, SessionId, TenantId, Tier, Turn

# A file is its payload, the safetensors header and room for long fingerprints and rope descriptions.
_HEADER_ROOM = 4096
T = TypeVar("T")
QUOTA_FULL = "QUOTA_FULL"  # reason of the StorageFailed that tells a quota from a disk that refuses


class Archive:
    """Thread safe. ``header`` is what every block of the running model has in common; its ``first_token`` is not used.

    Order of truth: a file is durable before its row exists, a row is gone before its file is. So a row never lacks its file,
    and a crash leaves at most files without rows, which ``sweep`` removes. A block that is held is neither evicted, erased nor
    swept: hold what a running session attends to, and what is between ``store`` and its commit (``commit`` does that itself).
    The lock guards counts, host tier and the removal of files; it is not held while tensors are read or written.
    """

    def __init__(
        self,
        files: BlockFiles,
        ledger: Ledger,
        *,
        header: BlockHeader,
        host_bytes: int,
        disk_bytes: int,
        archive_format: ArchiveFormat = ArchiveFormat.NATIVE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._ledger = ledger
        self._header = header
        self._disk_bytes = disk_bytes
        self._clock = clock
        self._lock = threading.RLock()
        self._format = archive_format
        # Host memory keeps what can be restored exactly. Quantised blocks are read from their mapped files alone.
        self._host = HostTier(host_bytes if archive_format is ArchiveFormat.NATIVE else 0)
        self._mapped = MappedBlocks(files, header, archive_format)
        self._block_bytes = payload_bytes(header, archive_format) + _HEADER_ROOM
        self._held: Counter[BlockHash] = Counter()
        self._erase_later: set[BlockHash] = set()  # erased while held
        self._used: set[BlockHash] = set()  # loaded since the ledger was last told
        self._reserved = 0  # bytes of files that are being written
        self._counts: Counter[str] = Counter()
        self._unavailable: Counter[MissReason] = Counter()

    # Writing

    def commit(self, tenant: TenantId, session_id: SessionId, epoch: int, turn: Turn, blocks: Sequence[StoredBlock]) -> list[BlockRow]:
        """Store ``blocks`` and then the turn that completes them, and return their rows. Errors of ``store`` and ``Ledger.put_turn``.

        From before the first byte until the commit the blocks are held, so that a concurrent delete, eviction or sweep
        cannot take a file away between the moment it was found to exist and the moment it is promised. When the commit fails,
        files that nobody promises or holds are removed again.
        """
        hashes = [block.hash for block in blocks]
        self.hold(hashes)
        try:
            rows = self.store(blocks)
            self._ledger.put_turn(tenant, session_id, epoch, turn, rows)
        except BaseException:
            with self._lock:
                self._erase_later.update(hashes)
            raise
        finally:
            self.release(hashes)
        return rows

    def store(self, blocks: Sequence[StoredBlock]) -> list[BlockRow]:
        """Write blocks to disk, durable on return, and return the rows that ``Ledger.put_turn`` has to commit.

        Makes room within the quota first. Raises StorageFailed when the disk refuses or everything else in the quota is held,
        InvalidInput for tensors of another dtype or shape than the header; then nothing was kept but older blocks may be evicted.
        """
        files = [BlockFile(block.hash, self._header_at(block.position), block.k, block.v, self._format) for block in blocks]
        reserved = self._reserve(blocks)
        try:
            sizes = self._files.write_all(files)
        except OSError as error:
            path = self._files.root
            raise StorageFailed(f"blocks cannot be written to {path}: {error} ({free_bytes(path)})") from error
        finally:
            with self._lock:
                self._reserved -= reserved
        with self._lock:
            self._counts["stored"] += len(blocks)
            for block in blocks if self._host.max_bytes else ():
                # A copy: the caller's tensors may be slices of a buffer that goes on growing.
                k, v = (host_tensor(self._header.shape, x.dtype).copy_(x.detach()) for x in (block.k, block.v))
                self._host.put(block.hash, k, v)
        return [BlockRow(b.hash, b.parent, b.tenant, size, b.position) for b, size in zip(blocks, sizes, strict=True)]

    def _reserve(self, blocks: Sequence[StoredBlock]) -> int:
        """Evict until the new files fit the quota, and count their bytes as used while they are written."""
        with self._lock:
            hashes = {block.hash for block in blocks}
            n_new = sum(not self._files.exists(block_hash) for block_hash in hashes)
            needed = n_new * self._block_bytes
            self._make_room(needed, keep=hashes)
            self._reserved += needed
            return needed

    def _make_room(self, needed: int, keep: set[BlockHash]) -> None:
        if needed > self._disk_bytes:  # checked first, so that nothing is evicted in vain
            raise StorageFailed(f"{needed} bytes of blocks do not fit storage.disk_bytes {self._disk_bytes}", reason=QUOTA_FULL)
        while (excess := self._files.bytes_used + self._reserved + needed - self._disk_bytes) > 0:
            count = -(-excess // self._block_bytes)
            self._tell_ledger()
            victims = self._ledger.lru_blocks(count, keep | self._held.keys())
            if not victims:
                used = self._files.bytes_used + self._reserved
                raise StorageFailed(
                    f"{needed} bytes of blocks do not fit storage.disk_bytes {self._disk_bytes}: {used} are used and held",
                    reason=QUOTA_FULL,
                )
            self._ledger.drop_blocks(victims)
            for block_hash in victims:
                self._files.delete(block_hash)
            self._counts["evicted"] += len(victims)

    def _tell_ledger(self) -> None:
        """Hand over which blocks were used. Lost in a crash: it decides the order of eviction, nothing else."""
        if self._used:
            self._ledger.touch_blocks(self._used, self._clock())
            self._used = set()

    # Reading

    def load(self, block_hash: BlockHash) -> LoadedBlock:
        """Return a block's K and V ``[layers, kv_heads, tokens, head_dim]``, exactly as stored. Never write to them.

        Raises BlockUnavailable: NEW (no turn refers to it), EVICTED (a turn does, its row is gone), MISSING (promised, but no
        file), CORRUPT, MODEL_CHANGED. After the last three the promise is taken back, so that the block can be stored anew.
        QUANTISED: the archive holds it at lower precision; ``map`` gives that.
        """
        kept = self._from_host(block_hash, "loaded_host")
        if kept is not None:
            return LoadedBlock(*kept, Tier.HOST)
        tensors = self._from_disk(block_hash, "loaded_disk", self._read_exact)
        with self._lock:
            self._host.put(block_hash, tensors["k"], tensors["v"])
        return LoadedBlock(tensors["k"], tensors["v"], Tier.DISK)

    def map(self, block_hash: BlockHash) -> MappedBlock:
        """Return a block to read rows of, in the archive's format: from host memory when it is there, or its file, mapped.

        Never write to it. It stays readable while it is referred to, also when its file is deleted. Raises BlockUnavailable as ``load``,
        QUANTISED apart.
        """
        kept = self._from_host(block_hash, "mapped_host")
        if kept is not None:
            return MappedBlock(block_hash, ArchiveFormat.NATIVE, *kept, tier=Tier.HOST)
        return self._from_disk(block_hash, "mapped_disk", self._mapped.map)

    def contains(self, block_hash: BlockHash) -> bool:
        """Return whether the block is in memory, or its file is there. Cheap. A quantised block is there, and ``load`` says QUANTISED."""
        with self._lock:
            return self._host.get(block_hash) is not None or self._files.exists(block_hash)

    def _from_host(self, block_hash: BlockHash, count: str) -> tuple[Tensor, Tensor] | None:
        with self._lock:
            kept = self._host.get(block_hash)
            if kept is not None:
                self._counts[count] += 1
                self._used.add(block_hash)
            return kept

    def _from_disk(self, block_hash: BlockHash, count: str, read: Callable[[BlockHash, int], T]) -> T:
        """Return what ``read`` makes of the block and its session position; keep the books of successes and failures."""
        try:
            block = self._read_promised(block_hash, read)
        except BlockUnavailable as error:
            with self._lock:
                self._unavailable[error.reason] += 1
            raise
        with self._lock:
            self._counts[count] += 1
            self._used.add(block_hash)
        return block

    def _read_promised(self, block_hash: BlockHash, read: Callable[[BlockHash, int], T]) -> T:
        row = self._ledger.block_row(block_hash)
        if row is None and self._ledger.was_referenced(block_hash):
            raise BlockUnavailable(MissReason.EVICTED, "the block was evicted from the disk")
        if row is None:
            raise BlockUnavailable(MissReason.NEW, "the block was never stored")
        try:
            return read(block_hash, row.position)
        except BlockUnavailable as error:
            self._take_back(block_hash, error)
            raise

    def _read_exact(self, block_hash: BlockHash, position: int) -> dict[str, Tensor]:
        if self._format is not ArchiveFormat.NATIVE and self._files.exists(block_hash):
            raise BlockUnavailable(MissReason.QUANTISED, f"the archive holds {self._format} copies; exact ones are computed again")
        return self._files.read(block_hash, self._header_at(position), self._format)

    def _take_back(self, block_hash: BlockHash, error: BlockUnavailable) -> None:
        """Drop row and results of a block whose file is gone, unless another session has written the file again meanwhile."""
        with self._lock:
            if self._files.exists(block_hash):
                return
            try:
                self._ledger.drop_blocks([block_hash])
                self._files.delete(block_hash)
            except StorageFailed as failure:  # a full disk must not turn a miss into a failed request
                error.add_note(f"and its row could not be dropped: {failure}")

    # Keeping and forgetting

    def hold(self, hashes: Iterable[BlockHash]) -> None:
        """Keep these blocks from being evicted, erased or swept until they are released as often as they were held."""
        with self._lock:
            self._held.update(hashes)

    def release(self, hashes: Iterable[BlockHash]) -> None:
        """Undo one ``hold``. Blocks that were erased meanwhile lose their files now. Raises InternalError for a block not held."""
        with self._lock:
            wanted = Counter(hashes)
            if not wanted <= self._held:
                raise InternalError(f"{(wanted - self._held).total()} blocks were released that are not held")
            self._held -= wanted
            due = self._erase_later - self._held.keys()
            if due:
                self.erase(due)

    def erase(self, hashes: Iterable[BlockHash]) -> int:
        """Remove blocks that the ledger no longer promises from memory and disk; return how many files went.

        Takes what ``Ledger.delete_session`` and ``truncate`` return. A block that has a row (again) stays; a block that is held
        goes when it is released.
        """
        with self._lock:
            wanted = set(hashes)
            self._erase_later -= wanted
            unpromised = wanted - self._ledger.block_rows(wanted)
            self._erase_later |= unpromised & self._held.keys()
            free = unpromised - self._held.keys()
            for block_hash in free:
                self._host.drop(block_hash)
            return sum(self._files.erase(block_hash) for block_hash in free)

    def sweep(self, *, min_age_s: float, temp_age_s: float | None = None) -> SweepReport:
        """Remove the files that interrupted writes left behind: see ``BlockFiles.sweep``. Blocks that are held stay."""
        with self._lock:
            return self._files.sweep(
                lambda hashes: self._ledger.block_rows(hashes) | (self._held.keys() & set(hashes)),
                min_age_s=min_age_s,
                temp_age_s=temp_age_s,
            )

    # The whole

    def host_bytes(self, hashes: Iterable[BlockHash]) -> int:
        """Return the bytes that these blocks take in the host tier now."""
        with self._lock:
            return sum(map(self._host.size_of, hashes))

    def stats(self) -> ArchiveStats:
        """Return use of the tiers and counts since the start."""
        with self._lock:
            return ArchiveStats(
                disk_used=self._files.bytes_used,
                disk_bytes=self._disk_bytes,
                host_used=self._host.bytes_used,
                host_bytes=self._host.max_bytes,
                host_blocks=len(self._host),
                held=len(self._held),
                stored=self._counts["stored"],
                loaded_host=self._counts["loaded_host"],
                loaded_disk=self._counts["loaded_disk"],
                evicted=self._counts["evicted"],
                unavailable=dict(self._unavailable),
                disk_blocks=self._files.sizes.num_blocks,
                result_bytes=self._files.sizes.result_bytes,
                mapped_bytes=self._mapped.bytes_mapped,
                mapped_host=self._counts["mapped_host"],
                mapped_disk=self._counts["mapped_disk"],
                evicted_host=self._host.num_evicted,
            )

    def check_integrity(self) -> None:
        """Raise InternalError naming every broken rule. Reads all rows; call it when nothing is being written."""
        with self._lock:
            rows = self._ledger.lru_blocks(self._ledger.stats().blocks, ())
            found = self._ledger.integrity() + self._host.check_integrity() + self._files.check_integrity()
            found += [f"block {h.hex()} has a row and no file" for h in rows if not self._files.exists(h)]
            found += [f"block {h.hex()} is held {n} times" for h, n in self._held.items() if n < 1]
        if found:
            raise InternalError("; ".join(found))

    def _header_at(self, position: int) -> BlockHeader:
        return replace(self._header, first_token=position)
