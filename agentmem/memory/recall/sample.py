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
from agentmem.memory.recall.sample_kernel import sampler


def table_bits(bits: int) -> int:
    """Return K for codes of ``bits``: then a key at a right angle shares a table in one of about eight (L / 2**K), seldom two."""
    return (bits - 1).bit_length()


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
        """Private bytes: codes (those of a lone unit are mapped), projections, means."""
        return self._own_bytes + sum(d.nbytes for d in self._directions) + sum(mean.nbytes for mean in self._means.values())

    def find(self, layer: int, query: NDArray[np.float32], limit: int) -> Found:
        """Return sampled tokens and their weights' logarithms, or all tokens where the limit allows for them."""
        rows, resident = self._memory.rows, self._memory.resident[layer]
        found = Found(
            np.empty((rows.kv_heads, limit), np.int32), np.empty(rows.kv_heads, np.int64), np.zeros((len(query), limit), np.float32)
        )
        if limit >= rows.length - int(resident.sum(1).min()):
            for head in range(rows.kv_heads):
                free = np.flatnonzero(~resident[head])
                found.ids[head, : len(free)] = free
                found.counts[head] = len(free)
            return found
        own = encode(torch.from_numpy(query), self._directions[layer]).numpy().view(np.uint64)
        self._sample(
            rows.k, layer, self._codes[layer], own, resident, query, self._mean(layer), table_bits(self._bits), self._memory.scale,
            self._memory.seed * rows.layers + layer, found.ids, found.counts, found.bias,
        )  # fmt: skip
        return found

    def _mean(self, layer: int) -> NDArray[np.float32]:
        """Return the mean key of the first unit, which centred all codes, fp32 ``[kv_heads, head_dim]``."""
        if layer not in self._means:
            first = self._memory.rows.keys(layer)[:, : self._memory.sealed.units[0].stop]
            self._means[layer] = first.float().mean(1).numpy()
        return self._means[layer]
