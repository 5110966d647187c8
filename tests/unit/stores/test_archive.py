"""The archive: tiers, quota, holds, and what a failure leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.stores import BLOCK_QUOTA, HEADER, SESSION, TENANT, digest, open_archive, session, stored, turn

from agentmem import faults
from agentmem.errors import InternalError, InvalidInput, StaleOwner, StorageFailed
from agentmem.stores import BlockFiles, BlockUnavailable, Ledger, StoredBlock, SweepReport
from agentmem.types import MissReason, SessionId, Tier

torch.set_num_threads(1)


class Stores:
    """Ledger and archive in one directory, with one session."""

    def __init__(self, state: Path, *, host_bytes: int = 0, disk_bytes: int = 10**9) -> None:
        self.state = state
        self.ledger, self.archive = open_archive(state, host_bytes=host_bytes, disk_bytes=disk_bytes)
        self.n_turns = 0
        self.ledger.create_session(session(), [])

    def commit(self, *blocks: StoredBlock) -> None:
        """Commit the session's next turn with ``blocks``."""
        self.archive.commit(TENANT, SESSION, 1, turn(self.n_turns), blocks)
        self.n_turns += 1

    def tier(self, name: str) -> Tier:
        """Load a block, compare its contents, and return where it came from."""
        block = self.archive.load(digest(name))
        assert torch.equal(stored(name).k, block.k)
        assert torch.equal(stored(name).v, block.v)
        return block.tier

    def reason(self, name: str) -> MissReason:
        """Return why a block cannot be loaded."""
        with pytest.raises(BlockUnavailable) as caught:
            self.archive.load(digest(name))
        return caught.value.reason

    def files(self) -> list[Path]:
        """Return all files below the blocks directory."""
        return [path for path in (self.state / "blocks").rglob("*") if path.is_file()]

    def path(self, name: str) -> Path:
        """Return a block's file."""
        return BlockFiles(self.state / "blocks", quarantine=self.state / "quarantine").path(digest(name))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Return stores without a host tier, which must be sound when the test ends."""
    stores = Stores(tmp_path)
    yield stores
    stores.archive.check_integrity()
    stores.ledger.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Stores]:
    """Return stores whose quota holds two blocks."""
    stores = Stores(tmp_path, disk_bytes=2 * BLOCK_QUOTA)
    yield stores
    stores.archive.check_integrity()
    assert stores.archive.stats().disk_used <= 2 * BLOCK_QUOTA
    stores.ledger.close()


def test_committed_block_is_loaded_from_disk(stores: Stores) -> None:
    """A committed block comes back bit by bit from the disk, after a restart too."""
    stores.commit(stored("a"), stored("b", 4))
    assert [Tier.DISK, Tier.DISK] == [stores.tier(name) for name in "ab"]
    stores.ledger.close()
    stores.ledger, stores.archive = open_archive(stores.state)
    assert [Tier.DISK, Tier.DISK] == [stores.tier(name) for name in "ab"]


def test_rows_say_what_was_stored(stores: Stores) -> None:
    """Store returns the rows to commit: hash, parent, tenant, position and the bytes of the file."""
    first, second = stored("a"), replace(stored("b", 4), parent=digest("a"))
    rows = stores.archive.store([first, second])
    found = [(r.hash, r.parent, r.tenant, r.position, r.n_bytes) for r in rows]
    sizes = [stores.path(name).stat().st_size for name in "ab"]
    assert [(digest("a"), None, TENANT, 0, sizes[0]), (digest("b"), digest("a"), TENANT, 4, sizes[1])] == found
    assert SweepReport(2, 0) == stores.archive.sweep(min_age_s=0)


def test_host_tier_answers_first(tmp_path: Path) -> None:
    """With room in host memory a stored block is not read from the disk, and a block read once is kept."""
    stores = Stores(tmp_path, host_bytes=2 * HEADER.payload_bytes)
    stores.commit(stored("a"), stored("b"), stored("c"))
    assert [Tier.HOST, Tier.HOST, Tier.DISK, Tier.HOST] == [stores.tier(name) for name in "bcaa"]
    stats = stores.archive.stats()
    assert (2, 2 * HEADER.payload_bytes, 3, 1) == (stats.host_blocks, stats.host_used, stats.loaded_host, stats.loaded_disk)
    stores.archive.check_integrity()
    stores.ledger.close()


def test_host_tier_keeps_a_copy(tmp_path: Path) -> None:
    """A caller that goes on writing to its tensors does not change what is kept."""
    stores = Stores(tmp_path, host_bytes=10**6)
    block = stored("a")
    stores.commit(block)
    block.k.zero_()
    assert Tier.HOST == stores.tier("a")
    stores.ledger.close()


def test_contains(tmp_path: Path) -> None:
    """A block is worth loading when it is in host memory or has a file."""
    stores = Stores(tmp_path, host_bytes=HEADER.payload_bytes)
    stores.commit(stored("on disk"), stored("in memory"))
    stores.path("in memory").unlink()
    assert [True, True, False] == [stores.archive.contains(digest(name)) for name in ("on disk", "in memory", "new")]
    stores.ledger.close()


def test_reasons(stores: Stores) -> None:
    """A load that fails says why, and the failures are counted by reason."""
    stores.commit(*map(stored, ["evicted", "missing", "corrupt"]))
    stores.ledger.drop_blocks([digest("evicted")])
    stores.path("missing").unlink()
    stores.path("corrupt").write_bytes(b"damage")
    reopened = open_archive(stores.state)[1]
    stores.archive = reopened
    expected = [MissReason.NEW, MissReason.EVICTED, MissReason.MISSING, MissReason.CORRUPT]
    assert expected == [stores.reason(name) for name in ("new", "evicted", "missing", "corrupt")]
    assert dict.fromkeys(expected, 1) == stores.archive.stats().unavailable
    assert not stores.ledger.block_rows(map(digest, ["missing", "corrupt"]))
    stores.archive.sweep(min_age_s=0)


def test_damaged_block_heals(stores: Stores) -> None:
    """A block that was found corrupt can be stored again and is then loaded."""
    stores.commit(stored("a"))
    data = bytearray(stores.path("a").read_bytes())
    data[-1] ^= 1
    stores.path("a").write_bytes(data)
    assert MissReason.CORRUPT == stores.reason("a")
    stores.commit(stored("a"))
    assert Tier.DISK == stores.tier("a")


def test_miss_stays_a_miss_when_the_ledger_is_full(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that cannot be dropped does not turn a missing block into a failed request."""

    def refuse(_: Sequence[bytes]) -> None:
        raise StorageFailed("full")

    stores.commit(stored("a"))
    stores.path("a").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(stores.ledger, "drop_blocks", refuse)
        assert MissReason.MISSING == stores.reason("a")
    assert MissReason.MISSING == stores.reason("a")
    assert MissReason.EVICTED == stores.reason("a")


