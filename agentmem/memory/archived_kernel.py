"""Compiled readers of archived rows: they copy or dequantise K or V from mapped blocks, by address, and hold no lock of the interpreter.

A *source* is ``(addresses, tokens, kv_heads)``: uint64 ``[arrays, blocks]`` (the rows or codes; scales and zeros where the archive is
quantised), the tokens of a block, the KV heads. The caller keeps the memory behind the addresses alive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import raw_memcpy
from numba.extending import intrinsic

from agentmem.memory.compiled import kept
from agentmem.memory.decode_kernel import WIDTH, _from_bfloat16, _from_float16, _from_float32, _pointer
from agentmem.stores.mapped import ArchiveFormat

GROUP = 32  # tokens (K) or channels (V) that share a scale and a zero: KIVI, arXiv:2402.02750
AHEAD = 8  # rows between asking for one and reading it
CACHE_LINE = 64  # bytes
LOAD = {"float32": _from_float32, "bfloat16": _from_bfloat16, "float16": _from_float16}


@intrinsic
def _bits_of_float(_context: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@nb.njit(inline="always")
def _to_bfloat16(value: Any) -> Any:  # pragma: no cover - compiled
    """Round to the nearest, ties to even, as torch does. Archived values are finite."""
    bits = _bits_of_float(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@intrinsic
def _to_float16(_context: Any, value: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def _copy_bytes(_context: Any, target: Any, source: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        raw_memcpy(builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.int64), codegen


@intrinsic
def _prefetch(_context: Any, address: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word]))
        builder.call(function, [builder.inttoptr(args[0], byte), *(ir.Constant(word, n) for n in (0, 3, 1))])  # to read, keep, data
        return _context.get_dummy_value()

    return types.void(types.uint64), codegen


STORE = {"float32": _from_float32, "bfloat16": _to_bfloat16, "float16": _to_float16}


def _native(dim: int, dtype: str) -> Any:
    """Return a reader that copies the bits of a row. Element by element it takes seven times as long."""
    row_bytes = dim * np.dtype(WIDTH[dtype]).itemsize

    @nb.njit
    def read(source: Any, layer: int, head: int, block: int, row: int, out: Any, at: int) -> None:  # pragma: no cover - compiled
        addresses, tokens, kv_heads = source
        first = ((layer * kv_heads + head) * tokens + row) * row_bytes
        _copy_bytes(np.uint64(out.ctypes.data) + np.uint64(at * row_bytes), addresses[0, block] + np.uint64(first), row_bytes)

    return read


def _quantised(convert: Any, dim: int, bits: int, *, keys: bool) -> Any:
    """Return a reader that dequantises a row: code * scale + zero in fp32, K's scales per channel and V's per token."""
    packed = dim * bits // 8
    v_groups = -(-dim // GROUP)
    like_code, like_half = np.empty(0, np.uint8), np.empty(0, np.uint16)

    @nb.njit
    def read(source: Any, layer: int, head: int, block: int, row: int, out: Any, at: int) -> None:  # pragma: no cover - compiled
        addresses, tokens, kv_heads = source
        place = layer * kv_heads + head
        codes = nb.carray(_pointer(addresses[0, block] + np.uint64((place * tokens + row) * packed), like_code), packed)
        if keys:
            per_row, first = dim, (place * ((tokens + GROUP - 1) // GROUP) + row // GROUP) * dim
        else:
            per_row, first = v_groups, (place * tokens + row) * v_groups
        scales = nb.carray(_pointer(addresses[1, block] + np.uint64(first * 2), like_half), per_row)
        zeros = nb.carray(_pointer(addresses[2, block] + np.uint64(first * 2), like_half), per_row)
        for d in range(dim):
            code = codes[d] if bits == 8 else (codes[d >> 1] >> np.uint8((d & 1) * 4)) & np.uint8(15)
            group = d if keys else d // GROUP
            out[at, d] = convert(np.float32(code) * _from_float16(scales[group]) + _from_float16(zeros[group]))

    return read


@nb.njit(inline="always")
def place_of(token: Any, tokens: Any) -> Any:  # pragma: no cover - compiled
    """Return the block and the row in it; unsigned and 32 bits wide, since dividing costs as much as copying a row."""
    block = np.uint32(token) // np.uint32(tokens)
    return np.int64(block), np.int64(np.uint32(token) - block * np.uint32(tokens))


@functools.cache
def row_reader(format: ArchiveFormat, dtype: str, dim: int, *, keys: bool, widen: bool = False) -> Any:
    """Return a compiled ``read(source, layer, head, block, row, out, at)`` that fills ``out[at]``, of ``[n, dim]``, with one row of K or V.

    ``out`` is contiguous, its elements as those of ``dtype`` are stored (``decode_kernel.WIDTH``); with ``widen`` as ``wide`` says. For
    use in compiled code.
    """
    if format is ArchiveFormat.NATIVE:
        return _native(dim, dtype)
    return _quantised(_from_float32 if widen else STORE[dtype], dim, 8 if format is ArchiveFormat.INT8 else 4, keys=keys)


def wide(format: ArchiveFormat, dtype: str) -> tuple[Any, Any]:
    """Return numpy's type of the rows that a reader with ``widen`` makes, and what loads their elements as fp32."""
    return (WIDTH[dtype], LOAD[dtype]) if format is ArchiveFormat.NATIVE else (np.float32, _from_float32)


