"""Invariant 5: whatever was batched, shared, forked, spilled or restored, greedy tokens equal HF generate with a full cache."""

from __future__ import annotations

import asyncio
import random
from functools import cache

import pytest
import torch
from support.engines import FakeArchive, WatchedRunner, chain_of, finished, greedy, ids, request, running
from support.families import FAMILIES, VOCAB, WINDOW
from transformers import PreTrainedModel

from agentmem.engine.scheduler import Limits
from agentmem.types import MissReason, Tier


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def models(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the model as HF runs it and its twin for the engine."""
    reference = FAMILIES[family]()
    reference.set_attn_implementation("eager")
    return reference, FAMILIES[family]()


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_tokens_equal_hf(family: str) -> None:
    """Six sessions, three with one prefix, of two turns each with a spill and a restore between: no token differs.

    Prompts are prefilled in chunks beside the decoding of others, and longer than the sliding window.
    """
    reference, model = models(family)
    archive = FakeArchive()
    prefix = text(0, 2 * WINDOW)
    prompts = [prefix + text(i, 9 + i) for i in (1, 2, 3)] + [text(i, 10 * i) for i in (4, 5, 6)]
    async with running(WatchedRunner(model), archive=archive, limits=Limits(5, 16, 11, 23)) as engine:
        first = [await finished(run) for run in [await engine.submit(request(p, n=20)) for p in prompts]]
        for run in first:
            await engine.call(archive.save, engine.pool, run.branch, run.chain)
        await engine.call(engine.pool.spill_idle)
        again = [[*run.chain.tokens, *text(50 + i, 5)] for i, run in enumerate(first)]
        asked = [request(tokens, n=12, computed_before=len(run.chain)) for tokens, run in zip(again, first, strict=True)]
        second = await asyncio.gather(*[finished(await engine.submit(one)) for one in asked])

    assert [greedy(reference, p, 20) for p in prompts] == [ids(run) for run in first]
    assert [greedy(reference, p, 12) for p in again] == [ids(run) for run in second]
    assert all(run.reuse_report().disk + run.reuse_report().device > 0 for run in second)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
async def test_turns_forks_and_rollbacks_equal_hf(family: str) -> None:
    """A session that keeps its branch, its forks that decode side by side, and a rollback all say what HF says."""
    reference, model = models(family)
    async with running(WatchedRunner(model)) as engine:
        run = await finished(await engine.submit(request(text(1, 40), n=15)))
        assert run.branch is not None
        turn = [*run.chain.tokens, *text(2, 6)]
        forks = [await engine.call(engine.pool.fork, run.branch, length) for length in (run.branch.length, 43, 17)]
        ends = [text(60 + i, 4) for i in range(3)]
        texts = [turn, *([*run.chain.tokens[: fork.length], *end] for fork, end in zip(forks, ends, strict=True))]
        branches = [run.branch, *forks]
        runs = await asyncio.gather(
            *[finished(await engine.submit(request(t, n=10, branch=b))) for t, b in zip(texts, branches, strict=True)]
        )
        await engine.call(engine.pool.truncate, run.branch, 30)
        back = [*turn[:30], *text(70, 3)]
        rolled = await finished(await engine.submit(request(back, n=10, branch=run.branch)))

    assert [greedy(reference, t, 10) for t in texts] == [ids(one) for one in runs]
    assert greedy(reference, back, 10) == ids(rolled)
    assert 30 == rolled.reused[Tier.DEVICE]
    assert [54, 54, 43, 17] == [one.reused[Tier.DEVICE] for one in runs]


async def test_under_memory_pressure(runner: WatchedRunner) -> None:
    """With room for two of six sessions at a time, over three rounds, spilled ones come back from the archive or are computed."""
    reference, _ = models("llama")
    archive = FakeArchive()
    rng = random.Random(3)
    talks = [text(80 + i, rng.randint(20, 50)) for i in range(6)]
    expected, actual = [], []
    async with running(runner, archive=archive, rows=150) as engine:
        for _ in range(3):
            runs = [await engine.submit(request(talk, n=6, tenant=f"t{i}", computed_before=len(talk))) for i, talk in enumerate(talks)]
            for i, run in enumerate(runs):
                await finished(run)
                expected.append(greedy(reference, talks[i], 6))
                actual.append(ids(run))
                if i % 2:
                    await engine.call(lambda run=run: run.branch.alive and archive.save(engine.pool, run.branch, run.chain))
                talks[i] = [*run.chain.tokens, *text(rng.randint(0, 99), 4)]
        assert engine.pool.num_spilled > 6

    assert expected == actual


async def test_sampled_tokens_do_not_depend_on_the_batch(runner: WatchedRunner) -> None:
    """With a temperature, the same seed gives the same tokens alone, in a batch, after a shared prefix and after a spill."""
    prompt = text(7, 30)
    sampling = {"temperature": 1.3, "top_p": 0.95, "seed": 11, "n": 20}
    async with running(runner, limits=Limits(8, 16, 4, 64)) as engine:
        alone = await finished(await engine.submit(request(prompt, **sampling)))
        others = [await engine.submit(request(text(i, 25), temperature=0.7, seed=i, n=40)) for i in range(4)]
        shared = await finished(await engine.submit(request(prompt, **sampling)))
        chunked = await finished(await engine.submit(request(prompt, tenant="other", **sampling)))
        other_seed = await finished(await engine.submit(request(prompt, **(sampling | {"seed": 12}))))
        for run in others:
            await finished(run)
        await engine.call(engine.pool.spill_idle)
        cold = await finished(await engine.submit(request(prompt, **sampling)))

    assert [24, 0, 0] == [run.reused[Tier.DEVICE] for run in (shared, chunked, cold)]
    assert alone.num_steps < chunked.num_steps
    assert [ids(alone)] * 3 == [ids(run) for run in (shared, chunked, cold)]
    assert ids(alone) != ids(other_seed)


async def test_hashes_follow_the_reply(runner: WatchedRunner) -> None:
    """Generated tokens fill blocks like any others: a second session that sends them finds them."""
    async with running(runner) as engine:
        run = await finished(await engine.submit(request(text(8, 20), n=30)))
        same = await finished(await engine.submit(request([*run.chain.tokens, 5], n=1)))

    assert chain_of(run.chain.tokens).hashes == run.chain.hashes
    assert (48, MissReason.NONE) == (same.reused[Tier.DEVICE], same.reuse_report().reason)
