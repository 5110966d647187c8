"""Compiled part of sampled recall: collisions of hash codes, the probability of each sampled key, and the thinning to a limit."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np

from agentmem.memory.archived_kernel import place_of, row_reader
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


@nb.njit(inline="always")
def _mix(x: Any) -> Any:  # pragma: no cover - compiled
    """Scramble 64 bits (the finaliser of SplitMix64; Steele et al. 2014, doi:10.1145/2714064.2660195)."""
    x = np.uint64(x)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit
def thin(found: Any, score: Any, bias: Any, n: int, seed: Any, ids: Any) -> Any:  # pragma: no cover - compiled
    """Take at most ``len(ids)`` of the ``n`` tokens ``found``; move their columns of ``bias`` ``[group, n]`` to the front; return how many.

    ``score`` ``[group, n]`` includes the bias. The better half of the places goes to the tokens that weigh most, the other half to
    some of the rest, drawn evenly, which then stand for all of the rest.
    """
    limit = len(ids)
    order = np.arange(n)
    sure = n
    if n > limit:
        rank = np.full(n, -np.inf, np.float32)
        for g in range(score.shape[0]):
            best = score[g, :n].max()
            if best > UNSEEN:
                rank = np.maximum(rank, score[g, :n] - best)
        order = np.argsort(-rank, kind="mergesort")
        sure = limit // 2
        lot = np.empty(n - sure, np.uint64)
        for i in range(n - sure):
            lot[i] = _mix(_mix(np.uint64(seed)) ^ np.uint64(found[order[sure + i]]))
        order[sure:] = order[sure:][np.argsort(lot, kind="mergesort")].copy()
    share = np.float32(math.log((n - sure) / (limit - sure))) if n > limit else np.float32(0)
    taken = bias[:, order[: min(n, limit)]].copy()
    for i in range(taken.shape[1]):
        ids[i] = found[order[i]]
        for g in range(bias.shape[0]):
            bias[g, i] = taken[g, i] + (share if i >= sure else np.float32(0))
    return taken.shape[1]


@functools.cache
def sampler(format: ArchiveFormat, dtype: str, dim: int, group: int) -> Callable[..., None]:
    """Return ``sample(source, layer, codes, own, resident, q, mean, bits, scale, seed, ids, counts, bias)``.

    ``codes`` uint64 ``[kv_heads, length, words]``, ``own`` ``[heads, words]`` those of the queries ``q`` fp32 ``[heads, dim]``; ``mean``
    fp32 ``[kv_heads, dim]`` centred the keys; a table takes ``bits``. Writes ``ids`` int32 ``[kv_heads, limit]``, ``counts`` int64
    ``[kv_heads]`` and ``bias`` fp32 ``[heads, limit]``: minus the logarithm of the probability, ``UNSEEN`` where the head's own query did
    not sample the token.
    """
    read = row_reader(format, dtype, dim, keys=True, widen=True)

    @nb.njit
    def weigh(  # pragma: no cover - compiled
        source: Any, layer: int, head: int, token: int, q: Any, mean: Any, key: Any, products: Any
    ) -> Any:
        """Write q.(k - mean) of a group's queries, return the norm of k - mean."""
        block, row = place_of(token, source[1])
        read(source, layer, head, block, row, key, 0)
        norm = np.float32(0)
        for d in range(dim):
            key[0, d] -= mean[head, d]
            norm += key[0, d] * key[0, d]
        for g in range(group):
            products[g] = np.float32(0)
            for d in range(dim):
                products[g] += key[0, d] * q[head * group + g, d]
        return math.sqrt(norm)

    @nb.njit(nogil=True)
    def sample(  # pragma: no cover - compiled
        source: Any, layer: int, codes: Any, own: Any, resident: Any, q: Any, mean: Any, bits: int, scale: float, seed: int,
        ids: Any, counts: Any, bias: Any,
    ) -> None:  # fmt: skip
        kv_heads, length, words = codes.shape
        tables = words * (64 // bits)
        key, products, hit = np.empty((1, dim), np.float32), np.empty(group, np.float32), np.empty(group, np.bool_)
        found = np.empty(length, np.int32)
        weight, score = np.empty((group, length), np.float32), np.empty((group, length), np.float32)
        for head in range(kv_heads):
            n = 0
            for token in range(length):
                if resident[head, token]:
                    continue
                sampled = False
                for g in range(group):
                    hit[g] = _collides(codes[head, token], own[head * group + g], bits)
                    sampled |= hit[g]
                if not sampled:
                    continue
                norm = weigh(source, layer, head, token, q, mean, key, products)
                for g in range(group):
                    length_q = math.sqrt((q[head * group + g] ** 2).sum())
                    cosine = products[g] / max(norm * length_q, 1e-20)
                    weight[g, n] = -math.log(sampling_probability(cosine, bits, tables)) if hit[g] else UNSEEN
                    score[g, n] = products[g] * scale + weight[g, n]
                found[n] = token
                n += 1
            counts[head] = thin(found, score, weight, n, seed * kv_heads + head, ids[head])
            bias[head * group : (head + 1) * group, : counts[head]] = weight[:, : counts[head]]

    return sample  # type: ignore[no-any-return]
