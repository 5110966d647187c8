from __future__ import annotations

import pytest
import torch
from support.kv import BLOCK, SHAPE, chain, grown, labelled, labels, make_pool, pointers, read, write

from agentmem.errors import InternalError
from agentmem.memory.pool import KVPool, PoolFull


def used_rows(pool: KVPool) -> int:
    return pool.used_bytes // SHAPE.row_bytes


def test_a_fork_copies_nothing() -> None:
    """A fork reads the very memory of its source and costs no bytes until it goes on."""
    pool = make_pool(100)
    source = grown(pool, range(10))
    before = pool.used_bytes
    forks = [pool.fork(source, length) for length in (0, 1, 9, 10)]

    assert before == pool.used_bytes
    assert [[], *[pointers(pool, source)] * 3] == [pointers(pool, fork) for fork in forks]
    assert [labelled(range(n)) for n in (0, 1, 9, 10)] == [read(pool, fork) for fork in forks]
    pool.check_integrity()


def test_forks_that_go_on_do_not_disturb_each_other() -> None:
    """The first to append keeps the segment's tail, the others start a child; all read back their own tokens."""
    pool = make_pool(400)
    source = grown(pool, range(10), rows=20)
    fork = pool.fork(source, 6)
    twin = pool.fork(source, 10)
    for branch, tokens in ((source, [20, 21]), (fork, [30, 31, 32]), (twin, [40])):
        pool.reserve(branch, 5)
        write(pool, branch, tokens)

    assert labelled([*range(10), 20, 21]) == read(pool, source)
    assert labelled([*range(6), 30, 31, 32]) == read(pool, fork)
    assert labelled([*range(10), 40]) == read(pool, twin)
    pool.check_integrity()


def test_match_finds_the_longest_resident_prefix() -> None:
    """Published full blocks are found by hash, from the first one on, as far as they are equal."""
    pool = make_pool(100)
    tokens = list(range(11))
    source = grown(pool, tokens)

    assert [0, 1] == pool.publish(source, chain(tokens).hashes, 0)
    assert [] == pool.publish(source, chain(tokens).hashes, 0)
    assert all(pool.holds(name) for name in chain(tokens).hashes)
    found = pool.match(chain([*tokens[:9], 99, 98, 97]).hashes)
    assert labelled(tokens[:8]) == read(pool, found)
    assert pointers(pool, source) == pointers(pool, found)


@pytest.mark.parametrize(
    ("tokens", "salt", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], b"salt", 8),
        ([0, 1, 2, 3, 4, 5, 6, 9], b"salt", 4),
        ([9, 1, 2, 3, 4, 5, 6, 7], b"salt", 0),  # the second block's tokens are equal, its past is not
        ([0, 1, 2, 3, 4, 5, 6, 7], b"other", 0),
        ([0, 1, 2], b"salt", 0),
    ],
)
def test_a_block_matches_only_with_its_whole_past(tokens: list[int], salt: bytes, expected: int) -> None:
    """A block is shared only where every token before it is equal too, and only within a tenant."""
    pool = make_pool(100)
    source = grown(pool, range(8))
    pool.publish(source, chain(range(8)).hashes, 0)

    assert expected == pool.match(chain(tokens, salt).hashes).length


def test_a_block_stays_findable_while_anyone_holds_it() -> None:
    """A released session's blocks live on in the sessions that matched them, and are forgotten with the last."""
    pool = make_pool(100)
    names = chain(range(8)).hashes
    source = grown(pool, range(8))
    pool.publish(source, names, 0)
    other = pool.match(names[:1])
    pool.release(source)

    assert [True, False] == [pool.holds(name) for name in names]
    assert labelled(range(4)) == read(pool, other)
    pool.check_integrity()
    pool.release(other)
    assert not pool.holds(names[0])
    assert 0 == pool.used_bytes


def test_reserve_counts_the_room_that_the_branch_has() -> None:
    """A branch that may write on in its own segment is promised only what the segment lacks, first time and again."""
    pool = make_pool(100)
    branch = grown(pool, range(10), rows=20)
    for _ in range(2):
        pool.reserve(branch, 30)
        assert 40 == used_rows(pool)
    pool.set_idle(branch)
    assert 20 == used_rows(pool)
    pool.reserve(branch, 10)
    assert 20 == used_rows(pool)


