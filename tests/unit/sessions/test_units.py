from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from agentmem.compression.recipe import SINKS, Recipe
from agentmem.memory.hashing import Chain
from agentmem.memory.sealed import SealedMemory, SealedUnit
from agentmem.sessions.units import MAX_UNIT_TOKENS, UnitShape, jobs_of, sealed_upto, units_of
from agentmem.types import BlockHash, Turn, TurnState

SHAPE = UnitShape(16)  # 64 recent tokens are 4 blocks
RECIPE = Recipe()


def turns(*lengths: int, open_last: bool = False) -> list[Turn]:
    """Return ended turns of so many tokens, all different; with ``open_last`` the last goes on."""
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    made = [
        Turn(index, token_ids=tuple(range(end - n, end)), state=TurnState.SEALED)
        for index, (n, end) in enumerate(zip(lengths, ends, strict=True))
    ]
    return [*made[:-1], replace(made[-1], state=TurnState.OPEN)] if open_last else made


def hashes(made: list[Turn]) -> list[BlockHash]:
    return Chain(BlockHash(b"r" * 32), 16, [token for turn in made for token in turn.token_ids]).hashes


def bounds(made: list[Turn], shape: UnitShape = SHAPE) -> list[tuple[int, int]]:
    return [(unit.start, unit.stop) for unit in units_of(made, shape)]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ((), []),
        ((0,), []),
        ((0, 1), []),  # a one-token turn
        ((63,), []),  # shorter than the recent window
        ((79,), []),  # four full blocks and a part: all recent
        ((80,), [(0, 1)]),
        ((0, 200), [(0, 8)]),
        ((100, 200, 1, 2), [(0, 2), (2, 14)]),  # small turns move nothing
        ((100, 200, 10, 10), [(0, 2), (2, 14), (14, 15), (15, 16)]),
    ],
)
def test_units_leave_the_recent_window(lengths: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    """Each turn seals its blocks up to 64 tokens before its end, and what an earlier turn left."""
    assert expected == bounds(turns(*lengths))


def test_an_open_turn_waits() -> None:
    """Tokens of a turn that has not ended are not sealed."""
    assert [(0, 2)] == bounds(turns(100, 500, open_last=True))


def test_long_units_are_split() -> None:
    """No unit has more than 4,096 tokens; the cuts do not depend on what comes later."""
    size = MAX_UNIT_TOKENS // 16
    made = turns(2 * MAX_UNIT_TOKENS + 160)
    assert [(0, size), (size, 2 * size), (2 * size, 2 * size + 6)] == bounds(made)
    assert bounds(made) == bounds([*made, *turns(0, 40)[1:]])[:3]


def test_a_wide_window_stays() -> None:
    """What a sliding window covers is recent too."""
    assert 7 == UnitShape(16, 100).recent_blocks
    assert [(0, 5)] == bounds(turns(200), UnitShape(16, 100))


def test_large_blocks_make_units_of_one() -> None:
    """A block of more tokens than a unit may have is a unit of its own."""
    assert [(0, 1), (1, 2)] == bounds(turns(3 * 5000), UnitShape(5000))


@pytest.mark.parametrize("seed", range(20))
def test_units_are_a_prefix_that_only_grows(seed: int) -> None:
    """For any turns the units follow each other from block 0 on, leave the window, and are those of the turns before, plus more."""
    chance = random.Random(seed)
    made = turns(*(chance.choice((0, 1, 15, 16, 17, 64, 300, 5000)) for _ in range(12)))
    for count in range(len(made) + 1):
        units = bounds(made[:count])
        assert units == bounds(made)[: len(units)]
        assert [stop for _, stop in units][:-1] == [start for start, _ in units][1:]
        assert all(0 < stop - start <= MAX_UNIT_TOKENS // 16 for start, stop in units)
        length = sum(len(turn.token_ids) for turn in made[:count])
        assert not units or (units[0][0] == 0 and units[-1][1] * 16 <= length - 64)


def test_jobs_name_their_blocks_and_their_anchor() -> None:
    """The first unit is the anchor of all later ones; the prelude is protected, and the sinks where it is shorter."""
    made = turns(100, 200, 100)
    jobs = jobs_of(made, hashes(made), SHAPE, RECIPE, 0.25)
    assert hashes(made)[:21] == [name for job in jobs for name in job.blocks]
    assert [0, 32, 14 * 16] == [job.start for job in jobs]
    assert [None, (jobs[0].block, jobs[0].name), (jobs[0].block, jobs[0].name)] == [job.anchor for job in jobs]
    assert {(100, 0.25, RECIPE)} == {(job.protect, job.scale, job.recipe) for job in jobs}
    assert SINKS == jobs_of(turns(0, 200), hashes(turns(0, 200)), SHAPE, RECIPE, 1.0)[0].protect
    assert [] == jobs_of([], [], SHAPE, RECIPE, 1.0)


def test_forks_have_the_same_jobs() -> None:
    """Sessions that share their first turns share the jobs of these turns; another recipe has other names."""
    one, other = turns(100, 200, 100), [*turns(100, 200), Turn(2, token_ids=(7,) * 300, state=TurnState.SEALED)]
    assert jobs_of(one, hashes(one), SHAPE, RECIPE, 1.0)[:2] == jobs_of(other, hashes(other), SHAPE, RECIPE, 1.0)[:2]
    changed = jobs_of(one, hashes(one), SHAPE, replace(RECIPE, keep=0.2), 1.0)
    assert not {job.name for job in changed} & {job.name for job in jobs_of(one, hashes(one), SHAPE, RECIPE, 1.0)}


def test_sealed_upto_keeps_whole_units() -> None:
    """A rollback or a fork keeps the units that lie in what it keeps, of the same blocks."""
    made = hashes(turns(100, 200))
    keep = torch.zeros(1, 1, 1, dtype=torch.int32)
    units = tuple(
        SealedUnit(start, stop, keep, torch.zeros(1, 1, stop - start, 8, dtype=torch.uint8)) for start, stop in ((0, 32), (32, 224))
    )
    memory = SealedMemory(tuple(made[:14]), units)

    def kept(tokens: int, names: list[BlockHash] = made) -> tuple[int, int] | None:
        found = sealed_upto(memory, names, tokens, 16)
        return None if found is None else (found.length, len(found.blocks))

    assert (224, 14) == kept(224) == kept(1000)
    assert (32, 2) == kept(223) == kept(32)
    assert kept(31) is None
    assert (32, 2) == kept(224, [*made[:5], BlockHash(b"x" * 32), *made[6:]])
    assert kept(224, made[:1]) is None
    assert sealed_upto(None, made, 224, 16) is None
