"""Sampled recall: the chance of being sampled, weights that make the estimate right on average, and the thinning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.archives import clustered_kv, queries_near, random_kv, recallable

from agentmem.memory.recall import SampleRecall
from agentmem.memory.recall.sample import table_bits, thin
from agentmem.memory.recall.sample_kernel import UNSEEN, sampling_probability

DIM = 16


@pytest.mark.parametrize(("bits", "expected"), [(64, 6), (128, 7), (192, 8), (256, 8), (1024, 10)])
def test_bits_of_a_table(bits: int, expected: int) -> None:
    """Longer codes make longer, and more, tables: unrelated keys are sampled once in a hundred times or so."""
    assert expected == table_bits(bits)
    assert sampling_probability(0.0, expected, bits // 64 * (64 // expected)) < 0.02


def test_probabilities_by_hand() -> None:
    """Equal vectors always, opposite ones never (but for rounding), and a right angle as the binomial says."""
    assert 1 == sampling_probability(1.0, 8, 32)
    assert 1e-8 > sampling_probability(-1.0, 8, 32)
    one = 0.5**3
    assert pytest.approx(1 - (1 - one) ** 4 - 4 * one * (1 - one) ** 3) == sampling_probability(0.0, 3, 4)


def repeated(layers: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return K and V that are the same in every layer, whose projections differ: each layer is one draw of the same sample."""
    k, v = random_kv((1, 1, length, DIM), torch.float32, 3)
    return (k - k.mean(2, keepdim=True)).expand(layers, -1, -1, -1).contiguous(), v.expand(layers, -1, -1, -1).contiguous()


@pytest.mark.parametrize("limit", [149, 12])
def test_the_estimate_is_right_on_average(limit: int) -> None:
    """The weighted sum over the sample, also of a thinned one, has the mean of the sum over all keys; so has its numerator."""
    layers, length = 150, 150
    k, v = repeated(layers, length)
    recaller = SampleRecall(recallable(k, v, group=2, bits=256))
    query = 2 * queries_near(k, 0, 2)
    exact = np.exp(query @ k[0, 0].numpy().T * DIM**-0.5)
    sums, numerators, sizes = [], [], []
    for layer in range(layers):
        found = recaller.find(layer, query, limit)
        ids = found.ids[0, : found.counts[0]]
        assert found.bias is not None
        weights = np.exp(query @ k[0, 0, ids].numpy().T * DIM**-0.5 + found.bias[:, : len(ids)])
        sums.append(weights.sum(1))
        numerators.append(weights @ v[0, 0, ids].numpy())
        sizes.append(len(ids))
    assert np.mean(sizes) < length / 2
    error = np.std(sums, axis=0) / math.sqrt(layers)
    assert (np.abs(np.mean(sums, axis=0) - exact.sum(1)) < 4 * error).all()
    spread = np.std(numerators, axis=0) / math.sqrt(layers)
    assert (np.abs(np.mean(numerators, axis=0) - exact @ v[0, 0].numpy()) < 4.5 * spread).all()


def test_who_did_not_sample_a_token_gives_it_no_weight() -> None:
    """Opposite queries sample different keys: each key counts for one of them, and the nearest surely does."""
    k, v = clustered_kv((1, 1, 400, DIM))
    k -= k.mean(2, keepdim=True)
    query = np.concatenate([q := queries_near(k, 0, 1), -q])
    found = SampleRecall(recallable(k, v, group=2)).find(0, query, 300)
    assert found.bias is not None
    bias = found.bias[:, : found.counts[0]]
    assert 0 < found.counts[0] < 300
    assert ((bias == UNSEEN).sum(0) == 1).all()
    assert int((query @ k[0, 0].numpy().T)[0].argmax()) in found.ids[0, : found.counts[0]]
    assert (bias[bias != UNSEEN] >= 0).all()


def test_centred_codes_need_the_mean() -> None:
    """An offset that all keys share changes neither what is sampled nor the weights."""
    k, v = repeated(2, 300)
    shifted = k + 5
    query = queries_near(k, 0, 1)
    plain, moved = (SampleRecall(recallable(keys, v)).find(1, query, 200) for keys in (k, shifted))
    n = plain.counts[0]
    assert plain.bias is not None
    assert moved.bias is not None
    assert plain.ids[0, :n].tolist() == moved.ids[0, : moved.counts[0]].tolist()
    np.testing.assert_allclose(plain.bias[:, :n], moved.bias[:, :n], atol=1e-3)


def test_thinning_keeps_the_weightiest_and_draws_from_the_rest() -> None:
    """Half of the places are sure; the others stand for all that is left, a different choice for each seed."""
    score = np.array([[9, 1, 8, 1, 1, 1], [UNSEEN] * 6], np.float32)
    draws = set()
    for seed in range(20):
        chosen, extra = thin(score, 4, seed)
        assert [0, 2] == chosen[:2].tolist()
        assert set(chosen[2:].tolist()) < {1, 3, 4, 5}
        np.testing.assert_allclose([0, 0, math.log(2), math.log(2)], extra, rtol=1e-6)
        draws.add(tuple(chosen))
    assert 5 < len(draws)
    assert [0, 1, 2, 3, 4, 5] == thin(score, 6, 0)[0].tolist()


def test_private_bytes() -> None:
    """Projections and, once used, a mean for each layer; codes only where they had to be put together."""
    k, v = repeated(2, 130)
    one, cut = SampleRecall(recallable(k, v, bits=128)), SampleRecall(recallable(k, v, bits=128, units=2))
    assert 0 == one.host_bytes
    assert 2 * 130 * 16 == cut.host_bytes - one.host_bytes
    one.find(1, queries_near(k, 0, 1), 20)
    assert DIM * 4 == one.host_bytes
