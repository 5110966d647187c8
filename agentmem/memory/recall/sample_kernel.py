"""Compiled part of sampled recall: collisions of hash codes, and the probability of each sampled key."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np

from agentmem.memory.archived_kernel import place_of, row_reader, wide
from agentmem.memory.compiled import kept
from agentmem.stores.mapped import ArchiveFormat

UNSEEN = -10_000.0  # bias of a key that another head's query sampled: its weight is 0, and finite arithmetic stays finite


@nb.njit
def sampling_probability(cosine: Any, bits: Any, tables: Any) -> Any:  # pragma: no cover - compiled
    """Return the probability that two vectors share all ``bits`` of a table in at least two of ``tables`` tables."""
    one = (1 - math.acos(min(1.0, max(-1.0, cosine))) / math.pi) ** bits
    return max(1e-9, 1 - (1 - one) ** tables - tables * one * (1 - one) ** (tables - 1))


@nb.njit(inline="always")
def _collides(code: Any, own: Any, bits: Any) -> Any:  # pragma: no cover - compiled
    """Whether two codes, uint64 ``[words]``, agree in at least two tables of ``bits`` bits, as many as fit into each word."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    shared = 0
    for word in range(len(code)):
        differ = code[word] ^ own[word]
        for _ in range(64 // bits):
            shared += (differ & mask) == 0
            differ >>= np.uint64(bits)
        if shared >= 2:
            return True
    return False


@functools.cache
def sampler(format: ArchiveFormat, dtype: str, dim: int, group: int) -> Callable[..., None]:
    """Return ``sample(source, layer, codes, own, resident, q, mean, bits, found, counts, products, bias)``.

    ``codes`` uint64 ``[kv_heads, length, words]``, ``own`` ``[heads, words]`` those of the queries ``q`` fp32 ``[heads, dim]``; ``mean``
    fp32 ``[kv_heads, dim]`` centred the keys; a table takes ``bits``. Of each KV head it writes the tokens that any query of the group
    sampled to the front of ``found`` int32 ``[kv_heads, length]``, their number to ``counts``, and to fp32 ``[heads, length]`` their
    centred ``products`` with the queries and their ``bias``: minus the logarithm of the probability, or ``UNSEEN``.
    """
    read = row_reader(format, dtype, dim, keys=True, widen=True)

    stored, load = wide(format, dtype)

    @kept(format, dtype, dim, group, nogil=True)
    def sample(  # pragma: no cover - compiled
        source: Any, layer: int, codes: Any, own: Any, resident: Any, q: Any, mean: Any, bits: int,
        found: Any, counts: Any, products: Any, bias: Any,
    ) -> None:  # fmt: skip
        kv_heads, length, words = codes.shape
        tables = words * (64 // bits)
        key, hit = np.empty((1, dim), stored), np.empty(group, np.bool_)
        for head in range(kv_heads):
            n, first = 0, head * group
            for token in range(length):
                if resident[head, token]:
                    continue
                sampled = False
                for g in range(group):
                    hit[g] = _collides(codes[head, token], own[first + g], bits)
                    sampled |= hit[g]
                if not sampled:
                    continue
                block, row = place_of(token, source[1])
                read(source, layer, head, block, row, key, 0)
                for g in range(group):
                    product, k_square, q_square = np.float32(0), np.float32(0), np.float32(0)
                    for d in range(dim):
                        centred = load(key[0, d]) - mean[head, d]
                        product += centred * q[first + g, d]
                        k_square += centred * centred
                        q_square += q[first + g, d] * q[first + g, d]
                    cosine = product / max(math.sqrt(k_square * q_square), 1e-20)
                    products[first + g, n] = product
                    bias[first + g, n] = -math.log(sampling_probability(cosine, bits, tables)) if hit[g] else UNSEEN
                found[head, n] = token
                n += 1
            counts[head] = n

    return sample  # type: ignore[no-any-return]
