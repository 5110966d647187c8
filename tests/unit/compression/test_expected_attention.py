from __future__ import annotations

import math
from statistics import fmean, pvariance

import torch
from support.segments import dot, like, line, make_segment
from torch.testing import assert_close

from agentmem.compression import ExpectedAttention, Observe


def test_mean_variance_and_value_count() -> None:
    """Queries 0 and 2: mean 1, variance 1. Keys 0 and 1 expect e^0 and e^1.5; their values have lengths 1 and 2."""
    segment = line([0.0, 1.0], queries=[[0.0, 2.0]], positions=[0, 1])
    segment = like(segment, v=torch.tensor([1.0, -2.0])[None, None, :, None])
    total = 1 + math.exp(1.5)
    assert_close(ExpectedAttention().score(segment)[0, 0].exp(), torch.tensor([1 / total, 2 * math.exp(1.5) / total]))


def test_one_query_has_no_variance() -> None:
    """A single sample stands for itself: weights 1:3."""
    segment = line([0.0, math.log(3)], queries=[[1.0]], positions=[1])
    assert_close(ExpectedAttention().score(segment)[0, 0].exp(), torch.tensor([0.25, 0.75]))


def test_a_token_without_value_is_the_first_to_go() -> None:
    """However much attention it gets, a zero value changes no output; its score is the lowest and finite."""
    segment = line([9.0, 0.0], queries=[[1.0]], positions=[1])
    segment = like(segment, v=torch.tensor([0.0, 1.0])[None, None, :, None])
    first, second = ExpectedAttention().score(segment)[0, 0].tolist()
    assert -math.inf < first < second


def test_it_equals_the_plain_formula() -> None:
    """Number by number, with k.Cov.k as the variance of q.k over the recorded queries."""
    segment = make_segment(Observe.SPREAD, start=5, tokens=12)
    scores = ExpectedAttention().score(segment).exp()
    for layer in range(2):
        for kv_head in range(2):
            keys, values = segment.k[layer, kv_head].double().tolist(), segment.v[layer, kv_head].double().tolist()
            weights = []
            for queries in segment.queries[layer, kv_head * 3 : kv_head * 3 + 3].double().tolist():
                samples = [[segment.scale * dot(query, key) for query in queries] for key in keys]
                expected = [math.exp(fmean(sample) + pvariance(sample) / 2) for sample in samples]
                weights.append([weight / math.fsum(expected) for weight in expected])
            plain = [fmean(column) * math.hypot(*value) for column, value in zip(zip(*weights, strict=True), values, strict=True)]
            assert_close(scores[layer, kv_head], torch.tensor(plain))
