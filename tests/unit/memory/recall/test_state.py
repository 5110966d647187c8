"""When a run searches again, and what it then attends to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.archives import archived, random_kv

from agentmem.memory.archived import ArchivedRows
from agentmem.memory.recall import Found, RecallState
from agentmem.memory.shape import KVShape

LAYERS, KV_HEADS, HEADS, DIM, LENGTH, LIMIT = 4, 2, 4, 16, 100, 6
QUERY = np.ones((HEADS, DIM), np.float32)


class Scripted:
    """Finds, in its n-th search, n tokens from position n on; remembers which layers it was asked for."""

    host_bytes = 0

    def __init__(self, bias: Callable[[int], NDArray[np.float32] | None] = lambda _: None) -> None:
        self.layers: list[int] = []
        self.again_from: list[Found] = []
        self.away: list[list[bool]] = []
        self._bias = bias

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        self.layers.append(layer)
        n = len(self.layers)
        counts = np.array([min(n, limit), min(n, limit) - 1])
        return Found(np.tile(np.arange(n, n + limit, dtype=np.int32), (KV_HEADS, 1)), counts, self._bias(n))

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        self.again_from.append(last)
        self.away.append(away.tolist())
        return Found(last.ids + 1, last.counts)


def state_of(recaller: Scripted, stride: int = 4, limit: int = LIMIT, *, staged: bool | None = None) -> tuple[RecallState, ArchivedRows]:
    """Return a state over random rows."""
    rows = archived(*random_kv((LAYERS, KV_HEADS, LENGTH, DIM), torch.float32))
    shape = KVShape(LAYERS, KV_HEADS, DIM, torch.float32, torch.device("cpu"))
    return RecallState(recaller, rows, shape, HEADS, limit, stride, staged=staged), rows


def step(state: RecallState, query: NDArray[np.float32] = QUERY) -> None:
    """Run one decode step."""
    state.begin_step()
    for layer in range(LAYERS):
        state.refresh(layer, query)


@pytest.mark.parametrize("staged", [False, True])
def test_a_search_fills_its_layer(staged: bool) -> None:
    """The rows of the tokens found, in each KV head its own number, straight or through memory of the host."""
    recaller = Scripted()
    state, rows = state_of(recaller, staged=staged)
    step(state)
    for layer in range(LAYERS):
        k, v = rows.layer(layer)
        n = layer + 1
        assert [n, n - 1] == state.counts[layer].tolist()
        for head, count in enumerate((n, n - 1)):
            assert torch.equal(k[head, n : n + count], state.k[layer, head, :count])
            assert torch.equal(v[head, n : n + count], state.v[layer, head, :count])
    assert 2 * LAYERS * KV_HEADS * LIMIT * DIM * 4 * (2 if staged else 1) == state.nbytes
    assert (KV_HEADS * LAYERS, 0, 0, 1 + 3 + 5 + 7) == (state.searches, state.reuses, state.turned_away, state.tokens_read)


def test_layers_take_turns() -> None:
    """After the first step every layer is searched once in as many steps as the stride, a different one in each."""
    recaller = Scripted()
    state, _ = state_of(recaller, stride=4)
    step(state)
    assert [0, 1, 2, 3] == recaller.layers
    recaller.layers.clear()
    for _ in range(8):
        step(state)
    assert [2, 1, 0, 3, 2, 1, 0, 3] == recaller.layers
    assert (12 * KV_HEADS, 24 * KV_HEADS, 0) == (state.searches, state.reuses, state.turned_away)


def test_the_steps_between_choose_anew() -> None:
    """Between two searches the method is handed what it found last in the layer, and its new choice is what the layer attends to."""
    recaller = Scripted()
    state, rows = state_of(recaller, stride=64)
    for _ in range(3):
        step(state)
    k, _ = rows.layer(1)

    assert LAYERS == len(recaller.layers)
    assert [2, 3] == [int(found.ids[0, 0]) for found in recaller.again_from[1::LAYERS]]
    assert torch.equal(k[0, 4:6], state.k[1, 0, :2])


def test_a_stride_of_one_always_searches() -> None:
    """Every layer in every step."""
    recaller = Scripted()
    state, _ = state_of(recaller, stride=1)
    for _ in range(3):
        step(state)
    assert [0, 1, 2, 3] * 3 == recaller.layers


def test_one_head_that_turns_away_has_its_group_searched() -> None:
    """The lowest cosine of a group decides, against the query that searched last and not the one before; other groups are left alone."""
    recaller = Scripted()
    state, _ = state_of(recaller, stride=64)
    step(state)
    turning = QUERY.copy()
    turning[2, :5] = -1  # cosine 0.375
    step(state, 3 * QUERY)  # length does not matter
    assert 0 == state.turned_away
    step(state, turning)
    assert [[False, False]] * LAYERS + [[False, True]] * LAYERS == recaller.away
    assert (LAYERS, 3 * LAYERS) == (state.turned_away, state.searches)
    step(state, turning)
    assert LAYERS == state.turned_away
    step(state)
    assert 2 * LAYERS == state.turned_away


def test_a_slow_turn_is_noticed() -> None:
    """Queries that each are near the one before drift away from the one that chose."""
    recaller = Scripted()
    state, _ = state_of(recaller, stride=64)
    state.begin_step()
    query = np.zeros((HEADS, DIM), np.float32)
    for degrees in range(0, 70, 5):
        query[:, 0], query[:, 1] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        state.refresh(0, query)
        state.begin_step()
    assert (2 * KV_HEADS, KV_HEADS) == (state.searches, state.turned_away)


def test_a_query_that_does_not_lie_in_one_piece() -> None:
    """A column of a batch's queries serves as well."""
    recaller = Scripted()
    state, _ = state_of(recaller, stride=64)
    batch = np.stack([QUERY, -QUERY], 1)
    step(state, batch[:, 0])
    step(state)
    assert LAYERS * KV_HEADS == state.reuses


def test_no_more_memory_than_tokens() -> None:
    """A limit beyond the archive takes room for the archive alone."""
    state, _ = state_of(Scripted(), limit=5000)
    step(state)
    assert LENGTH == state.k.shape[2] == state.v.shape[2]


def test_the_bias_is_kept() -> None:
    """Where the method weighs its tokens the state holds the weights of each layer; else none."""
    plain, _ = state_of(Scripted())
    step(plain)
    assert plain.bias is None

    state, _ = state_of(Scripted(lambda n: np.full((HEADS, LIMIT), n, np.float32)))
    step(state)
    assert state.bias is not None
    assert (LAYERS, HEADS, LIMIT) == state.bias.shape
    assert [1, 2, 3, 4] == state.bias[:, 0, 0].tolist()
