"""Quantised K and V: how far values may move, at any shape, and what groups of one value or huge values do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agentmem.stores.quantise import GROUP, dequantise, quantise

torch.set_num_threads(1)

SHAPES = [(2, 3, 64, 64), (1, 2, 37, 40), (1, 1, 1, 1), (2, 1, 33, 6)]


def there_and_back(k: Tensor, v: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return K and V after quantising in fp32, and the scale of each of their values."""
    codes, scales = quantise(k, v, bits)
    k_again, v_again = dequantise(codes, scales, bits, torch.float32)
    k_scale = scales[0].float().repeat_interleave(GROUP, 2)[:, :, : k.shape[2]]
    v_scale = scales[2].float().repeat_interleave(GROUP, 3)[..., : v.shape[3]]
    return k_again, v_again, k_scale, v_scale


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_value_comes_back_within_half_its_scale(bits: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """|x - x'| is at most half the group's scale, rounding of scale and zero to fp16 included, also where groups are not full."""
    noise = torch.Generator().manual_seed(bits)
    k, v = ((torch.randn(shape, generator=noise) * 10 + 3).to(dtype) for _ in "kv")
    k_again, v_again, k_scale, v_scale = there_and_back(k, v, bits)
    tiny = 1e-5  # of fp32 arithmetic on values around 40
    assert ((k_again - k.float()).abs() <= k_scale / 2 + tiny).all()
    assert ((v_again - v.float()).abs() <= v_scale / 2 + tiny).all()


@pytest.mark.parametrize(("bits", "levels"), [(8, 255), (4, 15)])
def test_a_scale_is_hardly_larger_than_its_range_demands(bits: int, levels: int) -> None:
    """The room that rounding to fp16 takes is a percent of the scale at most, so the bound above means something."""
    k, v = torch.randn(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    _, (k_scale, _, v_scale, _) = quantise(k, v, bits)
    k_range = (k.unflatten(2, (-1, GROUP)).amax(3) - k.unflatten(2, (-1, GROUP)).amin(3)) / levels
    v_range = (v.unflatten(3, (-1, GROUP)).amax(4) - v.unflatten(3, (-1, GROUP)).amin(4)) / levels
    torch.testing.assert_close(k_scale.float(), k_range, rtol=0.01, atol=1e-7)
    torch.testing.assert_close(v_scale.float(), v_range, rtol=0.01, atol=1e-7)


def test_hand_computed_example() -> None:
    """K 0 to 31 along the tokens of one channel at 8 bits: 31/255 a step; V likewise along channels; the axes are not mixed up."""
    ramp = torch.arange(32.0)
    k = torch.stack([ramp, ramp * 100], dim=1).view(1, 1, 32, 2)
    v = torch.stack([ramp, ramp * 100]).view(1, 1, 2, 32)
    (k_codes, v_codes), (k_scale, k_zero, v_scale, v_zero) = quantise(k, v, 8)
    for scale, zero in ((k_scale, k_zero), (v_scale, v_zero)):
        torch.testing.assert_close(scale.flatten().float(), torch.tensor([31 / 255, 3100 / 255]), rtol=0.002, atol=0)
        assert zero.abs().max() < 1e-6
    expected = (ramp * 255 / 31).round()
    for codes in (k_codes[0, 0, :, 0], k_codes[0, 0, :, 1], v_codes[0, 0, 0], v_codes[0, 0, 1]):
        assert (codes.float() - expected).abs().max() <= 1


def test_two_codes_in_a_byte_even_channel_low() -> None:
    """At 4 bits channel 0 is the low half of the first byte, channel 1 the high half; an odd last channel has a byte of its own."""
    v = torch.tensor([0.0, 15.0, 5.0]).view(1, 1, 1, 3)
    (_, codes), _ = quantise(v, v, 4)
    assert [0 | 15 << 4, 5] == codes.flatten().tolist()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 60000.0, 1e-7])
def test_constant_group(bits: int, value: float) -> None:
    """A group of one value comes back with an error far below what its dtype can tell."""
    x = torch.full((1, 1, 32, 32), value)
    k, v, _, _ = there_and_back(x, x, bits)
    for each in (k, v):
        torch.testing.assert_close(each, x, rtol=2**-12, atol=2**-24)


@pytest.mark.parametrize("bits", [8, 4])
def test_values_beyond_fp16_saturate(bits: int) -> None:
    """Values beyond 65504 and infinities come back finite, near the end of the range, and leave other groups alone."""
    x = torch.zeros(1, 1, 32, 64)
    x[..., 0, 0], x[..., 0, 1], x[..., 0, 2], x[..., 0, 3] = 1e9, -1e9, float("inf"), -float("inf")
    x[..., 32:] = 1.0
    k, v, _, _ = there_and_back(x, x, bits)
    for each in (k, v):
        assert torch.isfinite(each).all()
        assert (each[..., 0, [0, 2]] > 60000).all()
        assert (each[..., 0, [1, 3]] < -60000).all()
        torch.testing.assert_close(each[..., 32:], x[..., 32:], rtol=1e-3, atol=0)


def test_nan_becomes_zero() -> None:
    """A NaN does not spread to its group: it is taken for 0."""
    x = torch.ones(1, 1, 32, 32)
    x[..., 5, 7] = float("nan")
    k, v, k_scale, _ = there_and_back(x, x, 8)
    assert (k - x.nan_to_num(0.0)).abs().max() <= k_scale.max()
    assert torch.isfinite(v).all()


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 4]), st.floats(1e-3, 1e4), st.integers(0, 99))
def test_bound_holds_at_any_size_and_spread(tokens: int, dim: int, bits: int, spread: float, seed: int) -> None:
    """Whatever the shape and the spread, the bound holds and the shape comes back."""
    x = torch.randn(1, 1, tokens, dim, generator=torch.Generator().manual_seed(seed)) * spread
    k, v, k_scale, v_scale = there_and_back(x, x, bits)
    assert x.shape == k.shape == v.shape
    slack = 1e-6 * spread
    assert ((k - x).abs() <= k_scale / 2 + slack).all()
    assert ((v - x).abs() <= v_scale / 2 + slack).all()


def test_result_is_deterministic_and_in_the_dtype_asked_for() -> None:
    """Equal input gives equal codes, and values come back in the model's dtype, contiguous."""
    x = torch.randn(2, 1, 40, 48, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    first, again = quantise(x, x, 4), quantise(x.clone(), x.clone(), 4)
    for one, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
    for each in dequantise(*first, 4, torch.bfloat16):
        assert (torch.bfloat16, True) == (each.dtype, each.is_contiguous())
