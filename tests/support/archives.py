"""Archived sessions made of plain tensors: blocks, sealed units, and what a recall method is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentmem.memory.archived import ArchivedRows
from agentmem.stores.mapped import ArchiveFormat, MappedBlock
from agentmem.types import BlockHash

BLOCK = 64
GROUP = 32


def _grouped(x: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scale and zero (fp16) of ``x``, in groups of 32 along ``dim``, the last one maybe shorter."""
    chunks = x.float().split(GROUP, dim)
    zero = torch.cat([chunk.amin(dim, keepdim=True) for chunk in chunks], dim).half()
    span = torch.cat([chunk.amax(dim, keepdim=True) - chunk.amin(dim, keepdim=True) for chunk in chunks], dim)
    scale = (span / (2**bits - 1)).clamp(min=1e-4).half()
    wide = [t.float().repeat_interleave(GROUP, dim).narrow(dim, 0, x.shape[dim]) for t in (scale, zero)]
    return ((x.float() - wide[1]) / wide[0]).round().clamp(0, 2**bits - 1).to(torch.uint8), scale, zero


def _packed(codes: Tensor, format: ArchiveFormat) -> Tensor:
    """Return the codes as they are stored: INT4 two in a byte, the even channel low."""
    return codes if format is ArchiveFormat.INT8 else codes[..., ::2] | (codes[..., 1::2] << 4)


def mapped_block(k: Tensor, v: Tensor, format: ArchiveFormat, index: int = 0) -> MappedBlock:
    """Return a block of K and V ``[layers, kv_heads, tokens, head_dim]`` in ``format``."""
    name = BlockHash(index.to_bytes(32, "big"))
    if format is ArchiveFormat.NATIVE:
        return MappedBlock(name, format, k.contiguous(), v.contiguous())
    bits = 8 if format is ArchiveFormat.INT8 else 4
    (k_codes, *k_scales), (v_codes, *v_scales) = _grouped(k, 2, bits), _grouped(v, 3, bits)
    return MappedBlock(
        name,
        format,
        _packed(k_codes, format).contiguous(),
        _packed(v_codes, format).contiguous(),
        (*(t.contiguous() for t in k_scales), *(t.contiguous() for t in v_scales)),
    )


def mapped_blocks(k: Tensor, v: Tensor, format: ArchiveFormat = ArchiveFormat.NATIVE, tokens: int = BLOCK) -> list[MappedBlock]:
    """Return K and V ``[layers, kv_heads, length, head_dim]`` as blocks of ``tokens``, the last one filled with zeros."""
    spare = -k.shape[2] % tokens
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, spare)) for x in (k, v))
    pairs = zip(k.split(tokens, 2), v.split(tokens, 2), strict=True)
    return [mapped_block(a, b, format, i) for i, (a, b) in enumerate(pairs)]


def dequantised(block: MappedBlock, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return K and V of a block the slow way: value = code * scale + zero in fp32, rounded to ``dtype``."""
    if block.format is ArchiveFormat.NATIVE:
        return block.k, block.v
    k_scale, k_zero, v_scale, v_zero = (t.float() for t in block.scales)

    def codes(x: Tensor) -> Tensor:
        return x.float() if block.format is ArchiveFormat.INT8 else torch.stack((x & 15, x >> 4), -1).flatten(-2).float()

    def spread(x: Tensor, dim: int, size: int) -> Tensor:
        return x.repeat_interleave(GROUP, dim).narrow(dim, 0, size)

    k, v = codes(block.k), codes(block.v)
    k = k * spread(k_scale, 2, k.shape[2]) + spread(k_zero, 2, k.shape[2])
    v = v * spread(v_scale, 3, v.shape[3]) + spread(v_zero, 3, v.shape[3])
    return k.to(dtype), v.to(dtype)


def random_kv(shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return K and V of ``shape`` with Gaussian entries."""
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(*shape, generator=generator).to(dtype) for _ in range(2))
    return k, v


def archived(k: Tensor, v: Tensor, format: ArchiveFormat = ArchiveFormat.NATIVE, tokens: int = BLOCK) -> ArchivedRows:
    """Return K and V ``[layers, kv_heads, length, head_dim]`` as archived rows."""
    return ArchivedRows(mapped_blocks(k, v, format, tokens), k.shape[2], k.dtype)
