"""Recall by hash codes: FAISS finds keys whose SimHash codes are near a query's, and exact scores choose among them.

Sealing made codes of mean-centred keys (``agentmem/compression/simhash.py``); their Hamming distance ranks keys by the angle to a query
(Charikar 2002, doi:10.1145/509907.509965). Up to ``FLAT_TOKENS`` all codes are compared: ``knn_hamming`` reads them where they lie, so
that the codes of a session of one unit stay in the page cache. Beyond, one ``IndexBinaryIVF`` per layer and KV head reads a part of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import faiss
import numpy as np
from numpy.typing import NDArray

from agentmem.compression.simhash import projection
from agentmem.memory.recall.port import Found, Recallable, recallers
from agentmem.memory.recall.rank_kernel import sign_codes
from agentmem.memory.recall.ranking import Ranking
from agentmem.memory.sealed import SealedUnit

FLAT_TOKENS = 32_768  # up to here all codes are compared: 0.25 ms a KV head at most
SHARED_TOKENS = 4096  # from here on torch's threads search together: two take two thirds of one's time, which pays for waking the second
LIST_TOKENS = 128  # codes of a list of the inverted file, on average
PROBED = 4  # one list in so many is read: less than half the time; of clustered keys it finds all, of a real model's nine in ten
# Candidates for each token that is wanted, over the queries of a group, before doubles. SmolLM2 (groups of 3) over 4,000 tokens of code,
# 256 wanted: the choice holds 96.5% of the attention that the oracle's holds with 3, 98.2% with 4, 99.3% with 6. At 32,000 tokens
# recall takes 30 ms a token with 3 and 33 ms with 4.
OVERSAMPLE = 3


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep FAISS, and torch, to the calling thread: waking a second one for a tenth of a millisecond costs more than it brings.

    Its OpenMP is torch's once both are loaded, and the count belongs to the calling thread: what is set here torch obeys too, and the
    other way round (measured with faiss-cpu 1.15.1 and torch 2.13: after ``torch.set_num_threads(2)`` FAISS reports 2, and after
    ``faiss.omp_set_num_threads(1)`` torch reports 1). So it is put back; both calls take 0.4 us.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Flat:
    """Compares all codes ``[n, bits / 8]``, which it keeps but does not copy."""

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        self._codes = codes

    def search(self, queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
        """Return the ``k`` nearest codes of each query, int64 ``[queries, k]``. Counting distances takes a third of a heap's time."""
        labels: NDArray[np.int64] = faiss.knn_hamming(queries, self._codes, k, variant="mc")[1]
        return labels


class Inverted:
    """An inverted file over codes, its centroids drawn from them by ``seed``: training would differ between runs."""

    def __init__(self, codes: NDArray[np.uint8], seed: int) -> None:
        n, width = codes.shape
        n_lists = max(PROBED, n // LIST_TOKENS)
        self._centroids = faiss.IndexBinaryFlat(width * 8)
        self._centroids.add(codes[np.sort(np.random.default_rng(seed).choice(n, n_lists, replace=False))])
        self._index = faiss.IndexBinaryIVF(self._centroids, width * 8, n_lists)
        self._index.is_trained = True
        self._index.add(codes)
        self._index.nprobe = n_lists // PROBED
        self._index.use_heap = False
        self._index.max_codes = n  # with the default of 0 the counting search reads no code at all
        self.nbytes = n * (width + 8) + n_lists * width

    def search(self, queries: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
        """Return the ``k`` nearest codes of the lists read for each query, int64 ``[queries, k]``; -1 where there are fewer."""
        labels: NDArray[np.int64] = self._index.search(queries, k)[1]
        return labels


def codes_of(units: tuple[SealedUnit, ...]) -> NDArray[np.uint8]:
    """Return the units' codes ``[layers, kv_heads, length, bits / 8]``: those of a lone unit as they lie, else a copy."""
    parts = [unit.codes.numpy() for unit in units]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


@recallers.register("lsh")
class LshRecall:
    """Searches codes, then ranks by exact scores."""

    def __init__(self, memory: Recallable) -> None:
        codes = codes_of(memory.sealed.units)
        layers, _, self._length, width = codes.shape
        self._memory = memory
        self._ranking = Ranking(memory)
        self._directions = [projection(layer, memory.rows.head_dim, width * 8).numpy() for layer in range(layers)]
        self._index: list[list[Flat | Inverted]]
        with one_thread():
            if self._length <= FLAT_TOKENS:
                self._index = [[Flat(head) for head in layer] for layer in codes]
                self._index_bytes = 0 if len(memory.sealed.units) == 1 else codes.nbytes
            else:
                inverted = [[Inverted(head, memory.seed) for head in layer] for layer in codes]
                self._index_bytes = sum(index.nbytes for layer in inverted for index in layer)
                self._index = [[*layer] for layer in inverted]
        free = self._length - int(memory.resident.sum(axis=-1).max())
        self._per_free: float = self._length / max(free, 1)  # residents are dropped from what is found

    @property
    def host_bytes(self) -> int:
        """Private bytes: codes or inverted files, marks. Codes of a lone unit are mapped, projections are every session's."""
        return self._index_bytes + self._ranking.host_bytes

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return the best ``limit`` of the candidates that the group's queries find together."""
        kv_heads, wanted = self._memory.rows.kv_heads, self._wanted(limit)
        if wanted < self._length:
            pool = np.empty((kv_heads, self._memory.group * wanted), np.int64)
            self._search(layer, query, range(kv_heads), pool)
        else:
            pool = np.tile(np.arange(self._length), (kv_heads, 1))
        return replace(self._ranking.best(layer, pool, query, limit), pool=pool)

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Search for the heads that turned away; the others rank their last candidates anew, and beside them what follows a token chosen.

        Heads that copy attend to the next token of what they copy, and its key need not resemble the last query (measured on planted
        facts: without this, and without ranking anew, KL is fifty times that of a search in each step).
        """
        pool = last.pool
        if pool is None:
            return self.find(layer, query, limit)
        if self._wanted(limit) < self._length:
            self._search(layer, query, np.flatnonzero(away).tolist(), pool)
        return replace(self._ranking.best(layer, pool, query, limit, (last.ids, np.where(away, 0, last.counts))), pool=pool)

    def _wanted(self, limit: int) -> int:
        """Return how many tokens each query asks for: at least ``limit``, since all of a group may find the same. Above all: all."""
        return math.ceil(max(limit, math.ceil(OVERSAMPLE * limit / self._memory.group)) * self._per_free)

    def _search(self, layer: int, query: NDArray[np.float32], heads: Sequence[int], pool: NDArray[np.int64]) -> None:
        """Write to the rows ``heads`` of ``pool`` ``[kv_heads, group * k]`` the k tokens that each query finds, -1 for none."""
        group, directions = self._memory.group, self._directions[layer]
        codes = np.empty((group, len(directions) // 8), np.uint8)
        with one_thread() if self._length < SHARED_TOKENS else nullcontext():
            for head in heads:
                sign_codes(query[head * group : (head + 1) * group], directions, codes)
                pool[head] = self._index[layer][head].search(codes, pool.shape[1] // group).ravel()
