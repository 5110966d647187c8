"""What the stores hand out and take in. Times are seconds since the epoch, sizes bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.types import BlockHash, MissReason, SessionRecord, TenantId, Tier

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ArchiveFormat(StrEnum):
    """How K and V lie in block files."""

    NATIVE = "native"  # the model's dtype, bit for bit
    INT8 = "int8"
    INT4 = "int4"

    @property
    def bits(self) -> int:
        """Bits of one code. Only INT8 and INT4 have codes."""
        return int(self.removeprefix("int"))


class BlockUnavailable(Exception):
    """A block cannot be read, so its tokens have to be computed again. Never leaves the server.

    ``reason`` is what the reuse report says, ``detail`` one sentence for people.
    """

    def __init__(self, reason: MissReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class BlockRow:
    """The ledger's promise that a block file is on disk. ``position`` is the session position of its first token."""

    hash: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    n_bytes: int
    position: int


@dataclass(frozen=True, slots=True)
class BlockHeader:
    """What a block file must say of itself before its tensors are believed. ``dtype`` is torch's name, e.g. ``bfloat16``."""

    format_version: int
    fingerprint: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    first_token: int
    n_tokens: int
    rope: str

    def __post_init__(self) -> None:
        """Raise InvalidInput for a dtype that block files do not hold, or an empty shape."""
        if self.dtype not in DTYPES:
            raise InvalidInput(f"block dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if min(self.shape) < 1 or self.first_token < 0:
            raise InvalidInput(f"block shape {self.shape} at token {self.first_token}; allowed: 1 or more in each, at token 0 or later")

    @property
    def payload_bytes(self) -> int:
        """Bytes of K and V together."""
        return 2 * math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of K and of V: layers, KV heads, tokens, head dimension."""
        return (self.layers, self.kv_heads, self.n_tokens, self.head_dim)


@dataclass(frozen=True, slots=True, eq=False)
class BlockFile:
    """What goes into one block file. ``k`` and ``v`` have the header's dtype and shape, on any device; ``format`` is the file's."""

    hash: BlockHash
    header: BlockHeader
    k: Tensor
    v: Tensor
    format: ArchiveFormat = ArchiveFormat.NATIVE


@dataclass(frozen=True, slots=True, eq=False)
class StoredBlock:
    """A block to archive. ``k`` and ``v`` are ``[layers, kv_heads, tokens, head_dim]``, on any device; they are not changed."""

    hash: BlockHash
    parent: BlockHash | None
    tenant: TenantId
    position: int
    k: Tensor
    v: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBlock:
    """A block that was read. K and V ``[layers, kv_heads, tokens, head_dim]`` on the CPU, shared between readers: never write to them."""

    k: Tensor
    v: Tensor
    tier: Tier


@dataclass(frozen=True, slots=True)
class Page:
    """A page of sessions; ``next_token`` is empty on the last one."""

    records: list[SessionRecord]
    next_token: str


@dataclass(frozen=True, slots=True)
class SessionSize:
    """Turns, tokens and bytes of block files of a session, and whether its last turn is open."""

    turns: int
    tokens: int
    open_turn: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class LedgerStats:
    """Row counts of the ledger, and the bytes of the block files that it promises."""

    sessions: int
    turns: int
    blocks: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class SweepReport:
    """How many files a sweep removed: blocks that no row promises with their results, and temporary files of interrupted writes."""

    orphans: int
    temps: int


@dataclass(frozen=True, slots=True)
class ArchiveStats:
    """Use of the tiers in bytes and blocks, and what happened since the start. ``unavailable`` counts failed loads by reason.

    ``disk_used`` includes ``result_bytes``, the files of sealing's results. ``mapped_bytes`` are those of blocks that sessions read rows
    of now, ``mapped_host`` and ``mapped_disk`` how often one was mapped. ``evicted`` counts blocks that left the disk, ``evicted_host``
    those that left host memory, both for want of room.
    """

    disk_used: int
    disk_bytes: int
    host_used: int
    host_bytes: int
    host_blocks: int
    held: int
    stored: int
    loaded_host: int
    loaded_disk: int
    evicted: int
    unavailable: dict[MissReason, int] = field(default_factory=dict)
    disk_blocks: int = 0
    result_bytes: int = 0
    mapped_bytes: int = 0
    mapped_host: int = 0
    mapped_disk: int = 0
    evicted_host: int = 0
