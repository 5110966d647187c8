"""Seal jobs as text, for stores and processes that hand them on."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from agentmem.compression.recipe import Recipe, SealJob
from agentmem.errors import InvalidInput
from agentmem.types import BlockHash


def to_text(job: SealJob) -> str:
    """Return ``job`` as JSON, hashes in hex."""
    values = asdict(job)
    values["blocks"] = [block.hex() for block in job.blocks]
    values["anchor"] = None if job.anchor is None else [job.anchor[0].hex(), job.anchor[1]]
    return json.dumps(values)


def from_text(text: str) -> SealJob:
    """Read ``to_text``. Raises InvalidInput for what is no job of this version."""
    try:
        values: dict[str, Any] = json.loads(text)
        values["blocks"] = tuple(BlockHash(bytes.fromhex(block)) for block in values["blocks"])
        values["recipe"] = Recipe(**values["recipe"])
        if (anchor := values["anchor"]) is not None:
            values["anchor"] = (BlockHash(bytes.fromhex(anchor[0])), str(anchor[1]))
        return SealJob(**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"not a seal job: {error}") from error
