"""Recipes and seal jobs: plain data that names exactly what a worker shall make of which blocks, so that results are content-addressed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from blake3 import blake3

from agentmem.types import BlockHash

SINKS = 4  # leading tokens of a session that always stay (StreamingLLM, arXiv:2309.17453)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How sealed tokens are compressed and indexed. ``keep``: share that stays resident; ``bits``: length of a key's hash code."""

    compressor: str = "keydiff"
    keep: float = 0.1
    bits: int = 256
    version: int = 1  # of the code behind it: raise it when equal input would give another result


@dataclass(frozen=True, slots=True)
class SealJob:
    """One unit of sealing: full blocks ``blocks``, consecutive, from session position ``start`` on.

    ``protect``: leading tokens of the session that always stay (system prompt and tools, at least SINKS). ``beside``: tokens that
    stay resident beside the unit and count towards its share: the recent window, for the first unit. ``anchor``: last block of the
    session's first unit, whose mean key centres the hash codes of all its units; None when this is the first. ``queries``: path of a
    safetensors file with ``queries`` and ``positions`` for compressors that observe; "" for the others.
    """

    blocks: tuple[BlockHash, ...]
    start: int
    protect: int
    recipe: Recipe
    anchor: tuple[BlockHash, str] | None = None  # the first unit's last block and its job's name
    scale: float = 1.0
    beside: int = 0
    queries: str = ""

    @property
    def block(self) -> BlockHash:
        """The block beside which the result is stored: the last."""
        return self.blocks[-1]

    @property
    def name(self) -> str:
        """The recipe's part of the result's file name: 32 hex digits of everything that the result depends on but the last block."""
        fields = asdict(self.recipe) | {"blocks": len(self.blocks), "start": self.start, "protect": self.protect}
        fields |= {"beside": self.beside, "scale": self.scale}
        fields["anchor"] = None if self.anchor is None else [self.anchor[0].hex(), self.anchor[1]]
        return blake3(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
