from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from agentmem.engine.sampling import Sampled, Sampler, SampleRow, kept, noise, penalise
from agentmem.engine.stats import Stopwatch
from agentmem.errors import InternalError
from agentmem.types import SamplingParams, TokenLogprob

GREEDY = SamplingParams()
DRAWN = SamplingParams(temperature=1.0)
CHI_SQUARE_999 = {4: 18.47, 7: 24.32, 9: 27.88}  # degrees of freedom -> value exceeded once in 1000


def row(params: SamplingParams = GREEDY, seed: int = 0, position: int = 0, seen: tuple[int, ...] = ()) -> SampleRow:
    return SampleRow(params, seed, position, seen)


def sample_ids(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    return [sampled.token_id for sampled in Sampler().sample(logits, rows)]


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def reference(logits: torch.Tensor, params: SamplingParams, seen: list[int]) -> torch.Tensor:
    """Return what transformers' processors make of ``logits`` ``[vocab]``."""
    processors = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors(torch.tensor([seen], dtype=torch.long), logits[None].clone())[0]


@given(
    seed=st.integers(0, 10_000),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
        top_k=st.sampled_from([0, 1, 5, 50, 1000]),
        top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.05, 0.5]),
        repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
    ),
    seen=st.lists(st.integers(0, 199), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_filters_equal_those_of_transformers(seed: int, params: SamplingParams, seen: list[int]) -> None:
    """Penalty, temperature, top-k, top-p and min-p keep the tokens that transformers keeps, with the same probabilities."""
    logits = random_logits(seed, 200)
    expected = reference(logits, params, seen)
    scores = penalise(logits, seen, params.repetition_penalty) / params.temperature
    ids = kept(scores, params)
    assert expected.isfinite().nonzero().squeeze(-1).tolist() == ids.tolist()
    torch.testing.assert_close(expected[ids].softmax(-1), scores[ids].softmax(-1), rtol=1e-5, atol=1e-7)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, -1.0, -torch.inf, 2.0]), min_size=7, max_size=7), min_size=1, max_size=4))
@settings(deadline=None)
def test_greedy_takes_the_first_of_the_likeliest(values: list[list[float]]) -> None:
    """Greedy is argmax; of equal logits the lowest id wins."""
    logits = torch.tensor([[0.0, *each] for each in values])
    assert [int(np.argmax(each.numpy())) for each in logits] == sample_ids(logits, [row()] * len(values))


def test_logits_stay_as_they_are() -> None:
    """Sampling changes nothing in the caller's tensor, and accepts lower precision."""
    logits = random_logits(0, 3, 50)
    before = logits.clone()
    rows = [row(), row(SamplingParams(repetition_penalty=1.5), seen=(1, 2)), row(replace(DRAWN, top_k=5, logprobs=2), seen=(1,))]
    Sampler().sample(logits, rows)
    assert torch.equal(before, logits)
    assert int(logits[0].bfloat16().argmax()) == sample_ids(logits[:1].bfloat16(), [row()])[0]


@pytest.mark.parametrize(
    "params",
    [
        DRAWN,
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.5, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.0, repetition_penalty=1.8),
    ],
)
def test_samples_follow_the_distribution(params: SamplingParams) -> None:
    """Over positions, tokens come as often as their probabilities say (chi-square, fixed seed)."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5])
    n = 4000
    probabilities = reference(logits, params, [0, 6]).softmax(-1).double().numpy()
    drawn = sample_ids(logits.expand(n, -1), [row(params, 7, position, (0, 6)) for position in range(n)])
    counts = np.bincount(drawn, minlength=8)
    assert not counts[probabilities == 0].any()
    possible = probabilities > 0
    statistic = ((counts - n * probabilities)[possible] ** 2 / (n * probabilities[possible])).sum()
    assert statistic < CHI_SQUARE_999[7]


def test_seeds_give_independent_samples() -> None:
    """Over seeds at one position tokens follow the distribution too, and neighbouring positions don't repeat them."""
    logits = torch.zeros(5)
    n = 3000
    here = sample_ids(logits.expand(n, -1), [row(DRAWN, seed, 3) for seed in range(n)])
    there = sample_ids(logits.expand(n, -1), [row(DRAWN, seed, 4) for seed in range(n)])
    assert (((np.bincount(here, minlength=5) - n / 5) ** 2) / (n / 5)).sum() < CHI_SQUARE_999[4]
    assert abs(np.mean(np.equal(here, there)) - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.permutations(range(4)))
