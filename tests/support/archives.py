"""Archived sessions made of plain tensors: blocks, sealed units, and what a recall method is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.compression.simhash import encode, projection
from agentmem.memory.archived import ArchivedRows
from agentmem.memory.recall.port import Recallable
from agentmem.memory.sealed import SealedMemory, SealedUnit
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


def clustered_kv(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return K and V of ``shape`` whose keys lie around 40 centres, with an offset that all share, as keys of real models do."""
    layers, kv_heads, length, dim = shape
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    centres = noise(layers, kv_heads, 40, dim)
    chosen = torch.randint(40, (layers, kv_heads, length), generator=generator)
    k = centres.gather(2, chosen[..., None].expand(-1, -1, -1, dim)) + 0.7 * noise(layers, kv_heads, length, dim)
    return (k + 2 * noise(layers, kv_heads, 1, dim)).to(dtype), noise(layers, kv_heads, length, dim).to(dtype)


def queries_near(k: Tensor, layer: int, group: int, seed: int = 0) -> NDArray[np.float32]:
    """Return queries ``[heads, dim]``, each near the key, less the mean key, of some token, its group near those of the same one."""
    generator = torch.Generator().manual_seed(seed)
    _, kv_heads, length, dim = k.shape
    token = torch.randint(length, (kv_heads,), generator=generator)
    own = (k[layer].float() - k[layer].float().mean(1, keepdim=True))[torch.arange(kv_heads), token]
    noise = torch.randn(kv_heads, group, dim, generator=generator)
    array: NDArray[np.float32] = (own[:, None] + 0.5 * noise).reshape(-1, dim).numpy()
    return array


def sealed_memory(k: Tensor, keep: Tensor, bits: int, units: int = 1) -> SealedMemory:
    """Return sealed units over ``k`` ``[layers, kv_heads, length, dim]``, all but the last of one size, ``keep`` in the first's list."""
    length = k.shape[2]
    size = -(-length // units)
    bounds = [(start, min(start + size, length)) for start in range(0, length, size)]
    mean = k[:, :, : bounds[0][1]].float().mean(2, keepdim=True)
    codes = torch.stack([encode(own, projection(layer, k.shape[3], bits)) for layer, own in enumerate(k.float() - mean)])
    made = [SealedUnit(a, b, keep if a == 0 else keep[..., :0], codes[:, :, a:b].contiguous()) for a, b in bounds]
    return SealedMemory(tuple(BlockHash(i.to_bytes(32, "big")) for i in range(-(-length // BLOCK))), tuple(made))


def recallable(
    k: Tensor,
    v: Tensor,
    resident: NDArray[np.bool_] | None = None,
    group: int = 1,
    bits: int = 256,
    *,
    units: int = 1,
    format: ArchiveFormat = ArchiveFormat.NATIVE,
    seed: int = 0,
) -> Recallable:
    """Return what a recall method is given for a session with these K and V; no token is resident unless ``resident`` says so."""
    if resident is None:
        resident = np.zeros(k.shape[:3], np.bool_)
    keep = torch.empty(*k.shape[:2], 0, dtype=torch.int32)
    return Recallable(sealed_memory(k, keep, bits, units), archived(k, v, format), resident, group, k.shape[3] ** -0.5, seed)
