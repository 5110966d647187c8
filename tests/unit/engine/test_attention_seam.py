from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from support.engines import pool_for
from support.families import llama
from torch import Tensor
from transformers import AttentionInterface

from agentmem.engine import attention_seam
from agentmem.engine.attention_seam import NAME, REFUSED, attention, register
from agentmem.engine.batch import StepBatch, Work, build_batch
from agentmem.errors import UnsupportedModel
from agentmem.memory.attention import attend_reference
from agentmem.memory.pool import KVPool

CPU = torch.device("cpu")
LAYER = SimpleNamespace(layer_idx=1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def qkv(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, heads, tokens, 16, generator=generator) for heads in (4, 2, 2))  # type: ignore[return-value]


def call(step: StepBatch, *, seed: int = 0, **kwargs: object) -> Tensor:
    out, weights = attention(LAYER, *qkv(step.token_ids.shape[1], seed), None, step=step, **kwargs)  # type: ignore[arg-type]
    assert weights is None
    return out


@pytest.fixture
def pool() -> KVPool:
    return pool_for(llama(), 500)


def test_registering_twice_changes_nothing() -> None:
    """The function is known to transformers under our own name."""
    register()
    register()

    assert attention is AttentionInterface()[NAME]


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_change_attention_are_refused(pool: KVPool, name: str) -> None:
    """A keyword that the seam would have to obey and does not raises UnsupportedModel with its name; None passes."""
    step = build_batch(pool, [Work(pool.match([]), [1, 2])], CPU)

    with pytest.raises(UnsupportedModel, match=f"'{name}' is not supported"):
        call(step, **{name: 30.0})
    assert (1, 2, 4, 16) == call(step, **{name: None}).shape


def test_rows_are_written_where_the_plan_says(pool: KVPool) -> None:
    """K and V of a layer land in that layer of each session's own segment and nowhere else."""
    one, two = pool.match([]), pool.match([])
    step = build_batch(pool, [Work(one, [1, 2, 3]), Work(two, [4, 5])], CPU)
    for item in step.slices:
        assert item.target is not None
        item.target.segment.k.zero_()
        item.target.segment.v.zero_()
    call(step, seed=3)
    _, keys, values = qkv(5, 3)
    first, second = (item.target.segment for item in step.slices if item.target is not None)

    assert torch.equal(keys[0, :, :3], first.k[1, :, :3])
    assert torch.equal(values[0, :, 3:], second.v[1, :, :2])
    assert 0 == first.k[[0, 2]].count_nonzero()


@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_scale_is_the_models(pool: KVPool, scale: float | None) -> None:
    """Without ``scaling`` the scale is 1 / sqrt(head_dim); with it, that."""
    query, keys, values = qkv(4)
    step = build_batch(pool, [Work(pool.match([]), [1, 2, 3, 4])], CPU)
    expected, _ = attend_reference(query[0], keys[0], values[0], True, scale or 0.25)  # noqa: FBT003 - the common signature

    torch.testing.assert_close(call(step, scaling=scale)[0].transpose(0, 1), expected)


def test_a_window_that_hides_nothing_takes_the_fast_path(pool: KVPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding layers attend by parts while the context is within the window, with the same result as by windows."""
    step = build_batch(pool, [Work(pool.match([]), [1, 2, 3, 4])], CPU)
    expected = call(step)
    monkeypatch.setattr(step, "windows", {4: True})
    by_windows = call(step, sliding_window=4)
    monkeypatch.setattr(attention_seam, "_attend_windows", None)
    monkeypatch.setattr(step, "windows", {})

    torch.testing.assert_close(call(step, sliding_window=4), expected)
    torch.testing.assert_close(by_windows, expected)


def test_bf16_stays_bf16() -> None:
    """Parts are merged in fp32 and handed back in the model's dtype."""
    pool = pool_for(llama().bfloat16(), 500)
    branch = pool.match([])
    for step in (build_batch(pool, [Work(branch, [1, 2, 3])], CPU), build_batch(pool, [Work(branch, [4, 5])], CPU)):
        query, keys, values = (part.bfloat16() for part in qkv(step.token_ids.shape[1], step.plan(1).n_slots))
        out, _ = attention(LAYER, query, keys, values, None, step=step)  # type: ignore[arg-type]
    everything = [part.bfloat16() for part in qkv(3, 1)[1:]]
    keys, values = (torch.cat(pair, dim=2) for pair in zip(everything, (keys, values), strict=True))
    expected, _ = attend_reference(query[0], keys[0], values[0], True, 0.25)  # noqa: FBT003 - the common signature

    assert 2 == step.plan(1).n_slots
    assert torch.bfloat16 == out.dtype
    torch.testing.assert_close(out[0].transpose(0, 1).float(), expected, atol=2e-2, rtol=2e-2)


def test_without_a_kernel_single_queries_go_through_the_backend(pool: KVPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba is missing, decoding attends with torch's kernel and comes to the same."""
    branch = pool.match([])
    call(build_batch(pool, [Work(branch, [1, 2, 3])], CPU))
    step = build_batch(pool, [Work(branch, [4])], CPU)
    compiled = call(step, seed=1)
    monkeypatch.setattr(attention_seam, "is_available", lambda _device: False)

    assert 1 == len(step.plan(1).singles)
    torch.testing.assert_close(call(step, seed=1), compiled, atol=1e-5, rtol=1e-5)
