"""Attention as it is measured, against a plain softmax over everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentmem.memory.attention_map import POWER, AttentionMap, shares

LAYERS, HEADS, KV_HEADS, DIM, SCALE = 6, 4, 2, 8, 0.3


def reference(q: Tensor, k: Tensor, start: int, window: int) -> Tensor:
    """Return ``[heads, queries, keys]``: query i at position ``start + i``, one head and one query at a time."""
    out = torch.zeros(HEADS, q.shape[1], k.shape[1])
    for head in range(HEADS):
        for i in range(q.shape[1]):
            seen = range(max(0, start + i + 1 - window) if window else 0, start + i + 1)
            scores = torch.stack([q[head, i] @ k[head // (HEADS // KV_HEADS), key] for key in seen]) * SCALE
            out[head, i, seen.start : seen.stop] = torch.softmax(scores, dim=0)
    return out


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("windows", [[0] * LAYERS, [7, 0, 7, 0, 7, 0], [7] * LAYERS])
def test_it_equals_a_plain_softmax(windows: list[int]) -> None:
    """Mean and peaks are those of exact attention in all layers, and in the middle third of those that see everything, in any steps."""
    length, n_queries = 30, 6
    seen, expected = AttentionMap(length, range(length + 1, length + 5), SCALE, windows), []
    for layer in range(LAYERS):
        q, k = draw(layer, HEADS, n_queries, DIM), draw(layer + 50, KV_HEADS, length + n_queries, DIM)
        expected.append(reference(q, k, length, windows[layer])[..., :length])
        seen.see(layer, range(length, length + 2), q[:, :2], [k[:, :11], k[:, 11 : length + 2]])
        seen.see(layer, range(length + 2, length + n_queries), q[:, 2:], [k])
    every = torch.stack(expected)
    middle = [3] if windows[:2] == [7, 0] else [2, 3]

    torch.testing.assert_close(every[:, :, 1:5].mean(dim=(0, 1, 2)), seen.mean)
    peaks, before = (every[middle][:, :, part].pow(POWER).mean(dim=(0, 1, 2)).pow(1 / POWER) for part in (slice(1, 5), slice(1)))
    torch.testing.assert_close((peaks - before).clamp_min(0.0), seen.peaks)


def test_queries_among_the_tokens_look_back_only() -> None:
    """A query that is one of the tokens sees none after it, and all attention is accounted for."""
    seen = AttentionMap(6, range(4, 6), SCALE, [0])
    seen.see(0, range(4, 6), draw(1, HEADS, 2, DIM), [draw(2, KV_HEADS, 6, DIM)])

    assert 1.0 == pytest.approx(float(seen.mean.sum()))
    only_first = AttentionMap(6, range(4, 6), SCALE, [0])
    only_first.see(0, range(4, 5), draw(1, HEADS, 2, DIM)[:, :1], [draw(2, KV_HEADS, 6, DIM)[:, :5]])
    assert 0.0 == only_first.mean[5]


def test_nothing_seen_is_nothing() -> None:
    """Without a query there is no attention, and no share of it."""
    seen = AttentionMap(8, range(8, 9), SCALE, [0, 0])
    assert [0.0] * 8 == shares(seen.mean).tolist() == shares(seen.peaks).tolist()


def test_shares_leave_the_sinks_out() -> None:
    """The first four tokens count nothing; the others sum to 1, and what was given stays as it is."""
    weights = torch.tensor([9.0, 9.0, 9.0, 9.0, 1.0, 3.0])
    assert [0.0, 0.0, 0.0, 0.0, 0.25, 0.75] == shares(weights).tolist()
    assert 9.0 == weights[0]
