from __future__ import annotations

import pytest
import torch

from agentmem.memory.upload import Uploader

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]),
]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_arrive(device: str) -> None:
    """Rows in the middle of a larger tensor get what was on the host, strided or not, and nothing beside them changes."""
    target = torch.zeros(3, 8, 4, device=device)
    sources = [torch.randn(3, 2, 4), torch.randn(2, 3, 4).transpose(0, 1)]
    uploader = Uploader(target.device)
    for start, source in zip((1, 5), sources, strict=True):
        uploader.copy(target[:, start : start + 2], source)
    uploader.wait()

    assert torch.equal(sources[0], target[:, 1:3].cpu())
    assert torch.equal(sources[1], target[:, 5:7].cpu())
    assert 0 == target[:, [0, 3, 4, 7]].count_nonzero()


def test_waiting_for_nothing() -> None:
    """An uploader that copied nothing is ready at once."""
    Uploader(torch.device("cpu")).wait()