def test_miss_does_not_take_back_a_file_that_is_there_again(stores: Stores) -> None:
    """A reader that came too early leaves the row of a block that was written since."""
    stores.commit(stored("a"))
    stores.archive._take_back(digest("a"), BlockUnavailable(MissReason.MISSING, "too early"))
    assert Tier.DISK == stores.tier("a")


def test_quota_evicts_the_oldest(small: Stores) -> None:
    """A third block displaces the one that was not used for longest; its row is gone and its reason is EVICTED."""
    small.ledger.create_session(session("other"), [])
    small.commit(stored("a"))
    small.archive.commit(TENANT, SessionId("other"), 1, turn(0), [stored("b")])
    assert Tier.DISK == small.tier("a")
    small.archive.commit(TENANT, SessionId("other"), 1, turn(1), [stored("c")])
    assert MissReason.EVICTED == small.reason("b")
    assert [Tier.DISK, Tier.DISK] == [small.tier(name) for name in "ac"]
    assert 1 == small.archive.stats().evicted


def test_held_blocks_are_not_evicted(small: Stores) -> None:
    """With everything held a store is refused by naming the quota; after release it works."""
    small.commit(stored("a"), stored("b"))
    small.archive.hold([digest("a"), digest("b")])
    with pytest.raises(StorageFailed, match=r"storage.disk_bytes"):
        small.archive.store([stored("c")])
    assert [Tier.DISK, Tier.DISK] == [small.tier(name) for name in "ab"]
    small.archive.release([digest("b")])
    small.commit(stored("c"))
    assert [Tier.DISK, Tier.DISK] == [small.tier(name) for name in "ac"]
    small.archive.release([digest("a")])


