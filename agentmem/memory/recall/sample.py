"""Recall by sampling: an unbiased estimate of attention instead of its largest terms (MagicPIG; Chen et al. 2024, arXiv:2410.16179).

A key is sampled when it shares all K bits of a hash table with the query in at least two of L tables; the chance u of that follows from
their angle, and a sampled key counts 1 / u times. The tables are cut out of the SimHash codes that sealing stores, so there is no
second index. A method to compare with: it reads all codes of a layer for each search.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from agentmem.compression.simhash import encode, projection
from agentmem.memory.recall.lsh import codes_of
from agentmem.memory.recall.port import Found, Recallable, recallers
from agentmem.memory.recall.sample_kernel import UNSEEN, sampler


def table_bits(bits: int) -> int:
    """Return K for codes of ``bits``: then a key at a right angle shares a table in one of about eight (L / 2**K), seldom two."""
    return (bits - 1).bit_length()


def thin(score: NDArray[np.float32], limit: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose at most ``limit`` of n sampled tokens by their weighted scores ``[group, n]``.

    Return which, and what to add to their weights' logarithms, fp32 ``[chosen]``. The better half of the places goes to the weightiest
    tokens, those that a query whose best they are nearest to would miss most; the other half to some of the rest, drawn evenly, which
    stand for all of the rest.
    """
    n = score.shape[1]
    if n <= limit:
        return np.arange(n), np.zeros(n, np.float32)
    best = score.max(1, keepdims=True)
    rank = np.where(best > UNSEEN / 2, score - best, -np.inf).max(0)  # a query that sampled nothing has no say
    order, sure = np.argsort(-rank, kind="stable"), limit // 2
    drawn = sure + np.random.default_rng(seed).permutation(n - sure)[: limit - sure]
    extra = np.zeros(limit, np.float32)
    extra[sure:] = np.log((n - sure) / (limit - sure))
    return np.concatenate((order[:sure], order[drawn])), extra


@recallers.register("sample")
class SampleRecall:
    """Samples keys; those that only other queries of the group sampled weigh nothing for a query.

    More than ``limit`` sampled keys are thinned out, the weightiest half kept and the rest drawn evenly by ``seed``, at a higher weight.
    """

    def __init__(self, memory: Recallable) -> None:
        codes = codes_of(memory.sealed.units)
        self._memory = memory
        self._bits = codes.shape[3] * 8
        self._own_bytes = 0 if len(memory.sealed.units) == 1 else codes.nbytes
        self._codes = codes.view(np.uint64)
        self._directions = [projection(layer, memory.rows.head_dim, self._bits) for layer in range(len(codes))]
        self._means: dict[int, NDArray[np.float32]] = {}
        self._sample = sampler(*memory.rows.kind, memory.group)

    @property
    def host_bytes(self) -> int:
        """Private bytes: codes (those of a lone unit are mapped) and means."""
        return self._own_bytes + sum(mean.nbytes for mean in self._means.values())

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return sampled tokens and their weights' logarithms, or all tokens where the limit allows for them."""
        rows, resident = self._memory.rows, self._memory.resident[layer]
        bias = np.zeros((len(query), limit), np.float32)
        found = Found(np.empty((rows.kv_heads, limit), np.int32), np.empty(rows.kv_heads, np.int64), bias)
        everything = limit >= rows.length - int(resident.sum(1).min())
        tokens = np.empty((rows.kv_heads, rows.length), np.int32)
        products, weights = np.empty((2, len(query), rows.length), np.float32)
        if not everything:
            own = encode(torch.from_numpy(query), self._directions[layer]).numpy().view(np.uint64)
            mean, bits = self._mean(layer), table_bits(self._bits)
            self._sample(rows.k, layer, self._codes[layer], own, resident, query, mean, bits, tokens, found.counts, products, weights)
        for head in range(rows.kv_heads):
            if everything:
                taken = np.flatnonzero(~resident[head])
            else:
                group = slice(head * self._memory.group, (head + 1) * self._memory.group)
                n = found.counts[head]
                score = products[group, :n] * self._memory.scale + weights[group, :n]
                chosen, extra = thin(score, limit, self._memory.seed + layer * rows.kv_heads + head)
                taken = tokens[head, chosen]
                bias[group, : len(taken)] = weights[group, :n][:, chosen] + extra
            found.ids[head, : len(taken)] = taken
            found.counts[head] = len(taken)
        return found

    def again(self, layer: int, query: NDArray[np.float32], limit: int, last: Found, away: NDArray[np.bool_]) -> Found:
        """Sample anew: the estimate is for one query."""
        return self.find(layer, query, limit)

    def _mean(self, layer: int) -> NDArray[np.float32]:
        """Return the mean key of the first unit, which centred all codes, fp32 ``[kv_heads, head_dim]``."""
        if layer not in self._means:
            first = self._memory.rows.keys(layer)[:, : self._memory.sealed.units[0].stop]
            self._means[layer] = first.float().mean(1).numpy()
        return self._means[layer]
