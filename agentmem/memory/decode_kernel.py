"""Attention of single queries on the CPU, compiled: one pass over K and V, without torch's cost a call.

The method is online softmax in tiles (Milakov & Gimelshein 2018, arXiv:1805.02867; FlashAttention, arXiv:2205.14135) over *pieces*: a piece
is the rows that one query sees of one KV head, so that all sessions share one call. K and V are read as they lie, by address; bf16 and fp16
are widened to fp32 in registers. exp is the Cephes polynomial, relative error below 2e-7. One thread: waking a second one for each layer
costs what it saves, since torch's own threads spin on the other cores between two linear layers (measured on 2 cores).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from agentmem.memory.compiled import kept

TILE = 64  # keys whose scores are kept at a time
UNROLL = 4
WIDTH = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.uint16}  # how a stored element looks to the kernel
Kernel = Callable[..., None]


@intrinsic
def _from_bfloat16(_context: Any, bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def _from_float16(_context: Any, bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@nb.njit(inline="always")
def _from_float32(value: Any) -> Any:  # pragma: no cover - compiled
    return value


@intrinsic
def _pointer(_context: Any, address: Any, like: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), codegen


@intrinsic
def _float_of_bits(_context: Any, bits: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@nb.njit(inline="always", fastmath=True)
def _exp(x: Any) -> Any:  # pragma: no cover - compiled
    """exp(x) for x <= 0 in fp32 (Cephes expf): 2**n times a polynomial in the rest."""
    x = max(x, np.float32(-87.0))
    n = math.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    f = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    return (p * f * f + f + np.float32(1.0)) * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


def _scoring(load: Any, dim: int, group: int) -> Any:
    """Return a function that scores a tile of keys against a group of queries."""

    @nb.njit(fastmath=True)
    def score(k: Any, start: Any, size: Any, own: Any, scores: Any) -> None:  # pragma: no cover - compiled
        for j in range(size):
            for g in range(group):
                product = np.float32(0)
                for d in range(dim):
                    product += load(k[start + j, d]) * own[g, d]
                scores[g, j] = product

    return score


def _softening(dim: int, group: int) -> Any:
    """Return a function that turns a tile's scores into weights relative to the highest score so far."""

    @nb.njit(fastmath=True)
    def soften(scores: Any, start: Any, size: Any, top: Any, total: Any, acc: Any) -> None:  # pragma: no cover - compiled
        for g in range(group):
            highest = top[g]
            for j in range(size):
                highest = max(highest, scores[g, j])
            shrink = _exp(top[g] - highest) if start else np.float32(0)
            top[g] = highest
            weight = np.float32(0)
            for j in range(size):
                scores[g, j] = _exp(scores[g, j] - highest)
                weight += scores[g, j]
            total[g] = total[g] * shrink + weight
            for d in range(dim):
                acc[g, d] *= shrink

    return soften


def _adding(load: Any, dim: int, group: int) -> Any:
    """Return a function that adds a tile's weighted values, several rows at a time so that the sums stay in registers."""

    @nb.njit(fastmath=True)
    def add(v: Any, start: Any, size: Any, weights: Any, acc: Any) -> None:  # pragma: no cover - compiled
        whole = size - size % UNROLL
        for j in range(0, whole, UNROLL):
            for g in range(group):
                w0, w1, w2, w3 = weights[g, j], weights[g, j + 1], weights[g, j + 2], weights[g, j + 3]
                for d in range(dim):
                    left = w0 * load(v[start + j, d]) + w1 * load(v[start + j + 1, d])
                    acc[g, d] += left + (w2 * load(v[start + j + 2, d]) + w3 * load(v[start + j + 3, d]))
        for j in range(whole, size):
            for g in range(group):
                for d in range(dim):
                    acc[g, d] += weights[g, j] * load(v[start + j, d])

    return add


@functools.cache
def piece_kernel(dtype: str, dim: int, group: int) -> Kernel:
    """Compile and return the kernel for K and V of ``dtype`` (float32, bfloat16, float16), heads of ``dim``, groups of ``group`` queries.

    ``kernel(k_address, v_address, n_rows, query, q, out, top, total)``, for each piece: the addresses of its first rows (uint64), how many
    there are (int64; 0: the piece is empty), and its group's first row (int64) in ``q`` ``[rows, dim]`` (fp32, scaled). Writes ``out``
    ``[pieces, group, dim]``, unnormalised, and the highest score ``top`` and the sum of weights ``total`` ``[pieces, group]``, all fp32.
    It holds no lock of the interpreter. The caller keeps the memory behind the addresses alive.
    """
    load = {"float32": _from_float32, "bfloat16": _from_bfloat16, "float16": _from_float16}[dtype]
    like = np.empty(0, WIDTH[dtype])
    score, soften, add = _scoring(load, dim, group), _softening(dim, group), _adding(load, dim, group)

    @kept(dtype, dim, group, nogil=True, fastmath=True)
    def kernel(  # pragma: no cover - compiled
        k_address: Any, v_address: Any, n_rows: Any, query: Any, q: Any, out: Any, top: Any, total: Any, like: Any
    ) -> None:
        own = np.empty((group, dim), np.float32)
        scores = np.empty((group, TILE), np.float32)
        for piece in range(len(n_rows)):
            n = n_rows[piece]
            k = nb.carray(_pointer(k_address[piece], like), (n, dim))
            v = nb.carray(_pointer(v_address[piece], like), (n, dim))
            own[:] = q[query[piece] : query[piece] + group]
            out[piece] = 0
            top[piece] = -np.inf
            total[piece] = 0
            for start in range(0, n, TILE):
                size = min(TILE, n - start)
                score(k, start, size, own, scores)
                soften(scores, start, size, top[piece], total[piece], out[piece])
                add(v, start, size, scores, out[piece])

    return lambda *args: kernel(*args, like)


@kept()
def merge_pieces(  # pragma: no cover - compiled
    bounds: Any, slots: Any, rows: Any, out: Any, top: Any, total: Any, outs: Any, lses: Any
) -> None:
    """Merge the pieces of every row, normalised, into ``outs[slot, head, row]``, and their log-sum-exp into the same place of ``lses``.

    ``out``, ``top`` and ``total`` as ``piece_kernel`` wrote them; row i of ``rows`` (int64, its ``slots`` beside it) has the queries
    ``bounds[i]`` to ``bounds[i + 1]``, a piece each for every KV head. ``outs`` ``[slots, heads, T, dim]`` and ``lses`` ``[slots, heads,
    T]``, both fp32. Where none of its pieces has rows nothing is written.
    """
    _, group, dim = out.shape
    kv_heads = outs.shape[1] // group
    for i in range(len(rows)):
        for head in range(outs.shape[1]):
            g = head % group
            pieces = range(bounds[i] * kv_heads + head // group, bounds[i + 1] * kv_heads, kv_heads)
            highest, weight = np.float32(-np.inf), np.float32(0)
            for piece in pieces:
                highest = max(highest, top[piece, g])
            if highest == -np.inf:
                continue
            own = outs[slots[i], head, rows[i]]
            own[:] = 0
            for piece in pieces:
                if total[piece, g] > 0:
                    shrink = np.float32(math.exp(top[piece, g] - highest))
                    weight += shrink * total[piece, g]
                    for d in range(dim):
                        own[d] += shrink * out[piece, g, d]
            for d in range(dim):
                own[d] /= weight
            lses[slots[i], head, rows[i]] = highest + math.log(weight)
