"""Compiled parts of recall: candidates are scored exactly and ranked, queries compared. One thread, without the interpreter's lock."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np

from agentmem.memory.archived_kernel import AHEAD, place_of, row_reader, toucher, wide
from agentmem.memory.compiled import kept
from agentmem.stores.mapped import ArchiveFormat

TILE = 32  # keys that are copied before they are scored


@nb.njit(inline="always")
def collect(candidates: Any, chosen: Any, resident: Any, seen: Any, found: Any) -> Any:  # pragma: no cover - compiled
    """Write the candidates and what follows each token ``chosen``, residents and doubles apart, to ``found``; return how many.

    Leaves ``seen`` clear.
    """
    n = 0
    for candidate in candidates:
        if candidate >= 0 and not seen[candidate] and not resident[candidate]:
            seen[candidate] = True
            found[n] = candidate
            n += 1
    for token in chosen:
        after = np.int64(token) + 1
        if after < len(seen) and not seen[after] and not resident[after]:
            seen[after] = True
            found[n] = after
            n += 1
    for i in range(n):
        seen[found[i]] = False
    return n


@nb.njit
def rank_of(score: Any, n: int, rank: Any) -> None:  # pragma: no cover - compiled
    """Rank token i by the query that misses it most: the maximum over g of ``score[g, i]`` less the highest score of g."""
    for g in range(score.shape[0]):
        best = score[g, 0]
        for i in range(n):
            best = max(best, score[g, i])
        for i in range(n):
            rank[i] = max(rank[i], score[g, i] - best) if g else score[g, i] - best


@nb.njit
def nth_highest(rank: Any, n: int, nth: int) -> Any:  # pragma: no cover - compiled
    """Return the ``nth`` highest of the first ``n``, 1 for the highest: quickselect (Hoare 1961). numpy's takes seconds to compile."""
    work = rank[:n].copy()
    low, high, at = 0, n - 1, nth - 1
    while low < high:
        pivot = work[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while work[i] > pivot:
                i += 1
            while work[j] < pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return work[at]


@nb.njit
def select(found: Any, rank: Any, n: int, limit: int, ids: Any) -> Any:  # pragma: no cover - compiled
    """Write the ``limit`` best of the ``n`` tokens ``found`` to ``ids``, in their order there; of equals the first. Return how many."""
    if n <= limit:
        for i in range(n):
            ids[i] = found[i]
        return n
    least = nth_highest(rank, n, limit)
    above = 0
    for i in range(n):
        above += rank[i] > least
    equals = limit - above
    m = 0
    for i in range(n):
        if rank[i] > least or (rank[i] == least and equals > 0):
            equals -= rank[i] == least
            ids[m] = found[i]
            m += 1
    return m


@functools.cache
def scorer(format: ArchiveFormat, dtype: str, dim: int, group: int) -> Any:
    """Return a compiled ``score(source, layer, head, found, n, q, out)``: q.k of ``n`` archived keys for a group's queries.

    ``q`` fp32 ``[heads, dim]``; writes ``out`` fp32 ``[group, n or more]``.
    """
    read, touch = row_reader(format, dtype, dim, keys=True, widen=True), toucher(format, dtype, dim)
    stored, load = wide(format, dtype)

    @nb.njit(fastmath=True)
    def score(source: Any, layer: int, head: int, found: Any, n: int, q: Any, out: Any) -> None:  # pragma: no cover - compiled
        keys = np.empty((TILE, dim), stored)
        own = q[head * group : (head + 1) * group].copy()
        for start in range(0, n, TILE):
            size = min(TILE, n - start)
            for j in range(size):
                touch(source, layer, head, found[min(start + j + AHEAD, n - 1)])
                block, row = place_of(found[start + j], source[1])
                read(source, layer, head, block, row, keys, j)
            for j in range(size):
                for g in range(group):
                    product = np.float32(0)
                    for d in range(dim):
                        product += load(keys[j, d]) * own[g, d]
                    out[g, start + j] = product

    return score


@functools.cache
def ranker(format: ArchiveFormat, dtype: str, dim: int, group: int) -> Callable[..., None]:
    """Return ``rank(source, layer, candidates, chosen, n_chosen, resident, q, seen, ids, counts)``: the best candidates of every KV head.

    ``candidates`` int64 ``[kv_heads, m]``, in any order, doubled, -1 for none; beside them what follows KV head h's first ``n_chosen[h]``
    (int64) tokens of ``chosen``, int32 ``[kv_heads, any]``; ``resident`` bool ``[kv_heads, length]``; ``q`` fp32 ``[heads, dim]``; ``seen``
    bool ``[length]``, all False. Writes ``ids`` int32 ``[kv_heads, limit]`` and ``counts`` int64 ``[kv_heads]``.
    """
    score = scorer(format, dtype, dim, group)

    @kept(format, dtype, dim, group, nogil=True)
    def rank(  # pragma: no cover - compiled
        source: Any, layer: int, candidates: Any, chosen: Any, n_chosen: Any, resident: Any, q: Any, seen: Any, ids: Any, counts: Any
    ) -> None:
        kv_heads, m = candidates.shape[0], candidates.shape[1] + chosen.shape[1]
        found, ranks, scores = np.empty(m, np.int32), np.empty(m, np.float32), np.empty((group, m), np.float32)
        for head in range(kv_heads):
            n = collect(candidates[head], chosen[head, : n_chosen[head]], resident[head], seen, found)
            if n > ids.shape[1]:  # else all of them are taken, whatever they score
                score(source, layer, head, found, n, q, scores)
                rank_of(scores, n, ranks)
            counts[head] = select(found, ranks, n, ids.shape[1], ids[head])

    return rank  # type: ignore[no-any-return]


@kept(fastmath=True)
def sign_codes(x: Any, directions: Any, codes: Any) -> None:  # pragma: no cover - compiled
    """Write the SimHash codes of ``x`` fp32 ``[n, dim]`` to ``codes`` uint8 ``[n, bits / 8]``, as ``simhash.encode`` does."""
    for i in range(x.shape[0]):
        for byte in range(codes.shape[1]):
            code = 0
            for bit in range(8):
                product = np.float32(0)
                for d in range(x.shape[1]):
                    product += x[i, d] * directions[byte * 8 + bit, d]
                code |= (product > 0) << bit
            codes[i, byte] = code


@kept(fastmath=True)
def turn_away(now: Any, then: Any, least: Any, away: Any) -> Any:  # pragma: no cover - compiled
    """Say which groups hold a query whose cosine to the one of the same number in ``then`` is below ``least``; return how many.

    Both fp32 ``[heads, dim]``; writes ``away`` bool ``[kv_heads]``, and over the queries ``then`` of such a group those of ``now``. A zero
    row turns nowhere.
    """
    group = now.shape[0] // away.shape[0]
    for kv_head in range(away.shape[0]):
        away[kv_head] = False
        rows = range(kv_head * group, (kv_head + 1) * group)
        for h in rows:
            both, one, other = np.float32(0), np.float32(0), np.float32(0)
            for d in range(now.shape[1]):
                both += now[h, d] * then[h, d]
                one += now[h, d] * now[h, d]
                other += then[h, d] * then[h, d]
            if both < least * math.sqrt(one * other):
                away[kv_head] = True
        if away[kv_head]:
            for h in rows:
                then[h] = now[h]
    return away.sum()
