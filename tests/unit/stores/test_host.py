"""The host tier's bound and order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.stores import digest

from agentmem.stores.host import HostTier, host_tensor
from agentmem.types import BlockHash

A, B, C = (digest(name) for name in "abc")


def put(tier: HostTier, block_hash: BlockHash, n_bytes: int = 10) -> None:
    """Put a block of ``2 * n_bytes`` bytes."""
    tier.put(block_hash, torch.zeros(n_bytes, dtype=torch.uint8), torch.zeros(n_bytes, dtype=torch.uint8))


def held(tier: HostTier) -> set[BlockHash]:
    """Return which of A, B and C the tier holds."""
    return {block_hash for block_hash in (A, B, C) if tier.get(block_hash) is not None}


def test_least_recently_used_leaves_first() -> None:
    """A block that was read outlives one that was not."""
    tier = HostTier(40)
    put(tier, A)
    put(tier, B)
    tier.get(A)
    put(tier, C)
    assert {A, C} == held(tier)


def test_zero_bytes_turn_it_off() -> None:
    """With a bound of 0 nothing is kept."""
    tier = HostTier(0)
    put(tier, A)
    assert (0, 0, set()) == (len(tier), tier.bytes_used, held(tier))


def test_block_above_the_bound_displaces_nothing() -> None:
    """A block that could never fit does not empty the tier."""
    tier = HostTier(20)
    put(tier, A)
    put(tier, B, 11)
    assert {A} == held(tier)


def test_dropped_block_is_gone() -> None:
    """Drop forgets a block and its bytes; dropping what is not there does nothing."""
    tier = HostTier(20)
    put(tier, A)
    tier.drop(A)
    tier.drop(B)
    assert (0, set()) == (tier.bytes_used, held(tier))


def test_wrong_books_are_found() -> None:
    """check_integrity names a wrong count and a broken bound."""
    tier = HostTier(20)
    put(tier, A)
    tier.bytes_used, tier.max_bytes = 1, 10
    assert ["host tier counts 1 bytes and holds 20", "host tier holds 20 bytes of 10"] == tier.check_integrity()


def test_eviction_is_counted_and_a_drop_is_not() -> None:
    """Blocks that leave for want of room are counted; those that are dropped or replaced are not."""
    tier = HostTier(40)
    for block_hash in (A, B, B, C):
        put(tier, block_hash)
    tier.drop(C)
    assert 1 == tier.num_evicted


@pytest.mark.parametrize("cuda", [True, False])
def test_host_tensors_are_page_locked_with_cuda_only(monkeypatch: pytest.MonkeyPatch, cuda: bool) -> None:
    """Memory is page-locked where there is CUDA; without it torch is not even asked, since locking would fail."""
    asked: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch, "empty", lambda shape, **options: asked.update(options, shape=shape))
    host_tensor((2, 3), torch.bfloat16)
    assert {"shape": (2, 3), "dtype": torch.bfloat16, "pin_memory": cuda} == asked


@given(st.integers(0, 100), st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 40), st.booleans())))
def test_bound_and_count_always_hold(max_bytes: int, steps: list[tuple[BlockHash, int, bool]]) -> None:
    """Whatever is put and dropped, the bytes are counted right and stay within the bound."""
    tier = HostTier(max_bytes)
    for block_hash, n_bytes, keep in steps:
        if keep:
            put(tier, block_hash, n_bytes)
        else:
            tier.drop(block_hash)
        assert [] == tier.check_integrity()
