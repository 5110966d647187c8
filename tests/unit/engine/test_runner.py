"""The flattened forward of every family against Hugging Face's own."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from support.engines import pool_for, shape_of
from support.families import FAMILIES, VOCAB, WINDOW
from torch import Tensor
from transformers import PreTrainedModel

from agentmem.engine.batch import Work, build_batch
from agentmem.engine.runner import Runner
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch

TOLERANCE = 1e-4  # of logits in fp32
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def pair(family: str) -> tuple[PreTrainedModel, Runner]:
    """Return the model as Hugging Face runs it, eagerly, and the same weights behind the seam."""
    reference = FAMILIES[family]()
    reference.set_attn_implementation("eager")
    return reference, Runner(FAMILIES[family]())


def text(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


@torch.inference_mode()
def expected_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Return HF's logits of every token, the second half decoded token by token with its full cache."""
    half = len(tokens) // 2
    out = model(torch.tensor([tokens[:half]]), use_cache=True)
    logits = [out.logits[0]]
    for token in tokens[half:]:
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits[0])
    return torch.cat(logits)


class Reader:
    """Feeds several texts through the runner, some tokens of each in every step, and keeps all logits."""

    def __init__(self, runner: Runner, pool: KVPool) -> None:
        self.runner = runner
        self.pool = pool
        self.texts: list[tuple[Branch, list[int]]] = []
        self.logits: list[list[Tensor]] = []

    def add(self, tokens: list[int], branch: Branch | None = None) -> int:
        self.texts.append((branch or self.pool.match([]), tokens))
        self.logits.append([])
        return len(self.texts) - 1

    def step(self, counts: dict[int, int]) -> None:
        """Read ``counts[i]`` more tokens of text i, all in one forward."""
        work = []
        for i, count in counts.items():
            branch, tokens = self.texts[i]
            work.append(Work(branch, tokens[branch.length : branch.length + count], range(count)))
        out = self.runner.forward(build_batch(self.pool, work, CPU))
        assert torch.float32 == out.dtype
        for i, rows in zip(counts, out.split(list(counts.values())), strict=True):
            self.logits[i].append(rows)

    def read_all(self, rng: random.Random) -> None:
        """Read every text to its end, in steps that mix single tokens and chunks of whoever is picked."""
        while left := {i: len(tokens) - branch.length for i, (branch, tokens) in enumerate(self.texts) if branch.length < len(tokens)}:
            picked = rng.sample(sorted(left), rng.randint(1, len(left)))
            self.step({i: min(left[i], rng.choice((1, 1, 1, 5, 13))) for i in picked})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_interleaved_sessions_equal_hf(family: str, seed: int) -> None:
    """Chunks and single tokens of several sessions, forks of one prefix among them, give each the logits HF gives it alone.

    Contexts are several windows long, so that sliding layers hide most of them.
    """
    reference, runner = pair(family)
    rng = random.Random(seed)
    pool = pool_for(runner.model, 3000)
    reader = Reader(runner, pool)
    first = text(seed, 3 * WINDOW)
    trunk = reader.add(first)
    reader.read_all(rng)
    cuts = [len(first), len(first), 21, 5]
    texts = [first]
    for i, cut in enumerate(cuts):
        texts.append(first[:cut] + text(100 + 10 * seed + i, 2 * WINDOW + i))
        reader.add(texts[-1], pool.fork(reader.texts[trunk][0], cut))
    texts.append(text(200 + seed, 40))
    reader.add(texts[-1])
    reader.read_all(rng)
    pool.check_integrity()

    for i, tokens in enumerate(texts):
        actual = torch.cat(reader.logits[i])
        expected = expected_logits(reference, tokens)[-len(actual) :]
        torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_and_read_again(family: str) -> None:
    """After rolling back, other tokens are read as if the old ones had never been there."""
    reference, runner = pair(family)
    pool = pool_for(runner.model, 1000)
    reader = Reader(runner, pool)
    old = text(1, 50)
    new = old[:30] + text(2, 20)
    reader.add(old)
    reader.step({0: 50})
    branch = reader.texts[0][0]
    pool.truncate(branch, 30)
    again = reader.add(new, branch)
    reader.step({again: 7})
    for _ in range(13):
        reader.step({again: 1})

    torch.testing.assert_close(torch.cat(reader.logits[again]), expected_logits(reference, new)[30:], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_prefix_is_read_once(family: str) -> None:
    """Forks that decode side by side attend to their common prefix in one call, with the same logits as alone."""
    reference, runner = pair(family)
    pool = pool_for(runner.model, 1000)
    reader = Reader(runner, pool)
    prefix = text(3, 40)
    trunk = reader.add(prefix)
    reader.step({trunk: 40})
    texts = [[*prefix, *text(10 + i, 5)] for i in range(3)]
    forks = [reader.add(tokens, pool.fork(reader.texts[trunk][0], 40)) for tokens in texts]
    for _ in range(5):
        reader.step(dict.fromkeys(forks, 1))

    for i, tokens in zip(forks, texts, strict=True):
        torch.testing.assert_close(torch.cat(reader.logits[i]), expected_logits(reference, tokens)[40:], atol=TOLERANCE, rtol=TOLERANCE)


def test_logits_of_the_rows_that_need_them() -> None:
    """Only the rows asked for get logits, in order; a step of prefill alone asks for none."""
    _, runner = pair("llama")
    tokens = text(5, 12)
    pool = pool_for(runner.model, 200)
    every = runner.forward(build_batch(pool, [Work(pool.match([]), tokens, range(12))], CPU))
    some = runner.forward(build_batch(pool, [Work(pool.match([]), tokens[:5]), Work(pool.match([]), tokens, (3, 11))], CPU))
    none = runner.forward(build_batch(pool, [Work(pool.match([]), tokens)], CPU))

    assert (12, VOCAB) == every.shape
    torch.testing.assert_close(some, every[[3, 11]], atol=TOLERANCE, rtol=TOLERANCE)
    assert (0, VOCAB) == none.shape


def test_logits_of_a_text() -> None:
    """A text on its own is read without any pool of the caller's."""
    reference, runner = pair("qwen3")
    tokens = text(6, 30)

    torch.testing.assert_close(
        runner.logits_of(tokens, shape_of(runner.model)), expected_logits(reference, tokens), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_keys_keep_their_phase() -> None:
    """A row's K is the same whether its token was read in one piece or after a fork, alone or batched (invariant 3)."""
    _, runner = pair("llama")
    tokens = text(7, 20)
    pool = pool_for(runner.model, 500)
    whole = pool.match([])
    runner.forward(build_batch(pool, [Work(whole, tokens)], CPU))
    fork = pool.fork(whole, 9)
    runner.forward(build_batch(pool, [Work(pool.match([]), text(8, 5)), Work(fork, tokens[9:])], CPU))
    keys = [torch.cat([s.segment.k[:, :, s.start : s.stop] for s in pool.spans(branch)], dim=2) for branch in (whole, fork)]

    torch.testing.assert_close(keys[0], keys[1], atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_it_equals_the_cpu(family: str) -> None:
    """The same steps on a CUDA device, in fp32, give the CPU's logits."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    reference, _ = pair(family)
    runner = Runner(FAMILIES[family]().to("cuda"))
    tokens = text(9, 60)
    actual = runner.logits_of(tokens, shape_of(runner.model)).cpu()

    torch.testing.assert_close(actual, expected_logits(reference, tokens), atol=1e-3, rtol=1e-3)
