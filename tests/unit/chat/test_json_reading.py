from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.chat.json_reading import Ended, Malformed, value

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=6)
relaxed = settings(max_examples=200, deadline=None)


def read(text: str) -> tuple[str, str]:
    """Return what was accepted, and the character after the value. Raises Malformed."""
    taken: list[str] = []
    reader = value(text[:1], taken.append)
    try:
        next(reader)
        for char in (*text[1:], ""):
            reader.send(char)
    except StopIteration as end:
        return "".join(taken), str(end.value)
    except Malformed as problem:
        problem.add_note("".join(taken))
        raise
    raise AssertionError("the reader wants more than the end of the text")


@given(VALUES, st.sampled_from([None, 1, "\t"]), st.booleans(), st.sampled_from(["", "x", "}", "<"]))
@relaxed
def test_json_is_taken_as_it_is_written(data: object, indent: int | str | None, ascii_only: bool, after: str) -> None:
    """Any value in any spelling is taken to its end, and not beyond."""
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)
    if text[-1].isdigit() and after == "x":
        after = ""
    assert (text, after) == read(text + after)


@given(VALUES, st.data())
@relaxed
def test_a_cut_value_has_ended(data: object, draws: st.DataObject) -> None:
    """A value that is cut short has ended too early, and all of it was taken; numbers and words may be shorter ones."""
    text = json.dumps(data)
    end = draws.draw(st.integers(1, len(text)))
    try:
        json.loads(text[:end])
    except ValueError:
        with pytest.raises(Ended) as caught:
            read(text[:end])
        assert [text[:end]] == caught.value.__notes__
    else:
        assert (text[:end], "") == read(text[:end])


@given(st.text(alphabet='{}[]:,"\\ 01.-etrufalsn', min_size=1, max_size=8))
@relaxed
def test_what_is_accepted_is_json(text: str) -> None:
    """Whatever is read without complaint is JSON, backslashes in strings aside; what json takes is read to its end."""
    text = text.lstrip() or "0"
    try:
        taken, _ = read(text)
    except Malformed:
        with pytest.raises(ValueError, match="."):
            json.loads(text)
    else:
        if "\\" not in taken:
            json.loads(taken)


def test_strings_may_hold_what_json_forbids() -> None:
    """Newlines and unknown escapes in strings are the reader's to judge: where a string ends is plain without them."""
    assert ('["a\nb\\d\\""]', "") == read('["a\nb\\d\\""]')


@pytest.mark.parametrize(
    ("text", "taken", "problem"),
    [
        ("x", "", "'x' in the place of a JSON value"),
        ("[1,]", "[1,", "']' in the place of a JSON value"),
        ("{'a'", "{", '"\'" in the place of a string'),
        ('{"a" 1}', '{"a" ', "'1' in the place of ':'"),
        ("[1 2]", "[1 ", "'2' in the place of ',' or ']'"),
        ("[tru]", "[tru", "']' in the place of a JSON value, after 'tru'"),
        ("[01]", "[01", "']' in the place of a JSON value, after '01'"),
        ("[True]", "[", "'T' in the place of a JSON value"),
    ],
)
def test_the_first_wrong_character_is_named(text: str, taken: str, problem: str) -> None:
    """Everything before the character that breaks the JSON is taken, and the error says what should be there."""
    with pytest.raises(Malformed) as caught:
        read(text)
    assert (problem, [taken]) == (str(caught.value), caught.value.__notes__)


def test_depth_is_no_limit() -> None:
    """Nesting of any depth is read."""
    text = "[" * 50_000 + "]" * 50_000
    assert (text, "") == read(text)
