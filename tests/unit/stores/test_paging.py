"""Page tokens."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import InvalidInput
from agentmem.stores.paging import START, Place, decode_place, encode_place


@given(st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(created_at: float, session_id: str) -> None:
    """A token gives back exactly the place that it was made of."""
    place = Place(created_at, session_id)
    assert place == decode_place(encode_place(place))


def test_empty_token_is_the_start() -> None:
    """The first page needs no token."""
    assert START == decode_place("")


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_foreign_token_is_refused(token: str) -> None:
    """Whatever was not made by us is InvalidInput, never another exception."""
    with pytest.raises(InvalidInput, match="page_token"):
        decode_place(token)


@pytest.mark.parametrize("text", ["[1, 2]", '["a", "b"]', "[[], []]", "{}", "[1.5]", "[" * 5000, "9" * 5000])
def test_wrong_json_is_refused(text: str) -> None:
    """JSON of another shape is refused, however deep or long."""
    with pytest.raises(InvalidInput, match="page_token"):
        decode_place(base64.urlsafe_b64encode(text.encode()).decode())
