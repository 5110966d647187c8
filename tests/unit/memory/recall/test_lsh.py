"""Recall by hash codes: against the oracle, by hand, and the inverted file against comparing all codes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.archives import clustered_kv, queries_near, random_kv, recallable

from agentmem.compression.simhash import encode, projection
from agentmem.memory.recall import Found, LshRecall, Oracle
from agentmem.memory.recall import lsh as lsh_module
from agentmem.memory.recall.lsh import Flat, Inverted, codes_of, one_thread
from agentmem.stores.mapped import ArchiveFormat

LEAST_RECALL = 0.75  # share of the oracle's choice; with fewer bits a search finds less


def share(found: Found, best: Found) -> float:
    """Return how much of ``best`` was found, the mean over KV heads."""
    pairs = zip(found.ids, found.counts, best.ids, best.counts, strict=True)
    return float(np.mean([np.isin(b[:m], a[:n]).mean() for a, n, b, m in pairs]))


def recall_of(memory_kwargs: dict[str, object], bits: int, limit: int = 128) -> float:
    """Return the mean share of the oracle's choice that LSH finds in a clustered session, 10% of it resident."""
    k, v = clustered_kv((1, 2, 3000, 64))
    resident = np.random.default_rng(0).random((1, 2, 3000)) < 0.1
    memory = recallable(k, v, resident, 3, bits, **memory_kwargs)  # type: ignore[arg-type]
    search, oracle = LshRecall(memory), Oracle(memory)
    queries = [queries_near(k, 0, 3, seed) for seed in range(6)]
    return float(np.mean([share(search.find(0, q, limit), oracle.find(0, q, limit)) for q in queries]))


@pytest.mark.parametrize("bits", [256, 512])
def test_most_of_what_the_oracle_chooses(bits: int) -> None:
    """Exact scores choose among the candidates, so hash codes need not be exact; more bits find more."""
    assert LEAST_RECALL <= recall_of({}, bits)
    assert recall_of({}, 64) < recall_of({}, bits)


def test_units_and_quantised_archives_change_little() -> None:
    """Codes are put together in order; keys of lower precision choose nearly the same."""
    whole = recall_of({}, 256)
    assert abs(whole - recall_of({"units": 3}, 256)) < 0.05
    assert abs(whole - recall_of({"format": ArchiveFormat.INT8}, 256)) < 0.05


def test_by_hand() -> None:
    """Keys in the directions of the axes: a query finds the axes that it leans to, and not the resident."""
    k = torch.zeros(1, 1, 64, 16)
    k[0, 0, torch.arange(64), torch.arange(64) % 16] = 1 + torch.arange(64) / 64
    resident = np.zeros((1, 1, 64), np.bool_)
    resident[0, 0, 51] = True  # the longest of axis 3
    query = np.zeros((1, 16), np.float32)
    query[0, 3], query[0, 7] = 2, 1.9
    found = LshRecall(recallable(k, k, resident)).find(0, query, 6)
    assert {35, 19, 55, 39, 23, 7} == set(found.ids[0, : found.counts[0]].tolist())


def test_queries_are_hashed_as_keys_are() -> None:
    """A token's own key, used as a query, has the token's code: the nearest candidate is the token."""
    k, v = random_kv((2, 1, 300, 32), torch.float32)
    k -= k.mean(2, keepdim=True)
    search, pool = LshRecall(recallable(k, v)), np.empty((1, 3), np.int64)
    for layer in range(2):
        for token in (0, 123, 299):
            search._search(layer, k[layer, 0, token : token + 1].numpy(), [0], pool)
            assert token == pool[0, 0]


def clustered_codes(n: int) -> tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]:
    """Return the codes of clustered keys, and those of groups of three queries near some of them."""
    k, v = clustered_kv((1, 1, n, 64))
    queries = [encode(torch.from_numpy(queries_near(k, 0, 3, seed)), projection(0, 64, 256)).numpy() for seed in range(8)]
    return codes_of(recallable(k, v).sealed.units)[0, 0], queries


