from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.chat.tools import TOOL_FORMATS, parse_arguments, signature
from agentmem.errors import InvalidInput
from agentmem.types import Message, ToolCall, ToolSpec

HERMES = TOOL_FORMATS.get("hermes")
TEXT = st.text(max_size=8) | st.sampled_from(["</tool_call>", "<tool_call>", '"}'])
SCALARS = st.none() | st.booleans() | st.integers() | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=4)
NAMES = TEXT.filter(bool)
relaxed = settings(max_examples=50, deadline=None)


@given(st.lists(st.tuples(NAMES, st.dictionaries(TEXT, VALUES, max_size=3)), min_size=1, max_size=3))
@relaxed
def test_written_calls_are_read_back(calls: list[tuple[str, dict[str, object]]]) -> None:
    """Calls of any names and arguments survive being written and read, tags in their strings included."""
    message = Message("assistant", "", tool_calls=tuple(ToolCall("", name, json.dumps(arguments)) for name, arguments in calls))
    text, found = HERMES.read(HERMES.write(message).content)
    assert "" == text
    assert calls == [(call.name, json.loads(call.arguments)) for call in found]


@given(st.text())
@relaxed
def test_text_without_calls_stays(text: str) -> None:
    """Text that calls nothing is left as it is."""
    assert (text, ()) == HERMES.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\n{",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"name": ""}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>" + "[" * 100_000,
    ],
)
def test_malformed_calls_stay_text(text: str) -> None:
    """What is no call is shown to the reader rather than dropped."""
    assert (text, ()) == HERMES.read(text)


def test_calls_are_found_among_text() -> None:
    """Text around calls is kept, a malformed call in between too; a call at the very end needs no closing tag."""
    text = 'A <tool_call>{"name": "f"}</tool_call> B <tool_call>no</tool_call><tool_call>{"name": "g", "arguments": "{}"}'
    kept, calls = HERMES.read(text)
    assert "A  B <tool_call>no</tool_call>" == kept
    assert [("f", "{}"), ("g", "{}")] == [(call.name, call.arguments) for call in calls]


def test_ids_of_calls_suit_every_template() -> None:
    """Ids are distinct, of nine letters and digits, as Mistral's templates ask for."""
    _, calls = HERMES.read('<tool_call>{"name": "f"}</tool_call>' * 2)
    assert 2 == len({call.id for call in calls})
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)


def test_plain_messages_are_left_alone() -> None:
    """Only tool calls and results are rewritten."""
    message = Message("user", "a", name="n")
    assert message is HERMES.write(message)


def test_arguments_that_are_no_object_stay_text() -> None:
    """Broken arguments reach the template as the text that they are."""
    assert {"a": 1} == parse_arguments('{"a": 1}')
    assert ["{", "[1]", "[" * 100_000] == [parse_arguments(text) for text in ("{", "[1]", "[" * 100_000)]


def test_signatures_have_the_form_of_openai() -> None:
    """A tool without parameters has an empty schema; parameters that are no object are refused by the tool's name."""
    expected = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    assert expected == signature(ToolSpec("f", "d", ""))
    with pytest.raises(InvalidInput, match="parameters of tool 'f' are not a JSON object"):
        signature(ToolSpec("f", "d", "nope"))
