"""What block headers allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.stores import HEADER

from agentmem.errors import InvalidInput
from agentmem.stores.records import BlockUnavailable
from agentmem.types import MissReason


def test_sizes() -> None:
    """Shape and payload follow from the geometry: K and V, 4 bytes a number."""
    assert (2, 1, 4, 256) == HEADER.shape
    assert 2 * (2 * 1 * 4 * 256) * 4 == HEADER.payload_bytes
    assert HEADER.payload_bytes == 2 * replace(HEADER, dtype="bfloat16").payload_bytes


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"layers": 0}, {"n_tokens": -1}, {"first_token": -4}])
def test_impossible_header_is_refused(wrong: dict[str, Any]) -> None:
    """A dtype that files do not hold or an empty shape is InvalidInput naming what is allowed."""
    with pytest.raises(InvalidInput, match="is not one of float32|allowed: 1 or more"):
        replace(HEADER, **wrong)


def test_unavailable_says_why() -> None:
    """The error's text carries reason and detail."""
    assert "corrupt: half a file" == str(BlockUnavailable(MissReason.CORRUPT, "half a file"))
