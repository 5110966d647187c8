"""Small blocks, sessions and stores for the tests of ``agentmem.stores``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from agentmem.stores import Archive, BlockFiles, BlockHeader, BlockRow, Ledger, StoredBlock
from agentmem.types import BlockHash, Fingerprint, Message, SessionId, SessionRecord, TenantId, Turn

TENANT = TenantId("acme")
OTHER = TenantId("globex")
SESSION = SessionId("s1")
HEADER = BlockHeader(
    format_version=1, fingerprint="model-1", dtype="float32", layers=2, kv_heads=1, head_dim=256, first_token=0, n_tokens=4, rope="default"
)
BLOCK_QUOTA = HEADER.payload_bytes + 4096  # what the archive reserves for one block


def digest(name: str) -> BlockHash:
    """Return a block hash that belongs to ``name``."""
    return BlockHash(hashlib.sha256(name.encode()).digest())


def stored(name: str, position: int = 0, *, header: BlockHeader = HEADER, tenant: TenantId = TENANT) -> StoredBlock:
    """Return a block whose contents follow from ``name``; position in tokens."""
    noise = torch.Generator().manual_seed(int.from_bytes(digest(name)[:4], "big"))
    dtype = getattr(torch, header.dtype)
    k, v = (torch.randn(header.shape, generator=noise).to(dtype) for _ in "kv")
    return StoredBlock(digest(name), None, tenant, position, k, v)


def row(name: str, position: int = 0, *, tenant: TenantId = TENANT, n_bytes: int = 10) -> BlockRow:
    """Return a block row that belongs to ``name``."""
    return BlockRow(digest(name), None, tenant, n_bytes, position)


def session(session_id: str = SESSION, *, tenant: TenantId = TENANT, **fields: object) -> SessionRecord:
    """Return a session record; ``fields`` as in SessionRecord."""
    return SessionRecord(SessionId(session_id), tenant, Fingerprint("model-1"), "tokenizer-1", **fields)  # type: ignore[arg-type]


def turn(index: int, text: str = "hello") -> Turn:
    """Return a turn with one message and one token id per character."""
    return Turn(index, messages=(Message("user", text),), token_ids=tuple(map(ord, text)))


def open_archive(state: Path, *, host_bytes: int = 0, disk_bytes: int = 10**9, header: BlockHeader = HEADER) -> tuple[Ledger, Archive]:
    """Open the stores in ``state`` as the server does."""
    ledger = Ledger(state / "meta.sqlite")
    files = BlockFiles(state / "blocks", quarantine=state / "quarantine")
    return ledger, Archive(files, ledger, header=header, host_bytes=host_bytes, disk_bytes=disk_bytes)
