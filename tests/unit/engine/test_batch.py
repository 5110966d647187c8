from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kv import grown, make_pool

from agentmem.engine.batch import StepBatch, Work, build_batch
from agentmem.engine.plan import PartCall
from agentmem.memory.pool import KVPool, PoolFull

CPU = torch.device("cpu")


def rows_of(call: PartCall) -> list[int]:
    return list(range(call.rows.start, call.rows.stop)) if isinstance(call.rows, slice) else call.rows.tolist()


def seen(batch: StepBatch) -> dict[int, list[int]]:
    """Return for each batch row the positions that the plan lets it attend to, as often as it does."""
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for call in batch.plan(0).every_call():
        where = rows_of(call)
        for offset, row in enumerate(where):
            visible = call.part.stop - call.part.start - (len(where) - 1 - offset if call.causal else 0)
            first = call.part.base + call.part.start
            rows[row] += range(first, first + visible)
    return rows


@given(seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_row_sees_its_whole_past_once(seed: int) -> None:
    """Whatever the tree of forks and the sizes of the chunks, a row attends to positions 0 to its own, each once (invariant 4)."""
    rng = random.Random(seed)
    pool = make_pool(5000)
    branches = [grown(pool, range(rng.randint(1, 20)), rows=rng.choice((20, 40)))]
    for _ in range(rng.randint(0, 6)):
        source = rng.choice(branches)
        branches.append(pool.fork(source, rng.randint(0, source.length)))
        if rng.random() < 0.7:
            pool.reserve(branches[-1], 10)
            pool.append(branches[-1], rng.randint(1, 10))
    picked = rng.sample(branches, rng.randint(1, len(branches)))
    before = [branch.length for branch in picked]
    batch = build_batch(pool, [Work(branch, [7] * rng.choice((1, 1, 2, 5))) for branch in picked], CPU)
    rows = seen(batch)

    assert list(range(batch.token_ids.shape[1])) == sorted(rows)
    assert [list(range(position + 1)) for position in batch.positions[0].tolist()] == [sorted(rows[row]) for row in sorted(rows)]
    assert before == [item.position for item in batch.slices]
    slots = [(call.slot, row) for call in batch.plan(0).every_call() for row in rows_of(call)]
    assert len(slots) == len(set(slots))
    assert batch.plan(0).n_slots == 1 + max(call.slot for call in batch.plan(0).every_call())


def three_forks(pool: KVPool) -> list[Work]:
    trunk = grown(pool, range(20))
    work = [Work(pool.fork(trunk, 20), [1]) for _ in range(3)]
    for item in work:
        pool.reserve(item.branch, 4)
    return work


def test_a_shared_past_is_one_call() -> None:
    """Sessions that decode after the same rows attend to them in one call for all (cascade), and each to its own part."""
    pool = make_pool(500)
    batch = build_batch(pool, three_forks(pool), CPU)
    first = batch.slices[0].view.parts[0].source
    shared = [call for call in batch.plan(0).every_call() if call.part.source is first and call.part.stop == 20]

    assert 1 == len(shared)
    assert [0, 1, 2] == rows_of(shared[0])
    assert 2 == batch.plan(0).n_slots


def test_a_single_token_needs_no_mask() -> None:
    """A decoding session without forks attends to one part, itself included, unmasked."""
    pool = make_pool(100)
    branch = grown(pool, range(9), rows=12)
    batch = build_batch(pool, [Work(branch, [5], (0,))], CPU)

    assert [(0, 10, False, 0)] == [(c.part.start, c.part.stop, c.causal, c.slot) for c in batch.plan(0).every_call()]
    assert 1 == batch.plan(0).n_slots
    assert ([[5]], [[9]], [0]) == (batch.token_ids.tolist(), batch.positions.tolist(), batch.logits_rows.tolist())


def test_a_chunk_is_two_parts() -> None:
    """A prefill chunk attends to its past unmasked and to itself causally."""
    pool = make_pool(100)
    branch = grown(pool, range(9), rows=12)
    batch = build_batch(pool, [Work(branch, [5, 6, 7])], CPU)

    assert [(0, 9, False, 0), (9, 12, True, 1)] == [(c.part.start, c.part.stop, c.causal, c.slot) for c in batch.plan(0).every_call()]
    assert torch.int64 == batch.logits_rows.dtype
    assert 0 == len(batch.logits_rows)


def test_cut_by() -> None:
    """A window hides something as soon as one token of the step stands a whole window after the first."""
    pool = make_pool(100)
    batch = build_batch(pool, [Work(pool.match([]), [1, 2]), Work(grown(pool, range(9), rows=12), [5, 6, 7])], CPU)

    assert [True, True, False, False] == [batch.cut_by(window) for window in (2, 11, 12, 13)]
    assert batch.cut_by(2)  # asked again, from memory


def test_a_full_pool_ends_the_step() -> None:
    """A step whose rows do not fit raises PoolFull."""
    pool = make_pool(10)

    with pytest.raises(PoolFull):
        build_batch(pool, [Work(pool.match([]), [1] * 11)], CPU)
