from __future__ import annotations

import asyncio
import time

import pytest
from support.engines import BLOCK, chain_of, request
from support.kv import SHAPE

from agentmem.engine.run import EngineRequest, Run, RunState
from agentmem.engine.scheduler import Limits, Scheduler
from agentmem.errors import Overloaded
from agentmem.memory.pool import KVPool
from agentmem.types import FinishReason, Tier


def scheduler(rows: int = 1000, **limits: int) -> Scheduler:
    return Scheduler(KVPool(SHAPE, rows * SHAPE.row_bytes, BLOCK), Limits(**limits))


def run_of(asked: EngineRequest) -> Run:
    loop = asyncio.new_event_loop()
    loop.close()  # nobody reads: waking does nothing
    return Run(asked, loop)


def queued(books: Scheduler, *requests: EngineRequest) -> list[Run]:
    runs = [run_of(asked) for asked in requests]
    for run in runs:
        books.enqueue(run)
    return runs


def admit(books: Scheduler) -> list[Run]:
    admitted = books.admit()
    for run in admitted:
        books.begin(run)
    return admitted


def step(books: Scheduler) -> dict[Run, int]:
    """Do what a step does to the books; return how many tokens of each run it took."""
    taken = {}
    for run, work in books.plan():
        books.pool.append(work.branch, len(work.token_ids), work.expect)
        first, run.num_published = run.num_published, work.branch.length // BLOCK
        books.pool.publish(work.branch, run.chain.hashes, first)
        books.landed(run, run.chain.hashes[first : run.num_published])
        if work.logits:
            run.chain.extend([1])
        taken[run] = len(work.token_ids)
    books.pool.check_integrity()
    return taken


def finish(books: Scheduler, run: Run) -> None:
    books.drop(run)
    if run.branch is not None:
        books.pool.set_idle(run.branch)


def text(seed: int, length: int = 3 * BLOCK) -> list[int]:
    return [seed * 1000 + i for i in range(length)]


def test_tenants_take_turns() -> None:
    """One waiting run of each tenant is admitted in turn, however many one of them has sent."""
    books = scheduler(max_running=4)
    greedy = queued(books, *(request(text(i), tenant="greedy") for i in range(5)))
    modest = queued(books, *(request(text(10 + i), tenant=tenant) for i, tenant in enumerate("ab")))

    assert [greedy[0], *modest, greedy[1]] == list(books.waiting())[:4]
    assert [greedy[0], *modest, greedy[1]] == admit(books)
    assert 3 == books.num_waiting


def test_whoever_was_served_goes_to_the_back() -> None:
    """With room for one at a time, tenants alternate across rounds."""
    books = scheduler(max_running=1)
    queued(books, *(request(text(i), tenant="greedy") for i in range(3)), request(text(9), tenant="modest"))
    served = []
    for _ in range(4):
        (run,) = admit(books)
        served.append(run.request.tenant)
        finish(books, run)

    assert ["greedy", "modest", "greedy", "greedy"] == served
    assert 0 == books.num_waiting


def test_a_full_queue_refuses() -> None:
    """The run that finds the queue full gets Overloaded with both numbers and a time to come back; those before it stay."""
    books = scheduler(max_queue=2)
    queued(books, request(text(0)), request(text(1), tenant="other"))
    with pytest.raises(Overloaded, match="2 requests wait, the limit is 2") as caught:
        books.enqueue(run_of(request(text(2), tenant="third")))

    assert ("QUEUE_FULL", 1.0) == (caught.value.reason, caught.value.retry_after)
    assert 2 == books.num_waiting


def test_no_more_run_than_allowed() -> None:
    """One round of admission stops at the limit, runs that are about to restore included."""
    books = scheduler(max_running=2)
    runs = queued(books, *(request(text(i)) for i in range(4)))

    assert runs[:2] == books.admit()
    assert runs[:2] == sorted(books.active, key=runs.index)
    assert [] == books.admit()


def test_a_run_that_does_not_fit_waits() -> None:
    """Admission reserves the prompt and the longest reply; the first that lacks memory ends the round, also for smaller ones."""
    books = scheduler(rows=100)
    first, second, small = queued(books, request(text(0), n=40), request(text(1), n=40), request(text(2), n=1))

    assert [first] == admit(books)
    assert (24 + 40) * SHAPE.row_bytes == books.pool.used_bytes
    assert RunState.WAITING is second.state
    step(books)
    assert [] == admit(books)
    finish(books, first)
    assert [second, small] == admit(books)


def test_idle_sessions_make_room() -> None:
    """A run that needs their memory spills idle branches, and only as many as it needs."""
    books = scheduler(rows=100)
    old = queued(books, request(text(0), n=8), request(text(1), n=8))
    admit(books)
    step(books)
    for run in old:
        finish(books, run)
    queued(books, request(text(2), n=40))

    assert 1 == len(admit(books))
    assert [False, True] == [run.branch is not None and run.branch.alive for run in old]


