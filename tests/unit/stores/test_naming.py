"""File names of blocks and results, and the books of their sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import digest

from agentmem.errors import InvalidInput
from agentmem.stores.naming import FileSizes, file_name, parse_name

RESULT = "0123456789abcdef" * 2


@pytest.mark.parametrize("name", ["", RESULT])
def test_names_are_parsed_as_they_were_made(name: str) -> None:
    """Block and result name come back from a file's name."""
    assert (digest("a"), name) == parse_name(file_name(digest("a"), name))


@pytest.mark.parametrize(
    "file",
    ["", "notes.txt", "odd.safetensors", digest("a").hex(), f"{digest('a').hex()}..safetensors", f"{digest('a').hex()}.x.safetensors"],
)
def test_foreign_names_are_not_ours(file: str) -> None:
    """Names of another form are left alone."""
    assert parse_name(file) is None


@pytest.mark.parametrize("name", ["x", "../../etc", RESULT.upper(), RESULT + "0"])
def test_result_names_are_hex(name: str) -> None:
    """A result cannot be named so that its file would lie elsewhere."""
    with pytest.raises(InvalidInput, match="32 hex digits"):
        file_name(digest("a"), name)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", RESULT]), st.none() | st.integers(0, 9))))
def test_totals_are_those_of_the_last_sizes(steps: list[tuple[str, str, int | None]]) -> None:
    """However files come, change and go, the totals are the sums over those that are there."""
    sizes, model = FileSizes({"notes.txt": 100}), {}
    for block, name, size in steps:
        sizes.put(file_name(digest(block), name), size)
        model[block, name] = size
    blocks = [size for (_, name), size in model.items() if not name and size is not None]
    results = [size for (_, name), size in model.items() if name and size is not None]
    assert (len(blocks), sum(blocks), sum(results)) == (sizes.num_blocks, sizes.block_bytes, sizes.result_bytes)


def test_books_tolerate_results_of_other_processes_and_nothing_else() -> None:
    """A result that came or went is no broken rule; a block that is missing, a wrong size and a wrong total are."""
    block, result, other = file_name(digest("a")), file_name(digest("a"), RESULT), file_name(digest("b"), RESULT)
    sizes = FileSizes({block: 5, result: 3})
    assert [] == sizes.check_integrity({block: 5, other: 9})
    assert ["block files count 5 bytes and use 0"] == sizes.check_integrity({result: 3})
    assert [f"file {result} counts 3 bytes and uses 4"] == sizes.check_integrity({block: 5, result: 4})
    sizes.result_bytes = 7
    assert ["results count 7 bytes, their sizes sum up to 3"] == sizes.check_integrity({block: 5})
