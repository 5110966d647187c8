"""Every attention backend that this machine has, against the reference, in every shape that the plan of a step asks for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentmem.memory.attention import attend_reference, backends, choose_backend, merge

# Where each backend runs. A new one joins the matrix by naming its devices and dtypes here.
HALF = (torch.bfloat16, torch.float16)
RUNS_ON: dict[str, dict[str, tuple[torch.dtype, ...]]] = {
    "reference": {"cpu": (torch.float32, *HALF), "cuda": (torch.float32, *HALF)},
    "flash_cpu": {"cpu": (torch.float32, *HALF)},
    "flash_cuda": {"cuda": HALF},
}
# Largest allowed difference of out and of lse, for values of unit size. Half precision keeps 8 (bf16) or 11 (fp16) bits of a probability.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
# (query heads, KV heads)
HEADS = ((4, 4), (9, 3), (8, 1))
# (queries, keys, causal): one token and its past, a causal square, a chunk and its past, one key
SHAPES = ((1, 1, False), (1, 77, False), (1, 1, True), (33, 33, True), (130, 130, True), (7, 300, False), (40, 1, False))


def case(name: str, device: str, dtype: torch.dtype) -> object:
    marks = pytest.mark.gpu if device == "cuda" else ()
    return pytest.param(name, device, dtype, marks=marks, id=f"{name}-{device}-{str(dtype)[6:]}")


CASES = [case(name, device, dtype) for name, devices in RUNS_ON.items() for device, dtypes in devices.items() for dtype in dtypes]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def skip_without(device: str) -> None:
    """Skip the test on a machine that lacks ``device``."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def part(device: str, dtype: torch.dtype, heads: tuple[int, int], shape: tuple[int, int], dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v; k and v are rows of a longer segment, strided as the engine passes them."""
    generator = torch.Generator().manual_seed(sum(shape) + dim)
    n_q, n_k = shape
    q = torch.randn(n_q, heads[0], dim, generator=generator).to(device, dtype).transpose(0, 1)  # as the projection leaves it
    k, v = (torch.randn(2, heads[1], n_k + 9, dim, generator=generator).to(device, dtype)[1, :, 5 : 5 + n_k] for _ in "kv")
    return q, k, v


def test_every_backend_is_in_the_matrix() -> None:
    """Registering a backend without saying here where it runs is noticed."""
    assert set(backends) == set(RUNS_ON)


@pytest.mark.parametrize(("name", "device", "dtype"), CASES)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads[0]}over{heads[1]}")
def test_equals_the_reference(name: str, device: str, dtype: torch.dtype, dim: int, heads: tuple[int, int]) -> None:
    """Output and log-sum-exp equal the reference's within the tolerance of the dtype, for every shape and scale."""
    skip_without(device)
    for n_q, n_k, causal in SHAPES:
        q, k, v = part(device, dtype, heads, (n_q, n_k), dim)
        for scale in (dim**-0.5, 0.3):
            expected_out, expected_lse = attend_reference(q, k, v, causal, scale)
            out, lse = backends.get(name)(q, k, v, causal, scale)
            assert expected_out.shape == out.shape
            assert expected_lse.shape == lse.shape
            assert torch.float32 == lse.dtype
            torch.testing.assert_close(out.float(), expected_out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
            torch.testing.assert_close(lse, expected_lse, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "device", "dtype"), CASES)
def test_parts_merge_to_the_whole(name: str, device: str, dtype: torch.dtype) -> None:
    """A chunk's past parts and its causal part, merged, equal one causal attention over all of it (invariant 4)."""
    skip_without(device)
    scale, n_past, n_q = 0.125, 90, 20
    q, k, v = part(device, dtype, (9, 3), (n_q, n_past + n_q), 64)
    expected, _ = attend_reference(q, k, v, True, scale)  # noqa: FBT003 - the common signature
    edges = [(0, 40, False), (40, n_past, False), (n_past, n_past + n_q, True)]
    parts = [backends.get(name)(q, k[:, start:stop], v[:, start:stop], causal, scale) for start, stop, causal in edges]
    merged = merge(torch.stack([out.float() for out, _ in parts]), torch.stack([lse for _, lse in parts]))

    torch.testing.assert_close(merged, expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "device", "dtype"), CASES)
def test_inputs_stay_as_they_are(name: str, device: str, dtype: torch.dtype) -> None:
    """A backend writes to none of its inputs: K and V are other sessions' memory too (invariant 2)."""
    skip_without(device)
    q, k, v = part(device, dtype, (8, 2), (16, 16), 32)
    before = [tensor.clone() for tensor in (q, k, v)]
    backends.get(name)(q, k, v, True, 1.0)  # noqa: FBT003 - the common signature

    assert all(torch.equal(old, new) for old, new in zip(before, (q, k, v), strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_the_chosen_backend_runs_there(device: str, dtype: torch.dtype) -> None:
    """What is chosen for a device and dtype is a backend that the matrix has tested there."""
    skip_without(device)
    chosen = choose_backend(torch.device(device), dtype)
    names = [name for name in backends if backends.get(name) is chosen]

    assert 1 == len(names)
    assert dtype in RUNS_ON[names[0]][device]