def test_the_inverted_file_finds_nearly_all_that_is_near() -> None:
    """At the length from which it is used at least nine in ten, the same in every run, in other orders for other seeds."""
    codes, queries = clustered_codes(lsh_module.FLAT_TOKENS + 100)
    flat, inverted, again = Flat(codes), Inverted(codes, 0), Inverted(codes, 0)
    found = []
    for q in queries:
        near, ids = flat.search(q, 256), inverted.search(q, 256)
        assert np.array_equal(ids, again.search(q, 256))
        for one, other, own in zip(near, ids, q, strict=True):
            farthest = np.unpackbits(codes[one] ^ own, axis=1).sum(1).max()
            found.append((np.unpackbits(codes[other[other >= 0]] ^ own, axis=1).sum(1) <= farthest).sum() / 256)
    assert 0.9 <= np.mean(found)
    assert len(codes) * 40 < inverted.nbytes < len(codes) * 41


def test_long_sessions_use_inverted_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the threshold, and what they find keeps to the contract also where lists run dry."""
    monkeypatch.setattr(lsh_module, "FLAT_TOKENS", 1000)
    k, v = clustered_kv((1, 2, 1100, 16))
    resident = np.random.default_rng(0).random((1, 2, 1100)) < 0.1
    memory = recallable(k, v, resident, 3)
    search, query = LshRecall(memory), queries_near(k, 0, 3)
    assert all(isinstance(index, Inverted) for index in search._index[0])
    found = search.find(0, query, 300)
    assert 0.5 < share(found, Oracle(memory).find(0, query, 300))
    assert found.pool is not None
    assert (found.pool == -1).any()
    assert 2 * 1100 * 40 < search.host_bytes


def test_codes_of_one_unit_are_not_copied() -> None:
    """They may be mapped: the index reads them where they lie. Those of several units are put together."""
    k, v = random_kv((1, 2, 200, 16), torch.float32)
    one, cut = recallable(k, v), recallable(k, v, units=4)
    assert np.shares_memory(codes_of(one.sealed.units), one.sealed.units[0].codes.numpy())
    assert np.shares_memory(LshRecall(one)._index[0][1]._codes, one.sealed.units[0].codes.numpy())  # type: ignore[union-attr]
    assert 200 * 2 * 32 == LshRecall(cut).host_bytes - LshRecall(one).host_bytes
    assert (1, 2, 200, 32) == codes_of(cut.sealed.units).shape


@pytest.mark.parametrize("limit", [20, 2000])
def test_only_who_turned_away_is_searched(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Its KV head finds what a search of all finds; the others choose among their old candidates, and those are kept."""
    k, v = clustered_kv((1, 2, 2000, 32))
    search = LshRecall(recallable(k, v, None, 3))
    before, now = queries_near(k, 0, 3, 1), queries_near(k, 0, 3, 2)
    first, fresh = search.find(0, before, limit), search.find(0, now, limit)
    assert first.pool is not None
    kept = first.pool.copy()
    searched = []
    for head, index in enumerate(search._index[0]):
        monkeypatch.setattr(index, "search", lambda *args, head=head, real=index.search: (searched.append(head), real(*args))[1])
    found = search.again(0, now, limit, first, np.array([False, True]))
    assert ([1] if limit == 20 else []) == searched
    assert found.pool is not None
    assert fresh.pool is not None
    assert set(fresh.ids[1, : fresh.counts[1]]) == set(found.ids[1, : found.counts[1]])
    assert np.array_equal(fresh.pool[1], found.pool[1])
    assert np.array_equal(kept[0], found.pool[0])
    following = first.ids[0, : first.counts[0]] + 1
    assert np.isin(found.ids[0, : found.counts[0]], [*kept[0], *following]).all()


def test_mostly_resident_sessions_search_wider() -> None:
    """Residents are dropped from what is found, so more is asked for; else a search among nine residents in ten found nothing."""
    k, v = clustered_kv((1, 1, 2000, 32))
    resident = np.ones((1, 1, 2000), np.bool_)
    resident[0, 0, ::10] = False
    memory = recallable(k, v, resident)
    found = LshRecall(memory).find(0, queries_near(k, 0, 1), 20)
    assert 20 == found.counts[0]


def test_thread_counts_are_put_back() -> None:
    """FAISS and torch share their count of threads: a search leaves it as it was, also when it fails."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert 1 == faiss.omp_get_max_threads()
        assert 2 == torch.get_num_threads()
        with pytest.raises(AssertionError), one_thread():
            Flat(np.zeros((5, 8), np.uint8)).search(np.zeros((1, 4), np.uint8), 1)
        assert 2 == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
