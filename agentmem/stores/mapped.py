"""Block files mapped into memory, so that a session can read single rows of its archive without holding it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import Tensor

from agentmem.types import BlockHash


class ArchiveFormat(StrEnum):
    """How K and V lie in block files."""

    NATIVE = "native"  # the model's dtype, bit for bit
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True, eq=False)
class MappedBlock:
    """One verified block file, mapped. Never write to its tensors.

    NATIVE: ``k`` and ``v`` ``[layers, kv_heads, tokens, head_dim]`` in the model's dtype, contiguous, ``scales`` empty.

    INT8, INT4: uint8 codes of that shape (INT4: two in a byte, so ``head_dim / 2``, the even channel in the low four bits), and ``scales``
    = (k_scale, k_zero, v_scale, v_zero), fp16: K's ``[layers, kv_heads, tokens / 32, head_dim]``, V's ``[layers, kv_heads, tokens,
    head_dim / 32]``, rounded up; value = code * scale + zero.
    """

    hash: BlockHash
    format: ArchiveFormat
    k: Tensor
    v: Tensor
    scales: tuple[Tensor, ...] = ()
