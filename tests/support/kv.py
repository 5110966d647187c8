"""Pools whose rows tell which token they hold: K is the token id, V its position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from agentmem.memory.hashing import Chain, chain_root
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch
from agentmem.memory.shape import KVShape
from agentmem.types import Fingerprint

BLOCK = 4
SHAPE = KVShape(layers=2, kv_heads=1, head_dim=2, dtype=torch.float32, device=torch.device("cpu"))


def make_pool(rows: int) -> KVPool:
    """Return an empty pool with a budget of ``rows`` rows and blocks of ``BLOCK`` tokens."""
    return KVPool(SHAPE, rows * SHAPE.row_bytes, BLOCK)


def chain(tokens: Iterable[int], salt: bytes = b"salt") -> Chain:
    """Return the chain of ``tokens`` for the tenant with that ``salt``."""
    return Chain(chain_root(salt, Fingerprint("model"), BLOCK, "float32"), BLOCK, tokens)


def write(pool: KVPool, branch: Branch, tokens: Sequence[int], expect: int = 0) -> None:
    """Append ``tokens`` to ``branch`` and write their rows, as a step would."""
    position = branch.length
    segment, row = pool.append(branch, len(tokens), expect)
    for layer in range(SHAPE.layers):
        segment.k[layer, :, row : row + len(tokens)] = torch.tensor(tokens, dtype=torch.float32)[:, None]
        segment.v[layer, :, row : row + len(tokens)] = torch.arange(position, position + len(tokens), dtype=torch.float32)[:, None]


def grown(pool: KVPool, tokens: Sequence[int], rows: int = 0) -> Branch:
    """Return a busy branch that holds ``tokens``, with room for ``rows`` in all."""
    branch = pool.match([])
    pool.reserve(branch, max(rows, len(tokens)))
    write(pool, branch, tokens)
    return branch


def read(pool: KVPool, branch: Branch) -> list[tuple[int, int]]:
    """Return the (token id, position) of every row of ``branch``; all layers, heads and dimensions must agree."""
    rows: list[tuple[int, int]] = []
    for span in pool.spans(branch):
        k = span.segment.k[:, :, span.start : span.stop]
        v = span.segment.v[:, :, span.start : span.stop]
        rows += labels(k, v)
    return rows


def labels(k: torch.Tensor, v: torch.Tensor) -> list[tuple[int, int]]:
    """Return the (token id, position) that K and V ``[layers, kv_heads, rows, head_dim]`` hold."""
    if not (torch.equal(k, k[:1, :1, :, :1].expand_as(k)) and torch.equal(v, v[:1, :1, :, :1].expand_as(v))):
        raise AssertionError("the layers of a row disagree")
    return list(zip(map(int, k[0, 0, :, 0]), map(int, v[0, 0, :, 0]), strict=True))


def labelled(tokens: Sequence[int]) -> list[tuple[int, int]]:
    """Return what ``read`` must give for a branch that holds ``tokens``."""
    return [(token, position) for position, token in enumerate(tokens)]


def pointers(pool: KVPool, branch: Branch) -> list[int]:
    """Return the addresses of the K memory that ``branch`` reads, in order."""
    return [span.segment.k.data_ptr() for span in pool.spans(branch)]