def test_reserve_takes_over_the_tail_of_an_idle_owner() -> None:
    """A branch at the end of a segment whose owner is idle writes on there; the old owner then starts a child."""
    pool = make_pool(200)
    first = grown(pool, range(4), rows=10)
    second = pool.fork(first, 4)
    pool.set_idle(first)
    pool.reserve(second, 6)

    assert 10 == used_rows(pool)
    pool.reserve(first, 3)
    assert 13 == used_rows(pool)
    write(pool, first, [7, 8])
    write(pool, second, [9])
    assert (labelled([0, 1, 2, 3, 7, 8]), labelled([0, 1, 2, 3, 9])) == (read(pool, first), read(pool, second))
    pool.check_integrity()


def test_reserve_spills_the_least_recently_used() -> None:
    """When room is needed idle branches go, the one idle for longest first, and no more of them than needed."""
    pool = make_pool(30)
    a, b, c = (grown(pool, [i] * 10) for i in range(3))
    for branch in (b, a, c):
        pool.set_idle(branch)
    pool.reserve(pool.match([]), 15)

    assert [False, False, True] == [a.alive, b.alive, c.alive]
    assert 2 == pool.num_spilled


def test_a_busy_branch_is_never_spilled() -> None:
    """PoolFull is raised when only running branches are left, and nothing of theirs is lost."""
    pool = make_pool(20)
    busy = grown(pool, range(10))
    new = pool.match([])
    with pytest.raises(PoolFull):
        pool.reserve(new, 11)

    assert labelled(range(10)) == read(pool, busy)
    pool.check_integrity()


def test_nothing_is_spilled_in_vain() -> None:
    """A request that could not fit even alone with the running and the pinned spills no idle branch."""
    pool = make_pool(40)
    busy, idle, pinned = (grown(pool, range(10)) for _ in range(3))
    pool.set_idle(idle)
    rows = pool.pin(pinned, 0, 10)
    pool.release(pinned)
    with pytest.raises(PoolFull):
        pool.reserve(pool.match([]), 21)

    assert (True, True) == (busy.alive, idle.alive)
    pool.unpin(rows)
    pool.reserve(pool.match([]), 21)
    assert (True, False) == (busy.alive, idle.alive)
    pool.check_integrity()


def test_append_beyond_the_budget() -> None:
    """Rows that were not reserved are had while the budget lasts; then PoolFull, and the branch is as before."""
    pool = make_pool(12)
    branch = grown(pool, range(10))
    write(pool, branch, [10, 11])
    with pytest.raises(PoolFull):
        pool.append(branch, 1)

    assert labelled(range(12)) == read(pool, branch)
    pool.check_integrity()


def test_segments_grow_by_doubling_within_the_reserve() -> None:
    """One token at a time, memory moves a handful of times; ``expect`` saves even those."""
    pool = make_pool(2000)
    branch = pool.match([])
    pool.reserve(branch, 1000)
    places = set()
    for token in range(1000):
        write(pool, branch, [token])
        places.add(pool.spans(branch)[-1].segment.capacity)
    hinted = pool.match([])
    pool.reserve(hinted, 1000)
    write(pool, hinted, [0], expect=1000)

    assert [64, 128, 256, 512, 1000] == sorted(places)
    assert 1000 == pool.spans(hinted)[-1].segment.capacity
    assert labelled(range(1000)) == read(pool, branch)


def test_truncate_lets_rows_be_written_again() -> None:
    """What nobody else needs is overwritten in place; what a fork needs stays, and its names with it."""
    pool = make_pool(100)
    branch = grown(pool, range(8), rows=16)
    names = chain(range(8)).hashes
    pool.publish(branch, names, 0)
    fork = pool.fork(branch, 6)
    pool.truncate(branch, 3)

    assert [True, False] == [pool.holds(name) for name in names]
    pool.reserve(branch, 4)
    write(pool, branch, [50])
    assert labelled([0, 1, 2, 50]) == read(pool, branch)
    assert labelled(range(6)) == read(pool, fork)
    pool.truncate(fork, 0)
    assert [] == read(pool, fork)
    pool.check_integrity()


