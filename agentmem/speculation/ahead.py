"""Drafting by reading on: something cheaper than the model's own step predicts token after token."""

from __future__ import annotations

from collections.abc import Sequence

from agentmem.speculation.controller import READING
from agentmem.speculation.port import Context, Draft


def read_ahead(name: str, context: Context, after: Sequence[int], limit: int) -> Draft:
    """Return ``limit`` tokens that the context's reader called ``name`` predicts, none where it has no such reader."""
    reader = context.readers.get(name)
    if reader is None or limit < 1:
        return Draft()
    try:
        token = reader.begin(context.tokens.array, after)
        if token is None:
            return Draft()
        tokens = [token]
        while len(tokens) < limit:
            tokens.append(reader.step(tokens[-1]))
    finally:
        reader.end()
    return Draft(tuple(tokens), READING)  # no match to measure: all such drafts are of one kind
