from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import ConfigError
from agentmem.units import GIB, MIB, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [(0, 0), (12, 12), ("12", 12), ("8GiB", 8 * GIB), ("512 MiB", 512 * MIB), ("20gb", 20 * 10**9), ("1.5KiB", 1536), (" 7B ", 7)],
)
def test_parse_size_reads_numbers_and_units(text: int | str, n_bytes: int) -> None:
    """A number is bytes; a unit multiplies, whatever its case; binary and decimal units differ."""
    assert n_bytes == parse_size(text)


@pytest.mark.parametrize("bad", [-1, True, "", "8 parsecs", "-3GiB", "GiB", "1e3", "nan", 1.5, None])
def test_parse_size_refuses_everything_else(bad: object) -> None:
    """What is not a size is named in the error, with the units that are known."""
    with pytest.raises(ConfigError, match="is not a size.*GiB"):
        parse_size(bad)  # type: ignore[arg-type]


@given(st.integers(0, 2**60))
def test_any_whole_number_of_bytes_survives(n_bytes: int) -> None:
    """Parsing the decimal text of a number of bytes returns that number exactly."""
    assert n_bytes == parse_size(str(n_bytes))


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * GIB // 2, "1.5 GiB"), (1 << 42, "4.0 TiB")]
)
def test_format_size_picks_the_largest_unit(n_bytes: int, text: str) -> None:
    """Sizes for people have one decimal and the largest unit that leaves at least one."""
    assert text == format_size(n_bytes)