@settings(deadline=None, max_examples=30)
def test_a_sample_does_not_depend_on_its_batch(seed: int, position: int, order: list[int]) -> None:
    """The same logits, seed and position give the same token, alone and in any batch."""
    logits = random_logits(seed % 1000, 4, 60)
    rows = [row(DRAWN, seed, position), row(), row(replace(DRAWN, top_p=0.9), seed, position), row(replace(DRAWN, top_k=3), 1, position)]
    alone = [sample_ids(logits[index : index + 1], [rows[index]])[0] for index in range(4)]
    assert [alone[index] for index in order] == sample_ids(logits[order], [rows[index] for index in order])


def test_noise_is_a_function_of_seed_and_position() -> None:
    """The noise is fixed for good: sampled replies can be repeated by any later version. A longer vocabulary extends it."""
    # From Philox4x64-10 written out after the paper, counter (1, 0, 0, 0), key (1, 2).
    np.testing.assert_allclose([1.1733953909936152, 1.030142090729361, 3.299420958551882], noise(1, 2, 3), rtol=1e-12)
    assert noise(1, 2, 3).tolist() == noise(1, 2, 5)[:3].tolist()
    assert noise(1, 2, 3).tolist() != noise(2, 1, 3).tolist()
    assert 1.0 == pytest.approx(noise(5, 6, 100_000).mean(), abs=0.02)
    assert np.isfinite(noise(2**63 - 1, 2**63 - 1, 1000)).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    """A temperature near zero, also one that is zero in fp32, takes the likeliest token without overflowing."""
    logits = random_logits(3, 1, 40) * 1e30
    assert sample_ids(logits, [row()]) == sample_ids(logits, [row(SamplingParams(temperature=temperature))])


def test_the_penalty_counts_without_temperature() -> None:
    """Greedy with a repetition penalty takes the likeliest token after the penalty; a penalty near zero stays finite."""
    logits = torch.tensor([[3.0, 2.0, -1.0]])
    assert [1] == sample_ids(logits, [row(SamplingParams(repetition_penalty=2.0), seen=(0, 2, 0))])
    assert [0] == sample_ids(logits, [row(SamplingParams(repetition_penalty=2.0))])
    assert [0] == sample_ids(logits, [row(SamplingParams(temperature=1.0, repetition_penalty=1e-45), seen=(0,))])


def test_logprobs_are_of_the_models_own_distribution() -> None:
    """Log probabilities are taken before penalty, temperature and filters, for the chosen token and the likeliest n."""
    logits = random_logits(5, 2, 30)
    params = SamplingParams(temperature=2.0, top_k=3, repetition_penalty=1.5, logprobs=4)
    for each in (params, replace(params, temperature=0.0), SamplingParams(logprobs=4)):
        sampled = Sampler().sample(logits, [row(), row(each, seen=(1, 2))])
        expected = logits[1].log_softmax(-1)
        assert Sampled(int(logits[0].argmax())) == sampled[0]
        assert sampled[1].logprob == TokenLogprob(sampled[1].token_id, float(expected[sampled[1].token_id]))
        assert expected.sort(descending=True).indices[:4].tolist() == [top.token_id for top in sampled[1].top]
        assert expected.sort(descending=True).values[:4].tolist() == [top.logprob for top in sampled[1].top]


def test_zero_logprobs_name_the_chosen_token_alone() -> None:
    """Zero asks for the chosen token's alone; more than the vocabulary gives all of it."""
    logits = random_logits(5, 1, 6)
    none, all_of_them = (Sampler().sample(logits, [row(SamplingParams(logprobs=n))])[0] for n in (0, 20))
    assert ((), 6) == (none.top, len(all_of_them.top))
    assert none.logprob is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [GREEDY, DRAWN])
