from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
import torch
from support.engines import BLOCK, PATIENCE, FakeArchive
from support.kv import SHAPE

from agentmem.engine.restore import Restored, Restorer
from agentmem.memory.segment import Segment
from agentmem.stores.records import BlockUnavailable, LoadedBlock
from agentmem.types import BlockHash, MissReason, Tier

NAMES = [BlockHash(bytes([i]) * 32) for i in range(4)]


@pytest.fixture
def archive() -> FakeArchive:
    kept = FakeArchive()
    for index, name in enumerate(NAMES):
        rows = SHAPE.empty(BLOCK).fill_(index + 1)
        kept.blocks[name] = LoadedBlock(rows, -rows, Tier.HOST if index == 0 else Tier.DISK)
    return kept


@pytest.fixture
def restorer(archive: FakeArchive) -> Iterator[Restorer]:
    made = Restorer(archive, BLOCK)
    yield made
    archive.gate.set()
    made.close()


def restore(restorer: Restorer, segment: Segment, row: int = 3, wanted: Callable[[], bool] = lambda: True) -> Restored:
    result: Future[Restored] = Future()
    restorer.start(NAMES, segment, row, wanted, result.set_result)
    return result.result(PATIENCE)


@pytest.fixture
def segment() -> Segment:
    made = Segment(SHAPE, None, 0, 3 + 4 * BLOCK)
    made.k.zero_()
    made.v.zero_()
    return made


def test_blocks_land_in_order(restorer: Restorer, segment: Segment) -> None:
    """Every block fills its rows from the row given on, and is counted under the tier that it came from."""
    result = restore(restorer, segment)

    assert Restored(4, {Tier.HOST: BLOCK, Tier.DISK: 3 * BLOCK}) == result
    assert torch.equal(torch.arange(1.0, 5.0).repeat_interleave(BLOCK), segment.k[1, 0, 3:, 1])
    assert torch.equal(-segment.k, segment.v)


@pytest.mark.parametrize("reason", [MissReason.CORRUPT, MissReason.MISSING, MissReason.EVICTED, MissReason.MODEL_CHANGED])
def test_the_first_bad_block_ends_it(restorer: Restorer, archive: FakeArchive, segment: Segment, reason: MissReason) -> None:
    """Nothing after an unavailable block is loaded; the result says why."""
    archive.errors[NAMES[2]] = BlockUnavailable(reason, "why")
    result = restore(restorer, segment)

    assert (2, reason, "why") == (result.num_blocks, result.reason, result.detail)
    assert NAMES[:3] == archive.loads
    assert 0 == segment.k[:, :, 3 + 2 * BLOCK :].count_nonzero()


@pytest.mark.parametrize("broken", [OSError("bad sector"), ValueError("no header")])
def test_any_error_means_computing(restorer: Restorer, archive: FakeArchive, segment: Segment, broken: Exception) -> None:
    """An error nobody foresaw ends the restore like a corrupt block and is named in the detail."""
    archive.errors[NAMES[0]] = broken
    result = restore(restorer, segment)

    assert Restored(0, {}, MissReason.CORRUPT, f"{type(broken).__name__}: {broken}") == result


@pytest.mark.parametrize(("tokens", "dtype"), [(1, torch.float32), (BLOCK + 1, torch.float32), (BLOCK, torch.bfloat16)])
def test_a_block_of_another_shape_is_not_believed(
    restorer: Restorer, archive: FakeArchive, segment: Segment, tokens: int, dtype: torch.dtype
) -> None:
    """A block that would have to be broadcast or converted to fill its rows is treated as corrupt."""
    rows = SHAPE.empty(tokens).to(dtype)
    archive.blocks[NAMES[1]] = LoadedBlock(rows, rows, Tier.DISK)
    result = restore(restorer, segment)

    assert (1, MissReason.CORRUPT) == (result.num_blocks, result.reason)
    assert f"it holds {dtype}" in result.detail


def test_it_stops_when_not_wanted(restorer: Restorer, archive: FakeArchive, segment: Segment) -> None:
    """The caller is asked before every block; what was loaded by then counts."""
    answers = iter([True, True, False])
    result = restore(restorer, segment, wanted=lambda: next(answers))

    assert Restored(2, {Tier.HOST: BLOCK, Tier.DISK: BLOCK}) == result
    assert NAMES[:2] == archive.loads


def test_close_waits(restorer: Restorer, archive: FakeArchive, segment: Segment) -> None:
    """Closing lets a load under way end first."""
    done = threading.Event()
    archive.gate.clear()
    restorer.start(NAMES, segment, 0, lambda: True, lambda _: done.set())
    assert archive.loading.wait(PATIENCE)
    threading.Timer(0.05, archive.gate.set).start()
    restorer.close()

    assert done.is_set()