def test_truncate_into_a_parent_leaves_only_what_others_need() -> None:
    """Cut back past its own segment, a branch leaves there exactly the rows that a fork's child stands on."""
    pool = make_pool(400)
    root = grown(pool, range(10), rows=12)
    branch = pool.fork(root, 5)
    pool.reserve(branch, 10)
    write(pool, branch, range(10, 20))
    fork = pool.fork(branch, 8)
    pool.reserve(fork, 4)
    write(pool, fork, [30, 31])
    pool.truncate(branch, 4)

    pool.check_integrity()
    assert labelled([0, 1, 2, 3, 4, 10, 11, 12, 30, 31]) == read(pool, fork)
    assert labelled(range(4)) == read(pool, branch)


@pytest.mark.parametrize("length", [-1, 11])
def test_lengths_outside_the_branch_are_bugs(length: int) -> None:
    """Forking or truncating beyond the branch, or a released branch, is refused by name."""
    pool = make_pool(20)
    branch = grown(pool, range(10))
    for action in (pool.fork, pool.truncate):
        with pytest.raises(InternalError, match=f"length {length} is outside the branch's 10 tokens"):
            action(branch, length)
    pool.release(branch)
    pool.release(branch)
    with pytest.raises(InternalError, match="outside"):
        pool.fork(branch, 0)


def test_pinned_rows_outlive_their_branch() -> None:
    """Pinned rows can be read, in one part or several, after the branch is gone; unpinning frees them."""
    pool = make_pool(200)
    root = grown(pool, range(6), rows=8)
    branch = pool.fork(root, 5)
    pool.reserve(branch, 4)
    write(pool, branch, [10, 11, 12])
    whole, piece = pool.pin(branch, 0, 8), pool.pin(branch, 5, 7)
    pool.release(branch)
    pool.release(root)
    pool.check_integrity()

    assert labelled([0, 1, 2, 3, 4, 10, 11, 12]) == labels(*whole.tensors())
    assert [(10, 5), (11, 6)] == labels(*piece.tensors())
    assert 1 == len(piece.k_parts)
    pool.unpin(whole)
    pool.check_integrity()
    pool.unpin(piece)
    assert 0 == pool.used_bytes


def test_rows_pinned_are_not_overwritten() -> None:
    """A branch cut back below a pin goes on in a child, so that the pinned rows keep what they hold."""
    pool = make_pool(200)
    branch = grown(pool, range(8), rows=16)
    pinned = pool.pin(branch, 4, 8)
    pool.truncate(branch, 2)
    pool.reserve(branch, 4)
    write(pool, branch, [90, 91])

    assert [(4, 4), (5, 5), (6, 6), (7, 7)] == labels(*pinned.tensors())
    assert labelled([0, 1, 90, 91]) == read(pool, branch)
    pool.unpin(pinned)
    pool.check_integrity()


def test_spill_idle_releases_every_idle_branch() -> None:
    """All idle branches go at once and are counted; busy ones stay."""
    pool = make_pool(200)
    idle, busy = grown(pool, range(4)), grown(pool, range(4))
    pool.set_idle(idle)

    assert 1 == pool.spill_idle()
    assert (False, True) == (idle.alive, busy.alive)
    assert 1 == pool.num_spilled
    pool.set_idle(idle)
    assert 0 == pool.spill_idle()


def test_publishing_a_block_outside_the_branch_is_a_bug() -> None:
    """A branch whose path does not cover one of its own blocks is reported, not indexed."""
    pool = make_pool(20)
    branch = grown(pool, range(4))
    pool.release(branch)
    branch.length = BLOCK

    with pytest.raises(InternalError, match="block 0 lies outside"):
        pool.publish(branch, chain(range(4)).hashes, 0)


def test_integrity_names_the_problem() -> None:
    """A wrong sum of bytes is found and named."""
    pool = make_pool(20)
    grown(pool, range(4))
    pool.used_bytes += 1

    with pytest.raises(InternalError, match="used_bytes is not what segments and reserves add up to"):
        pool.check_integrity()


def test_appended_rows_have_every_layer() -> None:
    """What append hands out is one contiguous block of rows over all layers and heads."""
    pool = make_pool(20)
    branch = pool.match([])
    segment, row = pool.append(branch, 3)

    assert 0 == row
    assert (SHAPE.layers, SHAPE.kv_heads, 3, SHAPE.head_dim) == segment.k[:, :, row : row + 3].shape
    assert torch.float32 == segment.v.dtype
