from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from agentmem.compression.simhash import encode, projection
from agentmem.errors import InvalidInput


def distances(codes: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Return Hamming distances of ``codes`` ``[n, bytes]`` to ``code`` ``[bytes]``."""
    return torch.from_numpy(np.bitwise_count((codes ^ code).numpy()).sum(-1, dtype=np.int64))


def test_directions_are_pinned() -> None:
    """Codes on disk outlive processes and machines: the first numbers and a code are written down here."""
    assert_close(projection(3, 4, 8)[0], torch.tensor([-0.239304468, -0.509002268, -0.280387491, -0.226196513]))
    assert [120, 85, 102, 143] == encode(torch.arange(-4.0, 4.0), projection(0, 8, 32)).tolist()


def test_directions_follow_from_the_layer_alone() -> None:
    """Torch's global seed changes nothing, asking does not change it, layers differ, and fewer bits are the first of more."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = projection(0, 16, 64)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, projection(0, 16, 64))
    assert not torch.equal(first, projection(1, 16, 64))
    assert torch.equal(first, projection(0, 16, 256)[:64])
    assert (torch.float32, (64, 16)) == (first.dtype, tuple(first.shape))


def test_directions_are_normal() -> None:
    """Mean 0, variance 1."""
    noise = projection(7, 64, 1024)
    assert abs(float(noise.mean())) < 0.02
    assert 0.98 < float(noise.var()) < 1.02


def test_bit_j_is_the_sign_of_projection_j() -> None:
    """Lowest bits first, as numpy's packbits in little order; zero is no positive number."""
    codes = encode(torch.eye(16), torch.eye(16))
    expected = np.packbits(np.eye(16, dtype=bool), axis=-1, bitorder="little")
    assert expected.tolist() == codes.tolist()
    assert [0, 0] == encode(torch.zeros(16), torch.eye(16)).tolist()


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 5, 8), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_number_of_leading_dimensions(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Shapes carry over, strided input too, and x is not written to."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, directions = x.clone(), projection(0, 8, 64)
    codes = encode(x, directions)
    assert (torch.uint8, (*shape[:-1], 8)) == (codes.dtype, tuple(codes.shape))
    assert torch.equal(before, x)
    strided = torch.stack([x, x], dim=-1)[..., 0]
    assert torch.equal(codes, encode(strided, directions))
    bits = np.packbits((x.float() @ directions.T > 0).numpy(), axis=-1, bitorder="little")
    assert bits.tolist() == codes.tolist()


def test_distance_grows_with_the_angle() -> None:
    """The share of differing bits is the angle over pi, within four standard deviations of 1,024 bits."""
    angles = torch.linspace(0, torch.pi, 9)
    x = torch.zeros(9, 32)
    x[:, 0], x[:, 1] = angles.cos(), angles.sin()
    codes = encode(x, projection(0, 32, 1024))
    assert_close(distances(codes, codes[0]) / 1024, angles / torch.pi, atol=4 * 0.5 / 32, rtol=0)


@pytest.mark.parametrize("bits", [0, -8, 12])
def test_bits_that_fill_no_bytes_are_refused(bits: int) -> None:
    """The error names the value."""
    with pytest.raises(InvalidInput, match=f"bits is {bits}"):
        projection(0, 8, bits)