@functools.cache
def toucher(format: ArchiveFormat, dtype: str, dim: int) -> Any:
    """Return a compiled ``touch(source, layer, head, token)`` that asks for a row before it is read: lone rows wait for memory."""
    width = {ArchiveFormat.NATIVE: np.dtype(WIDTH[dtype]).itemsize * 2, ArchiveFormat.INT8: 2, ArchiveFormat.INT4: 1}[format]
    row_bytes = width * dim // 2

    @nb.njit(inline="always")
    def touch(source: Any, layer: int, head: int, token: int) -> None:  # pragma: no cover - compiled
        addresses, tokens, kv_heads = source
        block, row = place_of(token, tokens)
        first = addresses[0, block] + np.uint64(((layer * kv_heads + head) * tokens + row) * row_bytes)
        for line in range(0, row_bytes, CACHE_LINE):
            _prefetch(first + np.uint64(line))

    return touch


@functools.cache
def layer_copier(format: ArchiveFormat, dtype: str, dim: int, *, keys: bool) -> Callable[..., None]:
    """Return ``copy(source, layer, out)``: tokens 0 to n of a layer into ``out`` ``[kv_heads, n, dim]``, elements as they are stored."""
    read = row_reader(format, dtype, dim, keys=keys)

    @kept(format, dtype, dim, keys, nogil=True)
    def copy(source: Any, layer: int, out: Any) -> None:  # pragma: no cover - compiled
        tokens = source[1]
        for head in range(out.shape[0]):
            own = out[head]
            for start in range(0, out.shape[1], tokens):
                for row in range(min(tokens, out.shape[1] - start)):
                    read(source, layer, head, start // tokens, row, own, start + row)

    return copy  # type: ignore[no-any-return]


@functools.cache
def row_gatherer(format: ArchiveFormat, dtype: str, dim: int) -> Callable[..., None]:
    """Return ``gather(k, v, layer, ids, counts, out_k, out_v)``: K and V of each KV head's first ``counts`` ids."""
    read_k = row_reader(format, dtype, dim, keys=True)
    read_v = row_reader(format, dtype, dim, keys=False)
    touch = toucher(format, dtype, dim)

    @kept(format, dtype, dim, nogil=True)
    def gather(k: Any, v: Any, layer: int, ids: Any, counts: Any, out_k: Any, out_v: Any) -> None:  # pragma: no cover - compiled
        tokens = k[1]
        for head in range(len(counts)):
            own, own_k, own_v, n = ids[head], out_k[head], out_v[head], counts[head]
            for i in range(n):
                ahead = own[min(i + AHEAD, n - 1)]
                touch(k, layer, head, ahead)
                touch(v, layer, head, ahead)
                block, row = place_of(own[i], tokens)
                read_k(k, layer, head, block, row, own_k, i)
                read_v(v, layer, head, block, row, own_v, i)

    return gather  # type: ignore[no-any-return]
