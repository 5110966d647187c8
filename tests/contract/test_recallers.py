"""What every recall method keeps to, whatever it searches by. A method joins by being registered."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.archives import clustered_kv, queries_near, recallable

from agentmem.memory.recall import Found, Recallable, recallers

LAYERS, KV_HEADS, GROUP, DIM = 2, 2, 3, 16
METHODS = sorted(recallers)
FINDING = [name for name in METHODS if name != "none"]


def memory_of(length: int, resident: NDArray[np.bool_] | None = None, units: int = 1) -> Recallable:
    """Return a session of ``length`` clustered tokens."""
    k, v = clustered_kv((LAYERS, KV_HEADS, length, DIM))
    return recallable(k, v, resident, GROUP, units=units)


def query_of(memory: Recallable, layer: int, seed: int = 0) -> NDArray[np.float32]:
    """Return queries near some of the layer's keys."""
    return queries_near(torch.stack([memory.rows.keys(i) for i in range(LAYERS)]), layer, GROUP, seed)


def some_residents(length: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return residents, the same number in every layer and KV head."""
    order = np.random.default_rng(seed).random((LAYERS, KV_HEADS, length)).argsort(-1)
    return order < length // 5


def found_sets(found: Found) -> list[list[int]]:
    """Return the tokens found of each KV head."""
    return [found.ids[head, :count].tolist() for head, count in enumerate(found.counts)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("length", "limit", "units"), [(1000, 100, 1), (1000, 7, 3), (130, 1, 1)])
def test_what_is_found_is_valid(name: str, length: int, limit: int, units: int) -> None:
    """Positions of the archive, each once, never a resident, at most the limit; the bias fits the queries and is finite."""
    resident = some_residents(length)
    memory = memory_of(length, resident, units)
    recaller = recallers.get(name)(memory)
    for layer in range(LAYERS):
        for seed in range(5):
            found = recaller.find(layer, query_of(memory, layer, seed), limit)
            assert ((KV_HEADS, limit), np.int32, np.int64) == (found.ids.shape, found.ids.dtype, found.counts.dtype)
            for head, ids in enumerate(found_sets(found)):
                assert len(ids) <= limit
                assert len(set(ids)) == len(ids)
                assert all(0 <= i < length for i in ids)
                assert not resident[layer, head, ids].any()
            if found.bias is not None:
                assert ((KV_HEADS * GROUP, limit), np.float32) == (found.bias.shape, found.bias.dtype)
                assert np.isfinite(found.bias).all()


@pytest.mark.parametrize("name", FINDING)
@pytest.mark.parametrize("length", [1, 15, 100])
def test_a_limit_beyond_the_archive_returns_all(name: str, length: int) -> None:
    """With room for all tokens that are not resident every method returns them, and none weighs more than another."""
    resident = some_residents(length)
    memory = memory_of(length, resident)
    found = recallers.get(name)(memory).find(1, query_of(memory, 1), length + 3)
    assert [np.flatnonzero(~resident[1, head]).tolist() for head in range(KV_HEADS)] == [sorted(ids) for ids in found_sets(found)]
    assert found.bias is None or not found.bias.any()


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_left_to_find(name: str) -> None:
    """When all tokens are resident nothing is found, whatever the limit."""
    memory = memory_of(70, np.ones((LAYERS, KV_HEADS, 70), np.bool_))
    recaller = recallers.get(name)(memory)
    for limit in (1, 64, 200):
        assert [0] * KV_HEADS == recaller.find(0, query_of(memory, 0), limit).counts.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_equal_queries_find_equal_tokens(name: str) -> None:
    """Neither the calls before, nor the recaller, nor how the session was cut into units changes what is found."""
    memory, other = memory_of(600, some_residents(600)), memory_of(600, some_residents(600))
    one, two = recallers.get(name)(memory), recallers.get(name)(other)
    query = query_of(memory, 1)
    first = one.find(1, query, 40)
    one.find(0, query_of(memory, 0, 9), 11)
    for again in (one.find(1, query, 40), two.find(1, query, 40)):
        assert found_sets(first) == found_sets(again)
        if first.bias is not None and again.bias is not None:
            for head, count in enumerate(first.counts):
                own = slice(head * GROUP, (head + 1) * GROUP)
                assert np.array_equal(first.bias[own, :count], again.bias[own, :count])


@pytest.mark.parametrize("name", METHODS)
def test_nothing_given_is_written_to(name: str) -> None:
    """The query, the residents, the codes and the archive stay as they were."""
    memory = memory_of(300, some_residents(300))
    codes, keys, resident = memory.sealed.units[0].codes.clone(), memory.rows.keys(0), memory.resident.copy()
    query = query_of(memory, 0)
    before = query.copy()
    recallers.get(name)(memory).find(0, query, 30)
    assert np.array_equal(before, query)
    assert torch.equal(codes, memory.sealed.units[0].codes)
    assert torch.equal(keys, memory.rows.keys(0))
    assert np.array_equal(resident, memory.resident)


@pytest.mark.parametrize("name", METHODS)
def test_private_bytes_are_counted(name: str) -> None:
    """Memory grows with a session cut into units, whose codes must be put together, and is never negative."""
    whole, cut = (recallers.get(name)(memory_of(500, units=units)).host_bytes for units in (1, 5))
    assert 0 <= whole <= cut


def test_an_unknown_method_names_the_known() -> None:
    """All methods of the design are registered."""
    assert ["lsh", "none", "oracle", "pages", "sample"] == METHODS
