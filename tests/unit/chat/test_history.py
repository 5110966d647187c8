from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.chat import HistoryMatch, match_history
from agentmem.types import Message, ToolCall


def calls(arguments: str, call_id: str = "1", name: str = "f") -> Message:
    return Message("assistant", "", tool_calls=(ToolCall(call_id, name, arguments),))


LEDGER = (Message("user", "a"), calls('{"x": 1, "y": [true, null]}'), Message("tool", "r", tool_call_id="1"), Message("assistant", "b "))


def test_a_resent_history_leaves_the_rest_to_append() -> None:
    """Everything the ledger holds is equal; what follows is new."""
    assert HistoryMatch(4) == match_history(LEDGER, [*LEDGER, Message("user", "c")])
    assert HistoryMatch(4) == match_history(LEDGER, LEDGER)
    assert HistoryMatch(0) == match_history((), LEDGER)


@pytest.mark.parametrize("arguments", ['{"y":[true,null],"x":1}', '{ "x": 1.0,\n "y": [true, null] }', '{"x": 1e0, "y": [true, null]}'])
def test_arguments_are_compared_as_json(arguments: str) -> None:
    """Key order, whitespace and the spelling of numbers don't matter."""
    assert HistoryMatch(4) == match_history(LEDGER, [LEDGER[0], calls(arguments), *LEDGER[2:]])


@pytest.mark.parametrize(
    "arguments", ['{"x": true, "y": [true, null]}', '{"x": 1, "y": [null, true]}', '{"x": 1, "y": [1, null]}', "x", "{}"]
)
def test_other_arguments_diverge(arguments: str) -> None:
    """Another value diverges; true is not 1."""
    assert HistoryMatch(1, 1, "tool_calls of message 1") == match_history(LEDGER, [LEDGER[0], calls(arguments), *LEDGER[2:]])


@pytest.mark.parametrize(
    ("index", "sent", "detail"),
    [
        (0, Message("user", "a "), "content"),
        (0, Message("system", "a"), "role"),
        (0, Message("user", "a", name="n"), "name"),
        (1, calls('{"x": 1, "y": [true, null]}', name="g"), "tool_calls"),
        (1, calls('{"x": 1, "y": [true, null]}', call_id="2"), "tool_calls"),
        (1, Message("assistant", ""), "tool_calls"),
        (2, Message("tool", "r", tool_call_id="2"), "tool_call_id"),
        (3, Message("assistant", "b"), "content"),
    ],
)
def test_the_first_difference_is_named(index: int, sent: Message, detail: str) -> None:
    """The result tells which message differs in what; trailing whitespace counts."""
    incoming = [*LEDGER[:index], sent, *LEDGER[index + 1 :]]
    assert HistoryMatch(index, index, f"{detail} of message {index}") == match_history(LEDGER, incoming)


def test_ids_that_one_side_does_not_know_are_equal() -> None:
    """A client that leaves out a tool call's id sends the same call."""
    known = calls("{}", call_id="")
    assert HistoryMatch(1) == match_history([known], [calls("{}", call_id="9")])
    assert HistoryMatch(1) == match_history([calls("{}")], [known])


def test_a_shortened_history_diverges_where_it_ends() -> None:
    """A history that leaves out the ledger's end diverges there, as a client that regenerates a reply wants."""
    assert HistoryMatch(3, 3, "message 3 was left out") == match_history(LEDGER, LEDGER[:3])


def test_arguments_that_are_not_json_are_compared_as_text() -> None:
    """Broken JSON equals itself only, however deep or long it is."""
    assert HistoryMatch(1) == match_history([calls("{")], [calls("{")])
    assert HistoryMatch(0, 0, "tool_calls of message 0") == match_history([calls("{")], [calls("{ ")])
    deep = "[" * 100_000
    assert HistoryMatch(0, 0, "tool_calls of message 0") == match_history([calls(deep)], [calls(deep + " ")])


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=3)), max_size=6), st.integers(0, 6))
@settings(deadline=None)
def test_the_equal_part_is_the_common_prefix(pairs: list[tuple[str, str]], at: int) -> None:
    """With one message changed, exactly the messages before it are equal."""
    ledger = [Message(role, content) for role, content in pairs]
    incoming = [Message(message.role, message.content + "!" * (index == at)) for index, message in enumerate(ledger)]
    match = match_history(ledger, incoming)
    assert min(at, len(ledger)) == match.n_equal
    assert (at if at < len(ledger) else None) == match.diverged_at
