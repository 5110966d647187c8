"""The archive's mapped and quantised blocks, its results, and the counts of its tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.stores import BLOCK_QUOTA, HEADER, SESSION, TENANT, digest, session, stored, turn

from agentmem.errors import StorageFailed
from agentmem.stores import Archive, ArchiveFormat, BlockFiles, BlockHeader, BlockUnavailable, Ledger, SealFiles
from agentmem.stores.archive import QUOTA_FULL
from agentmem.stores.format import payload_bytes
from agentmem.types import BlockHash, MissReason, SessionId, Tier

torch.set_num_threads(1)

NAME = "0f" * 16
RESULT = {"codes": torch.arange(200, dtype=torch.uint8).repeat(15)}  # 3,000 bytes


class Stores:
    """Archive, ledger and seal files of one server, with one session."""

    def __init__(
        self,
        state: Path,
        archive_format: ArchiveFormat = ArchiveFormat.NATIVE,
        *,
        host_bytes: int = 0,
        disk_bytes: int = 10**9,
        header: BlockHeader = HEADER,
    ) -> None:
        self.ledger = Ledger(state / "meta.sqlite")
        self.files = BlockFiles(state / "blocks", quarantine=state / "quarantine")
        self.archive = Archive(
            self.files, self.ledger, header=header, host_bytes=host_bytes, disk_bytes=disk_bytes, archive_format=archive_format
        )
        self.seal = SealFiles(self.files.root, header, archive_format, files=self.files)
        self.header = header
        self.ledger.create_session(session(), [])
        self.n_turns = 0

    def commit(self, *names: str) -> None:
        """Commit the session's next turn with the blocks of ``names``."""
        blocks = [stored(name, header=self.header) for name in names]
        self.archive.commit(TENANT, SESSION, 1, turn(self.n_turns), blocks)
        self.n_turns += 1


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Stores]]:
    """Return a function that opens stores, which must be sound when the test ends."""
    opened: list[Stores] = []

    def make(*arguments: ArchiveFormat, **options: int | BlockHeader) -> Stores:
        opened.append(Stores(tmp_path / str(len(opened)), *arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for stores in opened:
        stores.archive.check_integrity()
        stores.ledger.close()


def reason(read: Callable[[BlockHash], object], name: str) -> MissReason:
    """Return why ``read`` refuses the block of ``name``."""
    with pytest.raises(BlockUnavailable) as caught:
        read(digest(name))
    return caught.value.reason


def test_map_reads_the_file_and_counts(make: Callable[..., Stores]) -> None:
    """A block without host memory is mapped from its file; bytes are counted while it is used, and the host tier stays empty."""
    stores = make()
    stores.commit("a")
    block = stores.archive.map(digest("a"))
    assert (Tier.DISK, True, True) == (block.tier, torch.equal(stored("a").k, block.k), block is stores.archive.map(digest("a")))
    stats = stores.archive.stats()
    assert (HEADER.payload_bytes, 2, 0, 0, 0) == (
        stats.mapped_bytes,
        stats.mapped_disk,
        stats.mapped_host,
        stats.loaded_disk,
        stats.host_blocks,
    )
    del block
    assert 0 == stores.archive.stats().mapped_bytes


def test_map_takes_host_memory_first(make: Callable[..., Stores]) -> None:
    """A block in host memory is given from there, without a mapping, and keeps its rows after it has left the tier."""
    stores = make(host_bytes=HEADER.payload_bytes)
    stores.commit("a")
    block = stores.archive.map(digest("a"))
    assert (Tier.HOST, ArchiveFormat.NATIVE, ()) == (block.tier, block.format, block.scales)
    stores.commit("b")
    assert torch.equal(stored("a").v, block.v)
    assert Tier.DISK == stores.archive.map(digest("a")).tier
    stats = stores.archive.stats()
    assert (1, 1, 1, 1) == (stats.mapped_host, stats.mapped_disk, stats.evicted_host, stats.host_blocks)


def test_map_gives_the_reasons_of_load(make: Callable[..., Stores]) -> None:
    """NEW, EVICTED, MISSING and CORRUPT are told apart, counted, and the promise of a lost block is taken back."""
    stores = make()
    stores.commit("evicted", "missing", "corrupt")
    stores.ledger.drop_blocks([digest("evicted")])
    stores.files.path(digest("missing")).unlink()
    path = stores.files.path(digest("corrupt"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    expected = [MissReason.NEW, MissReason.EVICTED, MissReason.MISSING, MissReason.CORRUPT]
    assert expected == [reason(stores.archive.map, name) for name in ("new", "evicted", "missing", "corrupt")]
    assert dict.fromkeys(expected, 1) == stores.archive.stats().unavailable
    assert not stores.ledger.block_rows(map(digest, ["missing", "corrupt"]))
    stores.archive.sweep(min_age_s=0)


def test_mapping_marks_a_block_as_used(make: Callable[..., Stores]) -> None:
    """A block whose rows are read is not the first to be evicted."""
    stores = make(disk_bytes=2 * BLOCK_QUOTA)
    stores.ledger.create_session(session("other"), [])
    stores.commit("a")
    stores.archive.commit(TENANT, SessionId("other"), 1, turn(0), [stored("b")])
    stores.archive.map(digest("a"))
    stores.archive.commit(TENANT, SessionId("other"), 1, turn(1), [stored("c")])
    assert [True, False] == [stores.archive.contains(digest(name)) for name in "ab"]


def test_block_evicted_under_a_live_mapping(make: Callable[..., Stores]) -> None:
    """An eviction drops file, row and results; the mapping stays readable, the next one says EVICTED, and the ledger keeps the turns."""
    stores = make(disk_bytes=BLOCK_QUOTA)
    stores.commit("a")
    stores.seal.write(digest("a"), NAME, RESULT)
    block = stores.archive.map(digest("a"))
    stores.commit("b")
    assert torch.equal(stored("a").k, block.k)
    assert MissReason.EVICTED == reason(stores.archive.map, "a")
    assert not stores.seal.exists(digest("a"), NAME)
    assert [turn(0), turn(1)] == stores.ledger.turns(TENANT, SESSION)
    stats = stores.archive.stats()
    assert (1, 1, 0) == (stats.evicted, stats.disk_blocks, stats.result_bytes)


def test_eviction_of_everything_never_drops_the_ledger(make: Callable[..., Stores]) -> None:
    """Turn after turn through a quota of one block: every turn stays, only the last block does."""
    stores = make(disk_bytes=BLOCK_QUOTA)
    for number in range(8):
        stores.commit(str(number))
    assert [turn(index) for index in range(8)] == stores.ledger.turns(TENANT, SESSION)
    assert (8, 1, 7) == (stores.ledger.stats().turns, stores.ledger.stats().blocks, stores.archive.stats().evicted)


def test_results_count_in_the_quota(make: Callable[..., Stores]) -> None:
    """Results take room like blocks: a block that would have fitted displaces an older one together with its result."""
    stores = make(disk_bytes=2 * BLOCK_QUOTA + 1000)
    stores.commit("a")
    stores.seal.write(digest("a"), NAME, RESULT)
    stores.seal.write(digest("a"), "1" + NAME[1:], RESULT)
    used = stores.archive.stats()
    assert used.result_bytes > 6000
    assert used.disk_used == sum(path.stat().st_size for path in stores.files.root.rglob("*") if path.is_file())
    stores.commit("b")
    stats = stores.archive.stats()
    assert (1, 0) == (stats.evicted, stats.result_bytes)
    assert stats.disk_used <= stats.disk_bytes


def test_results_of_held_blocks_fill_the_quota(make: Callable[..., Stores]) -> None:
    """When results of what is held leave no room, a store is refused by naming the quota, as with blocks."""
    stores = make(disk_bytes=BLOCK_QUOTA + 2000)
    stores.commit("a")
    stores.seal.write(digest("a"), NAME, RESULT)
    stores.archive.hold([digest("a")])
    with pytest.raises(StorageFailed) as caught:
        stores.commit("b")
    assert QUOTA_FULL == caught.value.reason
    stores.archive.release([digest("a")])
    stores.commit("b")


def test_deleted_session_takes_its_results_along(make: Callable[..., Stores]) -> None:
    """Erasing a session's blocks leaves neither file nor byte."""
    stores = make()
    stores.commit("a", "b")
    for name in "ab":
        stores.seal.write(digest(name), NAME, RESULT)
    assert 2 == stores.archive.erase(stores.ledger.delete_session(TENANT, SESSION))
    assert (0, []) == (stores.archive.stats().disk_used, [path for path in stores.files.root.rglob("*") if path.is_file()])


@pytest.mark.parametrize("archive_format", [ArchiveFormat.INT8, ArchiveFormat.INT4])
def test_quantised_archive_restores_nothing_exactly(make: Callable[..., Stores], archive_format: ArchiveFormat) -> None:
    """An exact load says QUANTISED, by name, and keeps the promise; a mapping and the seal files serve the block."""
    stores = make(archive_format, host_bytes=10**6)
    stores.commit("a")
    for _ in range(2):
        assert MissReason.QUANTISED == reason(stores.archive.load, "a")
    assert (True, True) == (stores.archive.contains(digest("a")), digest("a") in stores.ledger.block_rows([digest("a")]))
    block = stores.archive.map(digest("a"))
    assert (archive_format, Tier.DISK, 4) == (block.format, block.tier, len(block.scales))
    assert (stores.seal.block(digest("a"), 0)[0] - stored("a").k).abs().max() < 0.5
    stats = stores.archive.stats()
    assert (0, {MissReason.QUANTISED: 2}) == (stats.host_blocks, stats.unavailable)


def test_quantised_archive_tells_a_lost_block_from_a_quantised_one(make: Callable[..., Stores]) -> None:
    """Without a file an exact load says MISSING, not QUANTISED, and the block can be stored anew."""
    stores = make(ArchiveFormat.INT8)
    stores.commit("a")
    stores.files.path(digest("a")).unlink()
    assert [MissReason.MISSING, MissReason.EVICTED] == [reason(stores.archive.load, "a") for _ in range(2)]
    stores.commit("a")
    assert MissReason.QUANTISED == reason(stores.archive.load, "a")


def test_damaged_quantised_file_is_found_at_commit(make: Callable[..., Stores]) -> None:
    """A commit verifies a quantised file that is there, and writes a damaged one anew."""
    stores = make(ArchiveFormat.INT4)
    stores.commit("a")
    path = stores.files.path(digest("a"))
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(BlockUnavailable, match="checksum"):
        stores.seal.block(digest("a"), 0)
    path.write_bytes(sound[: len(sound) // 2])
    stores.commit("a")
    assert torch.isfinite(stores.seal.block(digest("a"), 0)[0]).all()


@pytest.mark.parametrize(("archive_format", "share"), [(ArchiveFormat.INT8, 0.5625), (ArchiveFormat.INT4, 0.3125)])
def test_bytes_of_quantised_blocks(make: Callable[..., Stores], archive_format: ArchiveFormat, share: float) -> None:
    """Of a bf16 block of SmolLM2's shape 8 bits take 9/16 and 4 bits 5/16, scales included, and the quota counts these bytes."""
    header = replace(HEADER, dtype="bfloat16", layers=30, kv_heads=3, n_tokens=64, head_dim=64)
    stores = make(archive_format, header=header)
    stores.commit("a")
    assert share == payload_bytes(header, archive_format) / header.payload_bytes
    assert stores.archive.stats().disk_used == pytest.approx(share * header.payload_bytes, abs=2048)


def test_results_of_a_lost_block_go_with_its_promise(make: Callable[..., Stores]) -> None:
    """A block that is found damaged takes its results along, since nothing else would free their room before a sweep."""
    stores = make()
    stores.commit("a")
    stores.seal.write(digest("a"), NAME, RESULT)
    stores.files.path(digest("a")).write_bytes(b"damage")
    assert MissReason.CORRUPT == reason(stores.archive.load, "a")
    assert (False, 0) == (stores.seal.exists(digest("a"), NAME), stores.archive.stats().disk_used)


def test_quota_holds_more_quantised_blocks(make: Callable[..., Stores]) -> None:
    """The room that is made follows the size of quantised files: twice as many blocks fit."""
    stores = make(ArchiveFormat.INT4, disk_bytes=2 * BLOCK_QUOTA)
    stores.commit("a", "b", "c", "d")
    assert (4, 0) == (stores.archive.stats().disk_blocks, stores.archive.stats().evicted)
