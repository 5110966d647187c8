"""Runs over a branch with holes: nobody attends to what lies in them, in any layer, part or kernel."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from support.engines import LONG, FakeArchive, Oracle, WatchedRunner, chain_of, done, ids, request, running

from agentmem.engine.batch import Work, build_batch
from agentmem.engine.engine import Engine
from agentmem.engine.run import EngineRequest, Run
from agentmem.engine.view import Part, _without, view_of
from agentmem.errors import InternalError
from agentmem.memory.hashing import Chain
from agentmem.memory.segment import Branch, Segment
from agentmem.memory.shape import KVShape
from agentmem.types import Fidelity, SamplingParams

HOLE = range(40, 55)


@pytest.fixture
async def engine(runner: WatchedRunner) -> AsyncIterator[Engine]:
    async with running(runner, archive=FakeArchive()) as engine:
        yield engine


async def filled(engine: Engine, tokens: list[int] = LONG) -> Branch:
    """Return a branch with the K and V of ``tokens``."""
    run = await done(engine, request(tokens, n=None))
    assert run.branch is not None
    return run.branch


def holed(branch: Branch, added: list[int], n: int | None = 8, **changes: object) -> EngineRequest:
    """Return a request that goes on after LONG with ``added`` and never attends to HOLE; its chain names no block."""
    chain = Chain(chain_of([]).root, sys.maxsize, [*LONG, *added])
    plain = request([*LONG[: HOLE.start], *LONG[HOLE.stop :], *added], n=n)
    settings = {"chain": chain, "branch": branch, "fidelity": Fidelity.RECALL, "holes": (HOLE,), "instead": plain} | changes
    return replace(plain, **settings)


async def overwrite(engine: Engine, branch: Branch, value: float) -> None:
    """Set K and V of the hole to ``value``."""

    def write() -> None:
        for part in view_of(branch, HOLE.stop).parts:
            rows = slice(max(HOLE.start - part.base, 0), min(HOLE.stop, part.base + part.stop) - part.base)
            part.source.k[:, :, rows] = value  # type: ignore[union-attr]
            part.source.v[:, :, rows] = value  # type: ignore[union-attr]

    await engine.call(write)


@pytest.mark.parametrize("n", [1, 12])
async def test_what_lies_in_a_hole_counts_nothing(engine: Engine, n: int) -> None:
    """Whatever K and V of the hole are, the reply is the same, and another one than with them; it is marked and nobody finds it."""
    replies = []
    for value in (0.0, 1e6):
        branch = await filled(engine)
        await overwrite(engine, branch, value)
        run = await done(engine, holed(branch, [5, 6, 7], n))
        replies.append(ids(run))
        assert (len(LONG), len(LONG) + 3 + n - 1) == (run.branch.approx_from, run.branch.length)  # type: ignore[union-attr]
        assert {} == run.decoded
        assert (len(LONG) - len(HOLE), 3) == (run.reuse_report().device, run.reuse_report().computed)
        assert len(LONG) + 3 - len(HOLE) == run.context_length
        await engine.call(engine.pool.release, run.branch)
        await engine.call(engine.pool.check_integrity)
    assert replies[0] == replies[1]


async def test_logits_are_those_of_masked_attention(engine: Engine, oracle: Oracle) -> None:
    """A step over a branch with a hole computes what the model computes when the hole's keys are masked, positions kept."""
    branch = await filled(engine)
    added = [5, 6, 7]

    def step() -> torch.Tensor:
        engine.pool.reserve(branch, len(added))
        work = Work(branch, added, range(len(added)), holes=(HOLE,))
        return engine.runner.forward(build_batch(engine.pool, [work], engine.pool.shape.device))

    ours = await engine.call(step)
    mask = torch.ones(1, len(LONG) + len(added))
    mask[0, HOLE.start : HOLE.stop] = 0
    model = oracle.model
    with torch.inference_mode():
        past = model(torch.tensor([LONG]), use_cache=True).past_key_values
        positions = torch.arange(len(LONG), len(LONG) + len(added))[None]
        theirs = model(torch.tensor([added]), past_key_values=past, attention_mask=mask, position_ids=positions).logits[0]
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


async def test_without_its_branch_the_other_request_is_done(engine: Engine, oracle: Oracle) -> None:
    """Where the branch is away when the run's turn comes, what was asked for instead is done: exactly, with no holes."""
    branch = await filled(engine)
    await engine.call(engine.pool.release, branch)
    asked = holed(branch, [5, 6, 7])
    run = await done(engine, asked)

    assert asked.instead is not None
    assert asked.instead is run.request
    assert oracle(asked.instead.chain.tokens[: run.prompt_length], 8) == ids(run)
    assert Fidelity.EXACT is run.request.fidelity
    assert run.branch is not None
    assert run.branch.approx_from is None


async def test_where_memory_is_short_the_other_request_is_done(engine: Engine, oracle: Oracle) -> None:
    """A branch that leaves no room for the reply is given up, rather than the reply."""
    branch = await filled(engine)
    engine.pool.budget_bytes = engine.pool.used_bytes
    asked = holed(branch, [5, 6, 7])
    room = engine.pool.budget_bytes // engine.pool.shape.row_bytes - len(LONG)
    run = await done(engine, replace(asked, sampling=SamplingParams(max_tokens=room + 1), max_length=len(LONG) + room + 4))
    assert oracle(run.request.chain.tokens[: run.prompt_length], 8) == ids(run)
    assert () == run.request.holes


async def test_a_run_without_an_alternative_says_so() -> None:
    """Holes without another request are a mistake of the caller's."""
    run = Run(replace(request([1, 2]), holes=(HOLE,)), asyncio.get_running_loop())
    with pytest.raises(InternalError):
        run.fall_back()


def test_a_hole_cuts_parts_in_all_ways() -> None:
    """Holes at the start, in the middle, at the end, over two parts and outside leave the other positions, once each."""
    rows = Segment(KVShape(1, 1, 4, torch.float32, torch.device("cpu")), None, 0, 16)
    parts = [Part(rows, 0, 10, 0), Part(rows, 2, 8, 8)]
    for hole in (range(3), range(4, 6), range(8, 13), range(12, 16), range(99, 120), range(16)):
        left = [piece for part in parts for piece in _without(part, hole)]
        positions = [part.base + row for part in left for row in range(part.start, part.stop)]
        assert [p for p in range(16) if p not in hole] == positions