def test_a_run_alone_gives_up_the_room_its_past_wastes() -> None:
    """When nobody else is left to make room, a run drops its own half-used past rather than wait for ever."""
    books = scheduler(rows=100)
    pool = books.pool
    wide = pool.match([])
    pool.reserve(wide, 70)
    pool.append(wide, 3, expect=70)
    branch = pool.fork(wide, 2)
    pool.reserve(branch, 2)
    pool.append(branch, 2)
    pool.set_idle(branch)
    pool.release(wide)
    (run,) = queued(books, request(range(4), n=60, branch=branch))

    assert [run] == admit(books)
    assert not branch.alive
    assert 64 * SHAPE.row_bytes == pool.used_bytes
    pool.check_integrity()


def test_pins_alone_make_a_run_wait() -> None:
    """Rows that another thread still reads are waited for, not taken."""
    books = scheduler(rows=40)
    pool = books.pool
    branch = pool.match([])
    pool.append(branch, 10)
    pinned = pool.pin(branch, 0, 10)
    pool.release(branch)
    (run,) = queued(books, request(text(0), n=10))

    assert [] == admit(books)
    pool.unpin(pinned)
    assert [run] == admit(books)


def test_impossible_runs_are_named() -> None:
    """A run that could not fit even alone is reported with the bytes that it needs; one that just fits is not."""
    books = scheduler(rows=64)
    fits, beyond = queued(books, request(text(0), n=40), request(text(1), n=41))

    assert [(beyond, 65 * SHAPE.row_bytes)] == books.impossible()
    assert 64 == books.rows_ahead(fits)


def test_the_context_limit_bounds_the_reserve() -> None:
    """No more is reserved than the context may hold, and for a prefill-only run just its prompt."""
    books = scheduler()
    bounded, prefill = queued(books, request(text(0), n=40, max_length=30), request(text(1), n=None))

    assert [30, 24] == [books.rows_ahead(run) for run in (bounded, prefill)]


def test_a_prefix_in_flight_is_awaited() -> None:
    """A run whose next block another is computing is HELD and passed over; it starts from that block once it is there."""
    books = scheduler(max_batch_tokens=BLOCK, idle_batch_tokens=BLOCK)
    prefix = text(0, 2 * BLOCK)
    first, held, other = queued(books, request([*prefix, 1, 2]), request([*prefix, 3, 4]), request(text(5)))

    assert [first, other] == admit(books)
    assert RunState.HELD is held.state
    finish(books, other)
    step(books)
    assert [] == admit(books)  # the first block is there, the second still on its way
    step(books)
    assert [held] == admit(books)
    assert 2 * BLOCK == held.reused[Tier.DEVICE]
    assert {first: 2, held: 2} == step(books)


def test_a_flight_ends_with_its_run() -> None:
    """When the run that computes a prefix ends early, whoever waited for it computes it."""
    books = scheduler()
    prefix = text(0, 2 * BLOCK)
    first, held = queued(books, request([*prefix, 1]), request([*prefix, 2]))
    admit(books)
    books.pool.release(books.running[0].branch)  # type: ignore[arg-type]
    books.drop(first)

    assert [held] == admit(books)
    assert 0 == held.reused[Tier.DEVICE]


def test_held_memory_can_be_spilled() -> None:
    """What a HELD run has matched does not stand in the way of a run that could start."""
    books = scheduler(rows=80)
    pool = books.pool
    own = pool.match([])
    pool.append(own, 2 * BLOCK)
    pool.set_idle(own)
    names = chain_of(text(0)).hashes
    pool.publish(own, names, 0)
    owner, held = queued(books, request([*text(0), 1], n=2), request([*text(0), 2], n=2))
    admit(books)
    assert RunState.HELD is held.state
    finish(books, owner)
    (big,) = queued(books, request(text(7), n=50, tenant="big"))
    books.drop(held)
    books.enqueue(held)

    assert [big] == admit(books)
    assert held.branch is not None
    assert 0 == held.branch.length


def test_tenants_share_no_block() -> None:
    """The same prompt of another tenant is neither matched nor waited for."""
    books = scheduler()
    runs = queued(books, request(text(0), tenant="a"), request(text(0), tenant="b"))

    assert runs == admit(books)
    step(books)
    (late,) = queued(books, request(text(0), tenant="c"))
    admit(books)
    assert 0 == late.reused[Tier.DEVICE]


