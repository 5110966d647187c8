from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.kv import BLOCK, SHAPE, chain, labelled, labels, make_pool, pointers, read, write

from agentmem.memory.pool import PinnedRows, PoolFull
from agentmem.memory.segment import Branch

BUDGET = 90  # rows: a few branches fill it
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=12)  # two ids only, so that prefixes often are equal
PICK = st.integers(0, 10**6)


@dataclass(slots=True, eq=False)
class Model:
    """What a branch must hold, and what it was promised."""

    branch: Branch
    tokens: list[int]
    promised: int = 0
    idle: bool = False


class PoolMachine(RuleBasedStateMachine):
    """The pool beside a list of tokens for each branch: whatever is shared, cut, spilled or pinned, each reads its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(BUDGET)
        self.models: list[Model] = []
        self.pins: list[tuple[PinnedRows, list[tuple[int, int]]]] = []

    def pick(self, number: int, wanted: Callable[[Model], bool] = bool) -> Model:
        """Return one of the branches that are ``wanted``; a new one, busy and empty, if there is none."""
        found = [model for model in self.models if wanted(model)]
        if not found:
            found = [Model(self.pool.match([]), [])]
            self.models += found
        return found[number % len(found)]

    @rule(tokens=st.lists(st.integers(0, 1), max_size=24))
    def match(self, tokens: list[int]) -> None:
        names = chain(tokens).hashes
        branch = self.pool.match(names)
        assert 0 == branch.length % BLOCK
        assert not any(self.pool.holds(name) for name in names[branch.length // BLOCK :])
        self.models.append(Model(branch, tokens[: branch.length]))

    @rule(number=PICK, cut=PICK)
    def fork(self, number: int, cut: int) -> None:
        source = self.pick(number)
        length = cut % (len(source.tokens) + 1)
        used, places = self.pool.used_bytes, pointers(self.pool, source.branch)
        branch = self.pool.fork(source.branch, length)
        assert used == self.pool.used_bytes
        copied = pointers(self.pool, branch)
        assert places[: len(copied)] == copied
        self.models.append(Model(branch, source.tokens[:length]))

    @rule(number=PICK, rows=st.integers(0, 40))
    def reserve(self, number: int, rows: int) -> None:
        model = self.pick(number)
        model.idle, model.promised = False, 0
        alive = [other for other in self.models if other.branch.alive]
        try:
            self.pool.reserve(model.branch, rows)
        except PoolFull:
            assert alive == [other for other in self.models if other.branch.alive], "branches were spilled in vain"
            self.pool.spill_idle()
            with pytest.raises(PoolFull):
                self.pool.reserve(model.branch, rows)
        else:
            model.promised = rows

    @rule(number=PICK, tokens=TOKENS, expect=st.integers(0, 30))
    def append(self, number: int, tokens: list[int], expect: int) -> None:
        model = self.pick(number, lambda model: not model.idle)
        try:
            write(self.pool, model.branch, tokens, expect)
        except PoolFull:
            assert len(tokens) > model.promised, "rows that were promised could not be had"
        else:
            model.tokens += tokens
            model.promised = max(0, model.promised - len(tokens))

    @rule(number=PICK, start=st.integers(0, 3))
    def publish(self, number: int, start: int) -> None:
        model = self.pick(number)
        names = chain(model.tokens).hashes
        self.pool.publish(model.branch, names, start)
        assert all(self.pool.holds(name) for name in names[start:])

    @rule(number=PICK, cut=PICK)
    def truncate(self, number: int, cut: int) -> None:
        model = self.pick(number)
        length = cut % (len(model.tokens) + 1)
        self.pool.truncate(model.branch, length)
        del model.tokens[length:]
        model.promised = 0  # a cut may give the promise back

    @rule(number=PICK)
    def set_idle(self, number: int) -> None:
        model = self.pick(number)
        self.pool.set_idle(model.branch)
        model.idle, model.promised = True, 0

    @rule(number=PICK)
    def release(self, number: int) -> None:
        model = self.pick(number)
        self.pool.release(model.branch)
        self.models.remove(model)

    @rule(number=PICK, start=PICK, stop=PICK)
    def pin(self, number: int, start: int, stop: int) -> None:
        model = self.pick(number, lambda model: bool(model.tokens))
        if not model.tokens:
            return
        low = start % len(model.tokens)
        high = low + 1 + stop % (len(model.tokens) - low)
        self.pins.append((self.pool.pin(model.branch, low, high), labelled(model.tokens)[low:high]))

    @precondition(lambda self: self.pins)
    @rule(number=PICK)
    def unpin(self, number: int) -> None:
        self.pool.unpin(self.pins.pop(number % len(self.pins))[0])

    @rule()
    def spill(self) -> None:
        self.pool.spill_idle()
        assert not any(model.idle and model.branch.alive for model in self.models)

    @invariant()
    def every_branch_reads_its_own_tokens(self) -> None:
        assert all(model.idle for model in self.models if not model.branch.alive), "a running branch was spilled"
        self.models = [model for model in self.models if model.branch.alive]
        for model in self.models:
            assert labelled(model.tokens) == read(self.pool, model.branch)
        for pinned, expected in self.pins:
            assert expected == labels(*pinned.tensors())

    @invariant()
    def the_books_are_right(self) -> None:
        self.pool.check_integrity()
        assert self.pool.used_bytes <= BUDGET * SHAPE.row_bytes

    def teardown(self) -> None:
        for model in self.models:
            self.pool.release(model.branch)
        for pinned, _ in self.pins:
            self.pool.unpin(pinned)
        assert 0 == self.pool.used_bytes


PoolMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPool = PoolMachine.TestCase
TestPool.__doc__ = "Sharing never corrupts, the budget is never exceeded, and running or pinned rows are never taken."
