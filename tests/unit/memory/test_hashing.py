from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import InvalidInput
from agentmem.memory.hashing import Chain, block_hash, chain_root
from agentmem.types import BlockHash, Fingerprint

ROOT = chain_root(b"salt", Fingerprint("model"), 4, "float32")
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=60)


@given(tokens=TOKENS, cuts=st.lists(st.integers(0, 60), max_size=6), size=st.integers(1, 9))
def test_grouping_does_not_matter(tokens: list[int], cuts: list[int], size: int) -> None:
    """However the tokens arrive, the hashes are those of the whole list, one for each full block."""
    grouped = Chain(ROOT, size)
    edges = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    for start, stop in pairwise(edges):
        grouped.extend(iter(tokens[start:stop]))

    assert tokens == grouped.tokens
    assert len(tokens) // size == len(grouped.hashes)
    assert Chain(ROOT, size, tokens).hashes == grouped.hashes


@given(tokens=TOKENS, length=st.integers(0, 60), more=TOKENS)
def test_truncating_equals_never_having_had_the_rest(tokens: list[int], length: int, more: list[int]) -> None:
    """A chain cut back and grown again equals one that only ever held those tokens; a copy does too and is independent."""
    chain = Chain(ROOT, 4, tokens)
    copy = chain.copy(min(length, len(tokens)))
    chain.truncate(length)
    kept = list(chain.tokens)
    chain.extend(more)

    assert Chain(ROOT, 4, tokens[:length] + more).hashes == chain.hashes
    assert kept == copy.tokens
    assert Chain(ROOT, 4, kept).hashes == copy.hashes


@given(a=TOKENS, b=TOKENS)
def test_a_hash_stands_for_the_whole_prefix(a: list[int], b: list[int]) -> None:
    """Two chains share the hash of block i exactly when all tokens up to its end are equal."""
    one, two = Chain(ROOT, 3, a), Chain(ROOT, 3, a[: len(a) // 2] + b)
    for index, (left, right) in enumerate(zip(one.hashes, two.hashes, strict=False)):
        stop = (index + 1) * 3
        assert (one.tokens[:stop] == two.tokens[:stop]) is (left == right)


def test_equal_blocks_after_different_parents_differ() -> None:
    """The same tokens after other tokens are another block."""
    assert Chain(ROOT, 2, [1, 2, 5, 6]).hashes[1] != Chain(ROOT, 2, [3, 4, 5, 6]).hashes[1]


ROOTS = st.tuples(st.binary(max_size=6), st.text("ab0", max_size=4), st.integers(1, 40), st.sampled_from(["float32", "bfloat16", "0"]))


@given(a=ROOTS, b=ROOTS)
def test_tenants_models_sizes_and_dtypes_never_meet(a: tuple[bytes, str, int, str], b: tuple[bytes, str, int, str]) -> None:
    """Roots, and so all hashes, are equal only when salt, fingerprint, block size and dtype all are."""
    roots = [chain_root(salt, Fingerprint(print_), size, dtype) for salt, print_, size, dtype in (a, b)]

    assert (a == b) is (roots[0] == roots[1])
    assert (a == b) is (block_hash(roots[0], [1, 2]) == block_hash(roots[1], [1, 2]))


def test_parent_of_and_len() -> None:
    """The first block follows the root, each other one the block before it; the length counts tokens."""
    chain = Chain(ROOT, 2, [1, 2, 3, 4, 5])

    assert 5 == len(chain)
    assert [ROOT, chain.hashes[0], chain.hashes[1]] == [chain.parent_of(index) for index in range(3)]
    assert 32 == len(BlockHash(chain.hashes[0]))


def test_a_block_needs_a_token() -> None:
    """A block size below 1 is refused by name."""
    with pytest.raises(InvalidInput, match="block_tokens is 0; allowed: 1 or more"):
        Chain(ROOT, 0)