def test_the_longest_resident_prefix_wins() -> None:
    """A session's own branch is given up for a longer match, kept for a shorter one; one token is left to compute."""
    books = scheduler()
    tokens = text(0)
    (first,) = queued(books, request(tokens, n=None))
    admit(books)
    step(books)
    finish(books, first)
    pool = books.pool
    short, whole = pool.fork(first.branch, 5), pool.fork(first.branch, 3 * BLOCK)  # type: ignore[arg-type]
    runs = queued(books, request([*tokens, 9], branch=short), request([*tokens, 9, 9], branch=whole), request(tokens))
    admit(books)

    assert [24, 24, 23] == [run.reused[Tier.DEVICE] for run in runs]
    assert not short.alive
    assert whole is runs[1].branch
    pool.check_integrity()


def test_a_spilled_branch_is_replaced() -> None:
    """A run whose session was spilled while it waited starts from what is left, maybe nothing."""
    books = scheduler()
    branch = books.pool.match([])
    books.pool.append(branch, 4)
    books.pool.release(branch)
    (run,) = queued(books, request(text(0), branch=branch))

    assert [run] == admit(books)
    assert 0 == run.reused[Tier.DEVICE]


def test_decoding_comes_before_prefill() -> None:
    """Every decoding run gets its token; prefill chunks fill the smaller budget that then applies."""
    books = scheduler(max_batch_tokens=16, idle_batch_tokens=100)
    (chat,) = queued(books, request(text(0), n=50))
    admit(books)
    assert {chat: 24} == step(books)
    (long,) = queued(books, request(text(1, 60), n=4))
    admit(books)

    assert {chat: 1, long: 16} == step(books)
    assert {chat: 1, long: 16} == step(books)
    finish(books, chat)
    assert {long: 28} == step(books)
    assert {long: 1} == step(books)


def test_prefills_share_the_budget() -> None:
    """Several prompts advance together, and what a short one leaves goes to the others; only the last chunk asks for logits."""
    books = scheduler(idle_batch_tokens=30)
    short, long, longer = queued(books, request(text(0, 4)), request(text(1, 40)), request(text(2, 80)))
    admit(books)
    plan = {run: (len(work.token_ids), tuple(work.logits)) for run, work in books.plan()}

    assert {short: (4, (3,)), long: (13, ()), longer: (13, ())} == plan


def test_a_prefill_that_was_cut_off_comes_first_later() -> None:
    """With less budget than prompts, every prompt advances within a few steps."""
    books = scheduler(idle_batch_tokens=2)
    runs = queued(books, *(request(text(i, 20)) for i in range(5)))
    admit(books)
    taken = dict.fromkeys(runs, 0)
    for _ in range(10):
        for run, count in step(books).items():
            taken[run] += count

    assert 20 == sum(taken.values())
    assert min(taken.values()) >= 3


def test_a_prefill_only_run_asks_for_no_logits() -> None:
    """With sampling None every token is computed, the last one too, and no logits are asked for."""
    books = scheduler()
    queued(books, request(text(0, 5), n=None))
    admit(books)
    ((_, work),) = books.plan()

    assert (text(0, 5), ()) == (list(work.token_ids), tuple(work.logits))


def test_expired() -> None:
    """Cancelled runs and those past their deadline are found wherever they are; the earliest deadline yet to be noticed is known."""
    books = scheduler(max_running=2)
    now = time.monotonic()
    runs = queued(books, request(text(0)), request(text(1), deadline=now + 5), request(text(2), deadline=now + 3), request(text(3)))
    admit(books)
    assert now + 3 == books.next_deadline()
    runs[3].cancel_reason = FinishReason.CANCELLED

    assert [(runs[3], FinishReason.CANCELLED)] == books.expired(now)
    assert {(runs[1], FinishReason.DEADLINE), (runs[2], FinishReason.DEADLINE), (runs[3], FinishReason.CANCELLED)} == set(
        books.expired(now + 5)
    )
    runs[2].cancel_reason = FinishReason.DEADLINE
    assert now + 5 == books.next_deadline()


def test_dropping_a_run_nobody_knows() -> None:
    """Dropping does nothing to a run that is in no list."""
    books = scheduler()
    books.drop(run_of(request(text(0))))

    assert 0 == books.num_waiting
    assert books.next_deadline() is None


def test_a_prefix_shared_with_an_idle_session_is_given_up_for_room() -> None:
    """A run that fits once every idle session is spilled starts, though the prefix it shares with one of them is lost by that."""
    books = scheduler(rows=100)
    tokens = text(0, BLOCK)
    (first,) = queued(books, request(tokens + text(1, 40), n=20, max_length=1000))
    assert [first] == admit(books)
    while len(first.chain) < BLOCK + 60:
        step(books)
    finish(books, first)
    (second,) = queued(books, request(tokens + text(2, 70), n=8, max_length=1000))

    assert [second] == admit(books)
    assert RunState.RUNNING is second.state
    books.pool.check_integrity()