def test_broken_logits_name_their_row(bad: float, params: SamplingParams) -> None:
    """NaN, infinity and a row that forbids everything are bugs, told by row and position; single -inf are not."""
    logits = random_logits(1, 3, 20)
    logits[0, :10] = -torch.inf
    rows = [row(params, position=index + 7) for index in range(3)]
    assert all(index >= 10 for index in sample_ids(logits, rows)[:1])
    logits[2, 5] = bad
    with pytest.raises(InternalError, match="row at position 9 "):
        Sampler().sample(logits, rows)
    logits[1] = -torch.inf
    with pytest.raises(InternalError, match="row at position 8 have the maximum -inf"):
        Sampler().sample(logits, rows)


def test_forbidden_tokens_are_never_drawn() -> None:
    """A token with -inf is not drawn, whatever the filters."""
    logits = torch.full((1, 10), -torch.inf)
    logits[0, [3, 8]] = 0.0
    for position in range(50):
        params = replace(DRAWN, top_k=5, top_p=0.99, min_p=0.01)
        assert sample_ids(logits, [row(params, 1, position)])[0] in (3, 8)


def test_rows_must_match_logits() -> None:
    """As many rows are described as there are logits."""
    with pytest.raises(InternalError, match="2 rows of logits for 1 rows"):
        Sampler().sample(torch.zeros(2, 4), [row()])


def bits(size: int, *token_ids: int) -> NDArray[np.int32]:
    """Return a grammar's mask of a vocabulary of ``size`` that lets ``token_ids`` through."""
    allowed = np.zeros(-(-size // 32) * 32, np.uint8)
    allowed[list(token_ids)] = 1
    return np.packbits(allowed, bitorder="little").view(np.int32)


@pytest.mark.parametrize("params", [GREEDY, DRAWN, SamplingParams(temperature=1.0, repetition_penalty=1.3)])
def test_only_what_a_grammar_allows_is_sampled(params: SamplingParams) -> None:
    """A mask leaves the likeliest or a drawn one of its tokens, also where it is shorter than the logits; masking is timed."""
    logits, masking = random_logits(0, 100), Stopwatch()
    for seed in range(50):
        asked = replace(row(params, seed, seen=(3, 4)), allowed=bits(96, 3, 40, 64), masking=masking)
        (sampled,) = Sampler().sample(logits[None], [asked])
        assert sampled.token_id in {3, 40, 64}
    assert masking.seconds > 0
    if params is GREEDY:
        assert sampled.token_id == max((3, 40, 64), key=lambda token: float(logits[token]))


def test_a_mask_changes_nothing_where_it_lets_everything_through() -> None:
    """Tokens drawn under a mask of all tokens are those drawn without one, and the logits stay as they are."""
    logits = random_logits(1, 100)
    before = logits.clone()
    rows = [row(DRAWN, seed) for seed in range(50)]
    masked = [replace(each, allowed=bits(100, *range(100))) for each in rows]
    assert sample_ids(logits.expand(50, -1), rows) == sample_ids(logits.expand(50, -1), masked)
    assert torch.equal(before, logits)


def test_a_grammar_that_leaves_nothing_is_an_error() -> None:
    """A mask without a token that the model has, or a forced token beyond the vocabulary, is a bug and said to be one."""
    for asked in (replace(row(DRAWN), allowed=bits(128, 120)), replace(row(DRAWN), forced=100)):
        with pytest.raises(InternalError, match="the grammar .* that the model"):
            Sampler().sample(random_logits(2, 1, 100), [asked])


@pytest.mark.parametrize("params", [GREEDY, DRAWN, SamplingParams(temperature=1.0, logprobs=2)])
def test_a_forced_token_comes_whatever_the_logits_say(params: SamplingParams) -> None:
    """It is not the likeliest one here; its log probability is what the model gives it."""
    logits = random_logits(3, 100)
    forced = int(logits.argmin())
    (sampled,) = Sampler().sample(logits[None], [replace(row(params), forced=forced)])
    assert forced == sampled.token_id
    if params.logprobs is not None:
        assert TokenLogprob(forced, float(logits.log_softmax(-1)[forced])) == sampled.logprob
        assert 2 == len(sampled.top)
