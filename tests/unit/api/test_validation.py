"""What bad input is refused is tested over the wire in test_bad_input.py; here: what is let through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.api import validation as check
from agentmem.errors import InvalidInput
from agentmem.types import Message, SessionFormat, ToolSpec, TurnInput
from agentmem.views import SessionPatch, SessionSpec

PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)


@given(PRINTABLE)
def test_ids_are_printable_ascii(value: str) -> None:
    """Every printable ASCII word of up to 128 characters is an id, and is not changed."""
    assert value == check.identifier("session_id", value)


@given(st.text().filter(lambda value: not re.fullmatch("[!-~]{1,128}", value)))
def test_other_ids_are_refused_in_a_short_line(value: str) -> None:
    """Anything else is refused, and the error stays one short printable line."""
    with pytest.raises(InvalidInput) as caught:
        check.identifier("session_id", value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_limits_are_inclusive() -> None:
    """The largest values that the messages name are allowed."""
    assert "x" * 128 == check.identifier("id", "x" * 128)
    assert 1000 == check.page_size("n", 1000)
    assert 3600.0 == check.seconds("s", 3600.0, 3600.0)
    assert 64 == len(check.labels({f"{i}".rjust(256, "k"): "v" * 256 for i in range(64)}))
    assert 20_000 == len(check.turn_input(TurnInput((Message("user", ""),) * 20_000)).messages)


def test_a_tool_without_parameters() -> None:
    """No schema is a schema: the tool takes nothing."""
    spec = SessionSpec(tools=(ToolSpec("f", "", ""), ToolSpec("g", "", "{}")))
    assert spec is check.spec(spec)


def test_a_raw_session() -> None:
    """RAW sessions are fine without a template's things."""
    spec = SessionSpec(format=SessionFormat.RAW)
    assert spec is check.spec(spec)


def test_an_empty_patch() -> None:
    """Changing nothing is allowed."""
    assert SessionPatch() is check.patch(SessionPatch()) or SessionPatch() == check.patch(SessionPatch())


def test_deeply_nested_json_is_refused() -> None:
    """A schema that exhausts the parser is bad input, not a crash."""
    with pytest.raises(InvalidInput, match=r"tools\[0\].parameters"):
        check.spec(SessionSpec(tools=(ToolSpec("f", "", '{"a":' * 100_000),)))
