"""Reading rows of mapped blocks: bits in the model's dtype, dequantised values from lower-precision archives."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from support.archives import archived, dequantised, mapped_blocks, random_kv

from agentmem.memory.archived import ArchivedRows
from agentmem.stores.mapped import ArchiveFormat

DIM = 48  # of values: one and a half groups of 32
KINDS = [(ArchiveFormat.NATIVE, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]
KINDS += [(ArchiveFormat.INT8, torch.bfloat16), (ArchiveFormat.INT4, torch.float16), (ArchiveFormat.INT4, torch.float32)]


@pytest.mark.parametrize(("format", "dtype"), KINDS)
@pytest.mark.parametrize(("length", "tokens"), [(150, 64), (1, 4), (80, 40)])
def test_a_layer_is_what_the_blocks_hold(format: ArchiveFormat, dtype: torch.dtype, length: int, tokens: int) -> None:
    """Every layer equals the blocks put together and cut off at the length, bit for bit, also with groups that are not full."""
    k, v = random_kv((3, 2, length, DIM), dtype)
    blocks = mapped_blocks(k, v, format, tokens)
    rows = ArchivedRows(blocks, length, dtype)
    parts = [dequantised(block, dtype) for block in blocks]
    expected_k, expected_v = (torch.cat(part, 2)[:, :, :length] for part in zip(*parts, strict=True))

    for layer in range(3):
        got_k, got_v = rows.layer(layer)
        assert got_k.is_contiguous()
        assert torch.equal(expected_k[layer], got_k)
        assert torch.equal(expected_v[layer], got_v)
        assert torch.equal(expected_k[layer], rows.keys(layer))
    if format is ArchiveFormat.NATIVE:
        assert torch.equal(k, expected_k)


@pytest.mark.parametrize(("format", "dtype"), KINDS)
def test_gathered_rows_equal_those_of_the_layer(format: ArchiveFormat, dtype: torch.dtype) -> None:
    """Each KV head gets its own rows in its own number; what lies behind them stays as it was."""
    k, v = random_kv((2, 2, 200, DIM), dtype, 1)
    rows = archived(k, v, format)
    ids = np.array([[199, 0, 64, 63], [7, 7, 150, 1]], np.int32)
    buffers = torch.full((2, 3, 2, 4, DIM), 5.0, dtype=dtype)  # a layer's part of larger buffers
    out_k, out_v = buffers[0, 1], buffers[1, 1]
    rows.gather(1, ids, np.array([4, 2], np.int64), out_k, out_v)

    layer_k, layer_v = rows.layer(1)
    for head, count in enumerate((4, 2)):
        chosen = torch.from_numpy(ids[head, :count]).long()
        assert torch.equal(layer_k[head, chosen], out_k[head, :count])
        assert torch.equal(layer_v[head, chosen], out_v[head, :count])
    assert torch.equal(torch.full((2, DIM), 5.0, dtype=dtype), out_k[1, 2:])
    assert (buffers[:, [0, 2]] == 5.0).all()


def test_special_bits_survive() -> None:
    """Infinities, NaN payloads and negative zero of a native archive come back with the same bits."""
    bits = torch.tensor([0x7F80, 0xFF80, 0x7FC1, 0x8000], dtype=torch.uint16).view(torch.bfloat16).repeat(1, 1, 4, DIM // 4)
    rows = archived(bits, bits)
    assert torch.equal(bits.view(torch.uint16)[0], rows.layer(0)[0].view(torch.uint16))


def test_the_blocks_live_as_long_as_the_rows() -> None:
    """The rows hold the mappings that they read from, and let go of them."""
    k, v = random_kv((1, 1, 64, DIM), torch.float32)
    rows = archived(k, v)
    block = weakref.ref(rows._blocks[0].k)
    gc.collect()
    assert block() is not None
    del rows
    gc.collect()
    assert block() is None


def test_blocks_that_do_not_fit_are_refused() -> None:
    """Another format, shape or dtype, and a length beyond the blocks, are errors before anything is read."""
    k, v = random_kv((1, 1, 128, DIM), torch.float32)
    native, quantised = mapped_blocks(k, v), mapped_blocks(k, v, ArchiveFormat.INT8)
    with pytest.raises(ValueError, match="format or shape"):
        ArchivedRows([native[0], quantised[1]], 128, torch.float32)
    with pytest.raises(ValueError, match="do not hold 129"):
        ArchivedRows(native, 129, torch.float32)
    with pytest.raises(ValueError, match="not torch.bfloat16"):
        ArchivedRows(native, 128, torch.bfloat16)
