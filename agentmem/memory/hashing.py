"""Chained block hashes: a block's name says which tokens it holds, after which tokens, for which tenant and model.

DESIGN 11: hash = blake3(parent hash, token ids); the root mixes tenant salt, model fingerprint, block size and KV dtype,
so that blocks of two tenants, models, dtypes or block sizes never have the same name.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from blake3 import blake3

from agentmem.errors import InvalidInput
from agentmem.types import BlockHash, Fingerprint


def chain_root(salt: bytes, fingerprint: Fingerprint, block_tokens: int, kv_dtype: str) -> BlockHash:
    """Return the parent hash of a chain's first block. ``salt`` is the tenant's secret, derived by the server."""
    hasher = blake3(derive_key_context="agentmem 2026 block chain root")
    for part in (salt, fingerprint.encode(), str(block_tokens).encode(), kv_dtype.encode()):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return BlockHash(hasher.digest())


def block_hash(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Return the hash of one block that follows ``parent`` and holds ``token_ids``."""
    return BlockHash(blake3(parent + array("i", token_ids).tobytes()).digest())


class Chain:
    """Token ids of one session with the hashes of their full blocks, kept up to date as tokens come and go."""

    __slots__ = ("block_tokens", "hashes", "root", "tokens")

    def __init__(self, root: BlockHash, block_tokens: int, tokens: Iterable[int] = ()) -> None:
        if block_tokens < 1:
            raise InvalidInput(f"block_tokens is {block_tokens}; allowed: 1 or more")
        self.root = root
        self.block_tokens = block_tokens
        self.tokens: list[int] = []
        self.hashes: list[BlockHash] = []
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append ``tokens`` and hash every block they fill."""
        self.tokens.extend(tokens)
        size = self.block_tokens
        while (len(self.hashes) + 1) * size <= len(self.tokens):
            start = len(self.hashes) * size
            self.hashes.append(block_hash(self.parent_of(len(self.hashes)), self.tokens[start : start + size]))

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens and the blocks that they fill."""
        del self.tokens[length:]
        del self.hashes[length // self.block_tokens :]

    def copy(self, length: int | None = None) -> Chain:
        """Return an independent chain of the first ``length`` tokens (all by default), without hashing them again."""
        other = Chain(self.root, self.block_tokens)
        stop = len(self.tokens) if length is None else length
        other.tokens = self.tokens[:stop]
        other.hashes = self.hashes[: stop // self.block_tokens]
        return other

    def parent_of(self, index: int) -> BlockHash:
        """Return the hash that precedes block ``index``: the root for the first."""
        return self.hashes[index - 1] if index else self.root
