from __future__ import annotations

import pytest
import torch
from support.segments import make_segment, plain_weights
from torch.testing import assert_close

from agentmem.compression import Observe, observed


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("chunk", [1, 400, 1 << 22])
def test_weights_come_in_pieces_of_bounded_size(causal: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put together they are the softmax of every query; no piece is larger than asked, unless one query is."""
    monkeypatch.setattr(observed, "CHUNK", chunk)
    segment = make_segment(Observe.RECONSTRUCT, tokens=12, start=3)
    pieces = list(observed.attention(segment, 1, causal=causal))
    assert all(piece.numel() <= max(chunk, 6 * 12) for piece in pieces)
    expected = [plain_weights(segment, 1, kv_head, causal=causal) for kv_head in range(2)]
    assert_close(torch.cat(pieces, dim=2), torch.tensor(expected))
