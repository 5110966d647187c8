"""Quest's pages: bounds that hold, whole pages, residents left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.archives import random_kv, recallable

from agentmem.memory.recall import PageRecall


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_key_scores_above_its_page(dtype: torch.dtype) -> None:
    """The bound holds for every token that is not resident, in the archive's precision, and is reached where a page has one token."""
    k, v = random_kv((1, 2, 100, 16), dtype)
    resident = np.random.default_rng(0).random((1, 2, 100)) < 0.3
    resident[0, :, 64:80] = True
    resident[0, :, 70] = False
    low, high = PageRecall(recallable(k, v, resident))._bounds[0]
    q = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    bound = q.clamp(min=0) @ high.float().transpose(1, 2) + q.clamp(max=0) @ low.float().transpose(1, 2)
    score = q @ k[0].float().transpose(1, 2)
    for head in range(2):
        for token in np.flatnonzero(~resident[0, head]):
            assert (score[head, :, token] <= bound[head, :, token // 16] + 1e-5).all()
        torch.testing.assert_close(score[head, :, 70], bound[head, :, 4])


def test_by_hand() -> None:
    """The best page first, whole; the last one ends at the limit; a page of residents is passed over."""
    k = torch.zeros(1, 1, 70, 16)
    k[0, 0, 20, 0], k[0, 0, 50, 0], k[0, 0, 5, 0], k[0, 0, 68, 1] = 3, 2, 9, 1
    resident = np.zeros((1, 1, 70), np.bool_)
    resident[0, 0, :16] = True
    resident[0, 0, [21, 49]] = True
    query = np.zeros((1, 16), np.float32)
    query[0, 0] = 1
    found = PageRecall(recallable(k, k, resident)).find(0, query, 20)
    second = [*range(16, 21), *range(22, 32)]
    assert [*second, 48, *range(50, 54)] == found.ids[0, : found.counts[0]].tolist()


def test_each_query_of_a_group_gets_its_best_page() -> None:
    """Pages rank by the query that misses them most, so large scores of one query do not crowd out another."""
    k = torch.zeros(1, 1, 64, 16)
    k[0, 0, 0:32, 0] = 100
    k[0, 0, 40, 1] = 0.1
    query = np.zeros((2, 16), np.float32)
    query[0, 0] = query[1, 1] = 1
    found = PageRecall(recallable(k, k, group=2)).find(0, query, 48)
    assert set(range(48)) == set(found.ids[0].tolist())


def test_bounds_are_an_eighth_of_the_keys() -> None:
    """Two rows in the archive's precision for each page of sixteen, and a count."""
    k, v = random_kv((2, 2, 160, 32), torch.bfloat16)
    assert k.nbytes // 8 + 2 * 2 * 10 * 8 == PageRecall(recallable(k, v)).host_bytes
