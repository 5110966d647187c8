"""Speculation leaves the distribution alone: a toy model over four tokens, all of whose texts are enumerated."""

from __future__ import annotations

import asyncio
import itertools
import math

import pytest
import torch
from support.engines import request

from agentmem.engine.replies import reply_each
from agentmem.engine.run import Drafted, Run
from agentmem.engine.sampling import Sampler

VOCAB, LENGTH, SEEDS = 4, 3, 4000
TEMPERATURE = 0.8


def logits_after(text: tuple[int, ...]) -> torch.Tensor:
    """Return the toy model's logits ``[VOCAB]``: they depend on the last two tokens."""
    number = sum(token * VOCAB**place for place, token in enumerate(text[-2:]))
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(number)) * 1.5


def guess(text: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Return a draft of the rest of ``text``: what the model finds likeliest or least likely, or always the same."""
    if kind == "none":
        return ()
    draft: tuple[int, ...] = ()
    while len(text) + len(draft) < LENGTH - 1:
        row = logits_after(text + draft)
        draft += ({"likeliest": int(row.argmax()), "unlikeliest": int(row.argmin()), "constant": 2}[kind],)
    return draft


def sampled(kind: str, seed: int) -> tuple[int, ...]:
    """Return one text, sampled step by step with drafts of that kind."""
    loop = asyncio.new_event_loop()
    loop.close()
    run = Run(request([0], n=LENGTH, temperature=TEMPERATURE, seed=seed), loop)
    while len(run.outputs) < LENGTH:
        text = tuple(output.token_id for output in run.outputs)
        run.draft = Drafted(guess(text, kind), drafter=kind)
        texts = [text + run.draft.token_ids[:n] for n in range(len(run.draft.token_ids) + 1)]
        assert not [
            error
            for error in reply_each(Sampler(), [run], torch.stack([logits_after(one) for one in texts]))
            if isinstance(error, Exception)
        ]
    return tuple(output.token_id for output in run.outputs)


def probability(text: tuple[int, ...]) -> float:
    """Return what the toy model gives the whole text."""
    rows = [(logits_after(text[:n]) / TEMPERATURE).softmax(-1)[text[n]] for n in range(LENGTH)]
    return math.prod(float(row) for row in rows)


@pytest.mark.parametrize("kind", ["likeliest", "unlikeliest", "constant"])
def test_every_text_is_the_one_that_comes_without_drafts(kind: str) -> None:
    """For each seed the text is the same, whether drafts are mostly right, always wrong or whatever."""
    assert [sampled("none", seed) for seed in range(300)] == [sampled(kind, seed) for seed in range(300)]


def test_every_text_has_its_probability() -> None:
    """Of all 64 texts each comes as often as the model's own probabilities say: chi-square below its 99.9th percentile."""
    counts = dict.fromkeys(itertools.product(range(VOCAB), repeat=LENGTH), 0)
    for seed in range(SEEDS):
        counts[sampled("likeliest", seed)] += 1
    expected = {text: SEEDS * probability(text) for text in counts}
    assert sum(expected.values()) == pytest.approx(SEEDS)
    common = [text for text in counts if expected[text] >= 5]
    rest = [text for text in counts if expected[text] < 5]
    groups = [(counts[text], expected[text]) for text in common] + [(sum(counts[t] for t in rest), sum(expected[t] for t in rest))]
    chi_square = sum((n - m) ** 2 / m for n, m in groups if m > 0)
    degrees = len(groups) - 1
    # Wilson and Hilferty 1931: the percentile of chi-square from that of the normal distribution, 3.09.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
