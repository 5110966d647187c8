"""Ledger and archive against a model made of dicts, under random histories."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.stores import BLOCK_QUOTA, HEADER, OTHER, TENANT, digest, open_archive, session, stored, turn

from agentmem import faults
from agentmem.errors import AlreadyExists, NotFound, StorageFailed
from agentmem.stores import ArchiveFormat, BlockUnavailable, SealFiles
from agentmem.types import BlockHash, MissReason, SessionId, TenantId, Turn

torch.set_num_threads(1)

QUOTA = 3 * BLOCK_QUOTA  # the largest commit fits, two do not
Key = tuple[TenantId, SessionId]
KEYS = st.tuples(st.sampled_from([TENANT, OTHER]), st.sampled_from([SessionId("x"), SessionId("y")]))
BLOCKS = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)


class StoresMachine(RuleBasedStateMachine):
    """``turns`` is what the ledger must hold, ``refs`` the names of the blocks of each turn."""

    @initialize(host_blocks=st.integers(0, 2))
    def open(self, host_blocks: int) -> None:
        """Start with one session of each tenant."""
        self.state = Path(tempfile.mkdtemp())
        self.host_bytes = host_blocks * HEADER.payload_bytes
        self.turns: dict[Key, list[Turn]] = {}
        self.refs: dict[Key, list[set[str]]] = {}
        self.reopen()
        self.create((TENANT, SessionId("x")))
        self.create((OTHER, SessionId("x")))

    @rule()
    def reopen(self) -> None:
        """Restart: everything is kept."""
        if hasattr(self, "ledger"):
            self.ledger.close()
        self.ledger, self.archive = open_archive(self.state, host_bytes=self.host_bytes, disk_bytes=QUOTA)
        self.archive.sweep(min_age_s=0)

    @rule(key=KEYS)
    def create(self, key: Key) -> None:
        """Create a session: an id is taken once per tenant."""
        if key in self.turns:
            with pytest.raises(AlreadyExists):
                self.ledger.create_session(session(key[1], tenant=key[0]), [])
            return
        self.ledger.create_session(session(key[1], tenant=key[0]), [turn(0)])
        self.turns[key], self.refs[key] = [turn(0)], [set()]

    @rule(key=KEYS, numbers=BLOCKS, again=st.booleans(), full=st.sampled_from(["", "", "blocks.write", "ledger.before_commit"]))
    def put_turn(self, key: Key, numbers: list[int], again: bool, full: str) -> None:
        """Commit a turn: it is added, or replaces the last one, or nothing happens because the disk is full."""
        tenant, name = key
        # Salted with the tenant, as real hashes are, and placed by the number.
        names = [f"{tenant} {n}" for n in numbers]
        blocks = [stored(block, 4 * n, tenant=tenant) for block, n in zip(names, numbers, strict=True)]
        turns = self.turns.get(key, [])
        index = max(0, len(turns) - 1) if again else len(turns)
        new = turn(index, f"{len(turns)} {numbers}")
        if full:
            faults.arm(full, "enospc", 1)
        try:
            self.archive.commit(tenant, name, 1, new, blocks)
        except NotFound:
            assert key not in self.turns
        except StorageFailed:
            assert full
        else:
            assert key in self.turns
            refs = self.refs[key]
            self.refs[key] = [*refs[:index], {*names} | (refs[index] if index < len(refs) else set())]
            self.turns[key] = [*turns[:index], new]
        finally:
            faults.disarm()

    @rule(source=KEYS, name=st.sampled_from([SessionId("x"), SessionId("y")]), data=st.data())
    def fork(self, source: Key, name: SessionId, data: st.DataObject) -> None:
        """Fork a session: the fork has the source's turns up to one of them."""
        target = (source[0], name)
        if source not in self.turns or target in self.turns:
            return
        at = data.draw(st.integers(0, len(self.turns[source]) - 1))
        self.ledger.fork_session(source[1], session(name, tenant=source[0], parent=source[1], parent_turn=at), at)
        self.turns[target], self.refs[target] = self.turns[source][: at + 1], [set(refs) for refs in self.refs[source][: at + 1]]

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), erase=st.booleans())
    def truncate(self, data: st.DataObject, erase: bool) -> None:
        """Rollback frees exactly the blocks that no turn is left to refer to."""
        key = data.draw(st.sampled_from(sorted(self.turns)))
        at = data.draw(st.integers(0, len(self.turns[key]) - 1))
        dropped = set().union(*self.refs[key][at + 1 :])
        self.turns[key], self.refs[key] = self.turns[key][: at + 1], self.refs[key][: at + 1]
        freed = self.ledger.truncate(*key, 1, at)
        assert {digest(name) for name in dropped - self.referenced()} == set(freed)
        self.erase_or_crash(freed, erase)

    @precondition(lambda self: self.turns)
    @rule(data=st.data(), erase=st.booleans())
    def delete(self, data: st.DataObject, erase: bool) -> None:
        """Delete frees exactly the blocks that no other session refers to."""
        key = data.draw(st.sampled_from(sorted(self.turns)))
        dropped = set().union(*self.refs.pop(key))
        del self.turns[key]
        freed = self.ledger.delete_session(*key)
        assert {digest(name) for name in dropped - self.referenced()} == set(freed)
        self.erase_or_crash(freed, erase)

    def erase_or_crash(self, freed: list[BlockHash], erase: bool) -> None:
        """Remove the files, or die before that and let the sweep find them."""
        if erase:
            self.archive.erase(freed)
        else:
            self.reopen()

    @rule(number=st.integers(0, 5), tenant=st.sampled_from([TENANT, OTHER]))
    def load(self, number: int, tenant: TenantId) -> None:
        """Load a block: it is what was stored, or EVICTED by the quota when a turn refers to it, otherwise NEW."""
        name = f"{tenant} {number}"
        try:
            block = self.archive.load(digest(name))
        except BlockUnavailable as error:
            assert error.reason == (MissReason.EVICTED if name in self.referenced() else MissReason.NEW)  # noqa: PT017
            return
        assert torch.equal(stored(name).k, block.k)
        assert torch.equal(stored(name).v, block.v)

    @rule()
    def damage(self) -> None:
        """Damage a file: it is refused, and gone from the promises."""
        paths = self.files()
        if not paths or self.host_bytes:
            return
        data = bytearray(paths[0].read_bytes())
        data[-1] ^= 1
        paths[0].write_bytes(data)
        with pytest.raises(BlockUnavailable) as caught:
            self.archive.load(digest_of(paths[0]))
        assert MissReason.CORRUPT == caught.value.reason

    @rule(data=st.data(), worker=st.booleans(), name=st.sampled_from(["a" * 32, "b" * 32]), full=st.booleans())
    def seal(self, data: st.DataObject, worker: bool, name: str, full: bool) -> None:
        """Write a result beside a block, in the server or in another process, or fail to because the disk is full."""
        paths = self.files()
        if not paths:
            return
        block_hash = digest_of(data.draw(st.sampled_from(paths)))
        files = None if worker else self.archive._files
        seal = SealFiles(self.state / "blocks", HEADER, ArchiveFormat.NATIVE, files=files)
        expected = {"codes": torch.arange(100, dtype=torch.uint8)}
        there = seal.exists(block_hash, name)
        if full:
            faults.arm("blocks.write", "enospc", 1)
        try:
            seal.write(block_hash, name, expected)
        except OSError:
            assert full
            assert not there
            return
        finally:
            faults.disarm()
        assert torch.equal(expected["codes"], seal.read(block_hash, name, {"codes": (torch.uint8, (None,))})["codes"])

    def files(self) -> list[Path]:
        """Return all block files."""
        return sorted(path for path in (self.state / "blocks").rglob("*") if path.is_file() and "." not in path.stem)

    def results(self) -> list[Path]:
        """Return all results' files, and whatever else there is."""
        return [path for path in (self.state / "blocks").rglob("*") if path.is_file() and "." in path.stem]

    def referenced(self) -> set[str]:
        """Return the names of all blocks that the model's turns refer to."""
        return set().union(*(refs for turns in self.refs.values() for refs in turns))

    @invariant()
    def agrees(self) -> None:
        """Compare: the ledger holds the model's turns and refs, files and rows are the same set, results have a block, the quota holds."""
        if not hasattr(self, "archive"):
            return
        self.archive.check_integrity()
        assert self.archive.stats().disk_used <= QUOTA
        hashes = set(map(digest_of, self.files()))
        assert hashes == self.ledger.block_rows(hashes)
        assert len(hashes) == self.ledger.stats().blocks == self.archive.stats().disk_blocks
        assert hashes >= {BlockHash(bytes.fromhex(path.name.partition(".")[0])) for path in self.results()}
        assert len(self.turns) == self.ledger.stats().sessions
        for key, turns in self.turns.items():
            assert turns == self.ledger.turns(*key)
            refs = {(n, digest(name)) for n, names in enumerate(self.refs[key]) for name in names}
            assert refs == {(n, block_hash) for n, block_hash, _ in self.ledger.session_blocks(*key)}

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.state)


def digest_of(path: Path) -> BlockHash:
    """Return the block that a file is named after."""
    return BlockHash(bytes.fromhex(path.stem))


StoresMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestStoresMachine = StoresMachine.TestCase
