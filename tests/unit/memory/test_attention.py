from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentmem.memory import attention
from agentmem.memory.attention import attend_reference, attend_window, backends, choose_backend, merge

SEEDS = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def random_part(seed: int, heads: tuple[int, int], shape: tuple[int, int], dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((heads[0], shape[0], dim), (heads[1], shape[1], dim), (heads[1], shape[1], dim))
    return tuple(torch.randn(*size, generator=generator) for size in sizes)  # type: ignore[return-value]


def by_hand(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attend query by query in Python's own floats; ``visible`` ``[T, N]``."""
    heads, n_q, dim = q.shape
    out, lse = torch.zeros(heads, n_q, dim), torch.zeros(heads, n_q)
    for head in range(heads):
        group = head // (heads // k.shape[0])
        for i in range(n_q):
            seen = [j for j in range(k.shape[1]) if visible[i, j]]
            weights = [math.exp(scale * sum((q[head, i] * k[group, j]).tolist())) for j in seen]
            lse[head, i] = math.log(sum(weights))
            for weight, j in zip(weights, seen, strict=True):
                out[head, i] += weight / sum(weights) * v[group, j]
    return out, lse


@pytest.mark.parametrize("causal", [False, True])
def test_the_reference_is_softmax_attention(causal: bool) -> None:
    """The judge itself equals attention written out by hand: grouped heads, causal offset to the last key, lse in natural logs."""
    q, k, v = random_part(0, (4, 2), (3, 7))
    visible = torch.ones(3, 7).tril(4) if causal else torch.ones(3, 7)
    out, lse = attend_reference(q, k, v, causal, 0.4)
    expected_out, expected_lse = by_hand(q, k, v, visible, 0.4)

    torch.testing.assert_close(out, expected_out)
    torch.testing.assert_close(lse, expected_lse)


def test_the_reference_survives_huge_scores() -> None:
    """Scores far beyond exp's range give finite outputs."""
    q, k, v = random_part(1, (2, 2), (2, 5))
    out, lse = attend_reference(q * 1e4, k * 1e4, v, False, 1.0)  # noqa: FBT003 - the common signature

    assert out.isfinite().all()
    assert lse.isfinite().all()


@given(seed=SEEDS, n_k=st.integers(1, 40), n_parts=st.integers(1, 5), backend=st.sampled_from(["reference", "flash_cpu"]))
@settings(max_examples=100, deadline=None)
def test_merging_a_partition_equals_the_union(seed: int, n_k: int, n_parts: int, backend: str) -> None:
    """Keys dealt out to disjoint parts in any way, empty ones included, merge to attention over all of them (invariant 4)."""
    q, k, v = random_part(seed, (6, 2), (3, n_k))
    owner = torch.randint(n_parts, (n_k,), generator=torch.Generator().manual_seed(seed))
    outs, lses = torch.zeros(n_parts, *q.shape), torch.full((n_parts, *q.shape[:2]), float("-inf"))
    for number in range(n_parts):
        mine = owner == number
        if mine.any():
            outs[number], lses[number] = backends.get(backend)(q, k[:, mine], v[:, mine], False, 0.35)  # noqa: FBT003
    expected, _ = attend_reference(q, k, v, False, 0.35)  # noqa: FBT003 - the common signature

    torch.testing.assert_close(merge(outs, lses), expected, atol=2e-6, rtol=1e-5)


def test_merging_parts_that_overlap_is_wrong() -> None:
    """Why invariant 4 asks for disjoint parts: a key counted twice changes the result."""
    q, k, v = random_part(2, (2, 2), (1, 6))
    parts = [attend_reference(q, k[:, :stop], v[:, :stop], False, 1.0) for stop in (4, 6)]  # noqa: FBT003
    merged = merge(torch.stack([out for out, _ in parts]), torch.stack([lse for _, lse in parts]))
    expected, _ = attend_reference(q, k, v, False, 1.0)  # noqa: FBT003 - the common signature

    assert not torch.allclose(merged, expected, atol=1e-3)


@given(seed=SEEDS, n_q=st.integers(1, 9), past=st.integers(0, 20), window=st.integers(1, 24), cut=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_a_window_equals_the_masked_reference(seed: int, n_q: int, past: int, window: int, cut: int) -> None:
    """Each query sees the ``window`` keys that end at its own, wherever the first key given stands."""
    offset = past - min(cut, max(0, past - window + 1))  # keys that nobody sees may be left out
    q, k, v = random_part(seed, (4, 2), (n_q, offset + n_q))
    at, keys = torch.arange(n_q)[:, None] + offset, torch.arange(offset + n_q)[None]
    expected, _ = by_hand(q, k, v, (keys <= at) & (keys > at - window), 0.3)

    torch.testing.assert_close(attend_window(q, k, v, offset=offset, window=window, scale=0.3), expected, atol=2e-6, rtol=1e-5)


def test_a_window_of_bf16() -> None:
    """The windowed path answers in the queries' dtype and equals the fp32 result to bf16's precision."""
    q, k, v = random_part(5, (4, 2), (6, 30), dim=64)
    expected = attend_window(q, k, v, offset=24, window=9, scale=0.125)
    actual = attend_window(q.bfloat16(), k.bfloat16(), v.bfloat16(), offset=24, window=9, scale=0.125)

    assert torch.bfloat16 == actual.dtype
    torch.testing.assert_close(actual.float(), expected, atol=3e-2, rtol=3e-2)


def test_choose_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flash kernels where they exist, the reference for the rest: CUDA in fp32, other devices, a torch without the private operators."""
    cpu, cuda, meta = torch.device("cpu"), torch.device("cuda"), torch.device("meta")

    assert attention.attend_flash_cpu is choose_backend(cpu, torch.float32)
    assert attention.attend_flash_cpu is choose_backend(cpu, torch.bfloat16)
    assert attention.attend_flash_cuda is choose_backend(cuda, torch.float16)
    assert attend_reference is choose_backend(cuda, torch.float32)
    assert attend_reference is choose_backend(meta, torch.bfloat16)
    monkeypatch.setattr(torch.ops, "aten", object())
    assert attend_reference is choose_backend(cpu, torch.float32)
    assert attend_reference is choose_backend(cuda, torch.float16)