def test_batch_above_the_quota_is_refused(small: Stores) -> None:
    """More blocks than the quota can ever hold are StorageFailed."""
    with pytest.raises(StorageFailed, match="do not fit"):
        small.commit(*(stored(name) for name in "abc"))
    assert [] == small.files()


def test_batch_that_is_there_needs_no_room(small: Stores) -> None:
    """Storing again what is stored evicts nothing."""
    small.commit(stored("a"), stored("b"))
    small.commit(stored("a"), stored("b"))
    assert 0 == small.archive.stats().evicted


@pytest.mark.parametrize("point", ["blocks.write", "blocks.after_temp_write", "ledger.before_commit"])
def test_full_disk_is_storage_failed(stores: Stores, point: str) -> None:
    """ENOSPC at a file or at the ledger is StorageFailed naming path and free bytes; what was there stays, the next try works."""
    stores.commit(stored("old"))
    faults.arm(point, "enospc", 1)
    with pytest.raises(StorageFailed, match=rf"{stores.state}.*bytes free"):
        stores.commit(stored("a"))
    assert [stores.path("old")] == stores.files()
    assert [Tier.DISK] == [stores.tier("old")]
    assert MissReason.NEW == stores.reason("a")
    stores.commit(stored("a"))
    assert Tier.DISK == stores.tier("a")


def test_stale_owner_promises_nothing(stores: Stores) -> None:
    """A commit that the ledger refuses leaves neither file nor row."""
    stores.ledger.put_turn(TENANT, SESSION, 5, turn(0), [])
    with pytest.raises(StaleOwner):
        stores.archive.commit(TENANT, SESSION, 4, turn(1), [stored("a")])
    assert MissReason.NEW == stores.reason("a")
    assert ([], 0) == (stores.files(), stores.archive.stats().held)


def test_failed_commit_keeps_what_others_promise(stores: Stores) -> None:
    """A commit that fails removes only files that no row promises."""
    stores.commit(stored("a"))
    faults.arm("ledger.before_commit", "enospc", 1)
    with pytest.raises(StorageFailed):
        stores.commit(stored("a"), stored("b"))
    assert [stores.path("a")] == stores.files()
    assert Tier.DISK == stores.tier("a")


def test_wrong_shape_is_refused(stores: Stores) -> None:
    """Tensors of another shape than the model's are InvalidInput, and nothing is written."""
    with pytest.raises(InvalidInput, match="block k"):
        stores.commit(replace(stored("a"), k=torch.zeros(1)))
    assert [] == stores.files()


def test_erase_removes_what_is_not_promised(tmp_path: Path) -> None:
    """Deleted sessions' blocks leave disk and memory; a block that has a row stays; unknown ones count nothing."""
    stores = Stores(tmp_path, host_bytes=10**6)
    stores.ledger.create_session(session("other"), [])
    stores.commit(stored("a"), stored("shared"))
    stores.archive.commit(TENANT, SessionId("other"), 1, turn(0), [stored("shared")])
    gone = stores.ledger.delete_session(TENANT, SESSION)
    assert [digest("a")] == gone
    assert 1 == stores.archive.erase([*gone, digest("shared"), digest("unknown")])
    assert MissReason.NEW == stores.reason("a")
    assert Tier.HOST == stores.tier("shared")
    stores.archive.check_integrity()
    stores.ledger.close()


