"""K and V at 8 or 4 bits: asymmetric, K per channel over 32 tokens, V per token over 32 channels.

KIVI (Liu et al. 2024, arXiv:2402.02750): outliers of K sit in few channels, those of V in few tokens, so these are the axes along which a
group shares its range.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

GROUP = 32
_LARGEST = 65504.0  # of fp16
# A scale or a zero is moved outward by this before it is rounded to fp16, so that rounding never takes a value out of its group's range.
_ROUNDING, _SUBNORMAL = 2.0**-10, 2.0**-24


def quantise(k: Tensor, v: Tensor, bits: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Return (codes of K, codes of V) and (k_scale, k_zero, v_scale, v_zero) as ``mapped.MappedBlock`` lays them out.

    ``k`` and ``v`` ``[layers, kv_heads, tokens, head_dim]``, any float dtype; ``bits`` 8 or 4. Each value comes back within half its scale.
    fp16 bounds zeros and scales: values beyond 65504 saturate, a NaN becomes 0.
    """
    k_codes, k_scale, k_zero = _encode(k.transpose(2, 3), bits)
    v_codes, v_scale, v_zero = _encode(v, bits)
    codes = (_pack(k_codes.transpose(2, 3), bits), _pack(v_codes, bits))
    return codes, (k_scale.transpose(2, 3).contiguous(), k_zero.transpose(2, 3).contiguous(), v_scale, v_zero)


def dequantise(codes: tuple[Tensor, Tensor], scales: tuple[Tensor, ...], bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return K and V ``[layers, kv_heads, tokens, head_dim]`` in ``dtype``: code * scale + zero, worked out in fp32."""
    k_scale, k_zero, v_scale, v_zero = scales
    head_dim = k_scale.shape[3]
    k_codes, v_codes = (_unpack(each, bits)[..., :head_dim] for each in codes)
    k = _decode(k_codes.transpose(2, 3), k_scale.transpose(2, 3), k_zero.transpose(2, 3)).transpose(2, 3)
    return k.to(dtype).contiguous(), _decode(v_codes, v_scale, v_zero).to(dtype)


def _encode(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes ``[..., n]``, scales and zeros ``[..., n / 32]`` rounded up, for groups of the last axis ``n``."""
    n, levels = x.shape[-1], 2**bits - 1
    x = torch.nan_to_num(x.float(), nan=0.0).clamp(-_LARGEST, _LARGEST)
    # The last group is filled up with its last value, which leaves its range as it is.
    last = x[..., -1:].expand(*x.shape[:-1], -n % GROUP)
    groups = torch.cat([x, last], dim=-1).view(*x.shape[:-1], -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    zero = (low - low.abs() * _ROUNDING - _SUBNORMAL).clamp(-_LARGEST, _LARGEST).half()
    scale = ((high - zero.float()) / levels * (1 + _ROUNDING) + _SUBNORMAL).half()
    codes = ((groups - zero.float()[..., None]) / scale.float()[..., None]).round().clamp(0, levels)
    return codes.to(torch.uint8).flatten(-2)[..., :n], scale, zero


def _decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    n = codes.shape[-1]
    per_value = (each.float().repeat_interleave(GROUP, -1)[..., :n] for each in (scale, zero))
    return codes.float() * next(per_value) + next(per_value)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Put two 4-bit codes into a byte, the even channel in the low half."""
    if bits == 4:
        codes = pad(codes, (0, codes.shape[-1] % 2))
        codes = codes[..., 0::2] | codes[..., 1::2] << 4
    return codes.contiguous()


def _unpack(codes: Tensor, bits: int) -> Tensor:
    return codes if bits == 8 else torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