def test_held_block_is_erased_at_its_release(stores: Stores) -> None:
    """A block that somebody attends to goes when the last hold ends."""
    stores.commit(stored("a"))
    for _ in range(2):
        stores.archive.hold([digest("a")])
    assert 0 == stores.archive.erase(stores.ledger.delete_session(TENANT, SESSION))
    stores.archive.release([digest("a")])
    assert 1 == len(stores.files())
    stores.archive.release([digest("a")])
    assert [] == stores.files()


def test_block_that_is_promised_again_is_not_erased(stores: Stores) -> None:
    """Another session's commit of the same block, between delete and erase, keeps the file."""
    stores.ledger.create_session(session("other"), [])
    stores.commit(stored("a"))
    gone = stores.ledger.delete_session(TENANT, SESSION)
    stores.archive.commit(TENANT, SessionId("other"), 1, turn(0), [stored("a")])
    assert 0 == stores.archive.erase(gone)
    assert Tier.DISK == stores.tier("a")


def test_delete_during_a_commit_of_the_same_block(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delete between another session's store and its commit does not leave that commit with a row without a file."""
    stores.ledger.create_session(session("other"), [])
    stores.commit(stored("a"))
    put_turn = Ledger.put_turn

    def delete_first(*arguments: object) -> None:
        stores.archive.erase(stores.ledger.delete_session(TENANT, SESSION))
        put_turn(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "put_turn", delete_first)
        stores.archive.commit(TENANT, SessionId("other"), 1, turn(0), [stored("a")])
    assert Tier.DISK == stores.tier("a")


def test_release_without_hold_is_a_bug(stores: Stores) -> None:
    """Releasing what is not held raises InternalError and changes nothing."""
    stores.archive.hold([digest("a")])
    with pytest.raises(InternalError, match="1 blocks were released"):
        stores.archive.release([digest("a"), digest("b")])
    assert 1 == stores.archive.stats().held
    stores.archive.release([digest("a")])


def test_sweep_keeps_what_is_held(stores: Stores) -> None:
    """A sweep in the middle of a commit does not take the files that are about to be promised."""
    stores.archive.hold([digest("a")])
    stores.archive.store([stored("a"), stored("b")])
    assert SweepReport(1, 0) == stores.archive.sweep(min_age_s=0)
    assert [stores.path("a")] == stores.files()
    stores.archive.release([digest("a")])
    stores.archive.sweep(min_age_s=0)


def test_broken_promise_is_found(stores: Stores) -> None:
    """check_integrity names a row without a file, and a wrong count of bytes."""
    stores.commit(stored("a"))
    data = stores.path("a").read_bytes()
    stores.path("a").unlink()
    with pytest.raises(InternalError, match="and use 0; block .* has a row and no file"):
        stores.archive.check_integrity()
    stores.path("a").write_bytes(data)


def test_threads_store_and_load_the_same_blocks(tmp_path: Path) -> None:
    """Sessions that commit and load the same blocks at once, within a tight quota, break nothing."""
    stores = Stores(tmp_path, host_bytes=HEADER.payload_bytes, disk_bytes=40 * BLOCK_QUOTA)
    failures: list[BaseException] = []

    def work(n: int) -> None:
        name = SessionId(f"worker{n}")
        try:
            stores.ledger.create_session(session(name), [])
            for index in range(4):
                stores.archive.commit(TENANT, name, 1, turn(index), [stored(str(index)), stored(str(index + 1))])
                stores.tier(str(index))
            stores.archive.erase(stores.ledger.delete_session(TENANT, name))
        except BaseException as error:  # noqa: BLE001 - carried to the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
    assert (0, []) == (stores.archive.stats().held, stores.files())
    stores.archive.check_integrity()
    stores.ledger.close()
