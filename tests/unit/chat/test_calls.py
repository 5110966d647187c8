from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.chat.calls import CallStream
from agentmem.chat.reply_parts import ParsedReply, Piece
from agentmem.chat.tool_formats import TOOL_FORMATS
from agentmem.chat.tools import written_calls
from agentmem.output import CallDelta
from agentmem.types import ToolCall

EVERY = tuple(TOOL_FORMATS)
KNOWN = ("ls", "cat")
ARGUMENTS = json.dumps({"path": 'a"</tool_call>]}{[TOOL_CALLS]\\', "n": [1, -2.5e3, {"é😀": None}, [], {}], "ok": True}, ensure_ascii=False)
relaxed = settings(max_examples=150, deadline=None)


def new_id(index: int) -> str:
    return f"call{index:05}"


def stream_of(name: str, known: Sequence[str] | None = KNOWN) -> CallStream:
    return TOOL_FORMATS.get(name).stream(new_id, known)


def pieces_of(name: str, *texts: str) -> tuple[list[Piece], CallStream]:
    stream = stream_of(name)
    pieces = [piece for text in texts for piece in stream.push(text)]
    return [*pieces, *stream.finish()], stream


def read(name: str, *texts: str) -> ParsedReply:
    return pieces_of(name, *texts)[1].parsed()


def together(pieces: Sequence[Piece]) -> tuple[str, dict[int, dict[str, str]]]:
    """Return what a client makes of ``pieces``: the content, and the calls by index."""
    calls: dict[int, dict[str, str]] = {}
    for piece in pieces:
        if isinstance(piece, CallDelta):
            first = piece.index not in calls
            assert first == bool(piece.id) == bool(piece.name)
            call = calls.setdefault(piece.index, {"id": piece.id, "name": piece.name, "arguments": ""})
            call["arguments"] += piece.arguments
    return "".join(piece for piece in pieces if isinstance(piece, str)), calls


def in_order(pieces: Sequence[Piece]) -> list[object]:
    """Return ``pieces`` such that how they were cut doesn't show: one for each text between calls, and for each call."""
    joined: list[Any] = []
    for piece in pieces:
        shown = ["", piece] if isinstance(piece, str) else [piece.index, piece.id + piece.name + piece.arguments]
        if joined and joined[-1][0] == shown[0]:
            joined[-1][1] += shown[1]
        else:
            joined.append(shown)
    return joined


def write(name: str, *calls: tuple[str, str]) -> str:
    """Return calls as the model of a format writes them."""
    return written_calls(TOOL_FORMATS.get(name).shape, [ToolCall("", called, arguments) for called, arguments in calls])


def replies(name: str) -> list[str]:
    """Return replies of every kind in one format."""
    one, other = write(name, ("ls", ARGUMENTS)), write(name, ("cat", "{}"))
    two = write(name, ("ls", ARGUMENTS), ("nope", "{}"))
    broken = one.replace('"n": [1', '"n": [x')
    no_name = one.replace("ls", "")
    return [
        "",
        "Text. ",
        one,
        two,
        f" A\n{one}\nB\n{other} C\n",
        broken,
        f"{broken}\n{one}",
        no_name,
        f"{one}{one[:-9]}",
        one[:20],
        one[:9],
    ]


@pytest.mark.parametrize("name", EVERY)
def test_one_call(name: str) -> None:
    """A call is delivered with its name, the id that was given and its arguments as they were written; there is no content."""
    assert ((ToolCall("call00000", "ls", ARGUMENTS),), "", (), False) == fields(read(name, write(name, ("ls", ARGUMENTS))))


def fields(reply: ParsedReply) -> tuple[tuple[ToolCall, ...], str, tuple[str, ...], bool]:
    return reply.message.tool_calls, reply.message.content, reply.problems, reply.partial


@pytest.mark.parametrize("name", EVERY)
def test_two_calls(name: str) -> None:
    """Several calls keep their order and get one id each, in Llama's format too."""
    calls = ("ls", '{"a": 1}'), ("cat", "{}")
    expected = tuple(ToolCall(new_id(index), *call) for index, call in enumerate(calls))
    assert (expected, "", (), False) == fields(read(name, write(name, *calls)))


@pytest.mark.parametrize("name", EVERY)
def test_text_around_calls_is_content(name: str) -> None:
    """Text before, between and after calls is kept; whitespace next to them at its ends is not."""
    one = write(name, ("ls", "{}"))
    reply = read(name, f"Before.\n\n{one}\nbetween\n{one}\nafter\n")
    assert "Before.\n\n\nbetween\n\nafter" == reply.message.content
    assert (2, ()) == (len(reply.message.tool_calls), reply.problems)
    assert "after" == read(name, f"\n{one}\nafter").message.content
    assert "  before" == read(name, f"  before\n{one}\n").message.content


@pytest.mark.parametrize("name", EVERY)
def test_text_without_calls_is_left_alone(name: str) -> None:
    """A reply that calls nothing is all content, whitespace included."""
    for text in ("", "  \n", "\n a <tool [TOOL { \n", '{"name": 1}', '{"answer": [1, 2]}\n', "a\n{\n{ <tool_cal"):
        assert ((), text, (), False) == fields(read(name, text))


@pytest.mark.parametrize("name", EVERY)
def test_unknown_tools_are_delivered_and_reported(name: str) -> None:
    """A call of no tool is a call all the same, and the problem names the tools that there are."""
    reply = read(name, write(name, ("nope", "{}")))
    assert ((ToolCall("call00000", "nope", "{}"),), "", ("unknown tool 'nope'; known: cat, ls",), False) == fields(reply)
    stream = stream_of(name, [])
    stream.push(write(name, ("ls", "{}")))
    stream.finish()
    assert ["unknown tool 'ls'; known: none"] == stream.problems


@pytest.mark.parametrize("name", EVERY)
def test_broken_arguments_end_a_call_that_was_told(name: str) -> None:
    """The arguments up to what breaks them stay; the rest is content, and further calls are found."""
    one = write(name, ("ls", '{"a": 1}'))
    broken = one.replace("1", "x")
    reply = read(name, f"A\n{broken}\n{one}")
    assert [("ls", '{"a": '), ("ls", '{"a": 1}')] == [(call.name, call.arguments) for call in reply.message.tool_calls]
    assert f"A\n{broken[broken.index('x') :]}" == reply.message.content
    assert ("call 0 is malformed: 'x' in the place of a JSON value",) == reply.problems


@pytest.mark.parametrize("name", EVERY)
def test_the_reply_may_end_anywhere(name: str) -> None:
    """Cut at any character, nothing is dropped: what was told is a partial call, and everything else is content."""
    whole = write(name, ("ls", ARGUMENTS))
    arguments_end = whole.index(ARGUMENTS) + len(ARGUMENTS)
    told = 0
    for end in range(len(whole)):
        reply = read(name, f"A\n{whole[:end]}")
        if not reply.message.tool_calls:
            assert f"A\n{whole[:end]}" == reply.message.content
            assert told == 0
            continue
        told += 1
        written = whole[whole.index(ARGUMENTS) : end] if end < arguments_end else ARGUMENTS
        assert ("A", written) == (reply.message.content, reply.message.tool_calls[0].arguments)
        inside = end < arguments_end or end - arguments_end < len(TOOL_FORMATS.get(name).shape.after)
        assert inside == reply.partial
        if inside:
            assert ("the reply ended inside call 0",) == reply.problems
    assert told >= len(ARGUMENTS)


@pytest.mark.parametrize("name", EVERY)
def test_cut_anywhere_it_streams_the_same(name: str) -> None:
    """Cut in two at every character, and into single characters, a reply gives the same content, calls and problems, in order."""
    for text in replies(name):
        pieces, whole = pieces_of(name, text)
        for texts in ([text[:at], text[at:]] for at in range(len(text) + 1)):
            others, other = pieces_of(name, *texts)
            assert in_order(pieces) == in_order(others)
            assert whole.parsed() == other.parsed()
        others, other = pieces_of(name, *text)
        assert in_order(pieces) == in_order(others)
        assert whole.parsed() == other.parsed()


@pytest.mark.parametrize("name", EVERY)
def test_pieces_join_to_the_message(name: str) -> None:
    """What a client puts together from the pieces is the message that the ledger keeps; ``read`` agrees but for the ids."""
    for text in replies(name):
        pieces, stream = pieces_of(name, *text)
        content, calls = together(pieces)
        assert stream.content == content
        assert list(stream.calls) == [ToolCall(**call) for call in calls.values()]
        if stream.partial:
            continue  # ``read`` knows no tools, without which a bare object that broke off need not be a call
        again, found = TOOL_FORMATS.get(name).read(text)
        assert content == again
        assert [(call.name, call.arguments) for call in stream.calls] == [(call.name, call.arguments) for call in found]


@st.composite
def cut_replies(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Return a format's name and a reply of odds and ends of it, in pieces."""
    name = draw(st.sampled_from(EVERY))
    call = write(name, ("ls", '{"a": "</tool_call>]"}'))
    shape = TOOL_FORMATS.get(name).shape
    parts = [
        call,
        call[:-1],
        call[1:],
        shape.open,
        shape.close,
        shape.before_name,
        shape.between,
        '{"name"',
        '"',
        "{",
        "}",
        "[",
        ";",
        " ",
        "\n",
        "a",
    ]
    text = "".join(draw(st.lists(st.sampled_from(parts) | st.text(max_size=3), max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return name, [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


@given(cut_replies())
@relaxed
def test_no_split_matters(reply: tuple[str, list[str]]) -> None:
    """However odd a reply is and however it is cut, it gives the same, and the pieces join to the message."""
    name, texts = reply
    pieces, whole = pieces_of(name, "".join(texts))
    others, other = pieces_of(name, *texts)
    assert in_order(pieces) == in_order(others)
    assert whole.parsed() == other.parsed()
    content, calls = together(others)
    assert (other.content, list(other.calls)) == (content, [ToolCall(**call) for call in calls.values()])
    if not other.calls:
        assert "".join(texts) == content


@given(cut_replies())
@relaxed
def test_no_text_is_dropped(reply: tuple[str, list[str]]) -> None:
    """Every letter of a reply is in its content, a name or arguments, or part of a format's markup."""
    name, texts = reply
    parsed = read(name, *texts)
    told = parsed.message.content + "".join(call.name + call.arguments for call in parsed.message.tool_calls)
    markup = "nameargumentsparameterstool_callTOOL_CALLSARGS"
    lost = {letter for letter in "".join(texts) if letter.isalnum() and letter not in markup} - set(told)
    assert set() == lost


def test_a_name_is_told_at_its_last_character() -> None:
    """The name comes with its closing quote, arguments character by character, text as soon as it can't open a call."""
    stream = stream_of("hermes")
    assert ["Let me look."] == stream.push("Let me look.\n<tool")
    assert [] == stream.push('_call>\n{"name": "ls')
    assert [CallDelta(0, "call00000", "ls")] == stream.push('"')
    assert [] == stream.push(', "arguments": ')
    assert [CallDelta(0, arguments="{")] == stream.push("{")
    assert [CallDelta(0, arguments='"path": "x"}')] == stream.push('"path": "x"}')
    assert [] == stream.push("}\n</tool_call>\n")
    assert [[], ["\n\n\nDone"], [" <toolbox"], []] == [stream.push("\n"), stream.push("Done <tool"), stream.push("box\n"), stream.finish()]
    assert ("Let me look.\n\n\nDone <toolbox", []) == (stream.content, stream.problems)


@pytest.mark.parametrize(("name", "marker"), [("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]"), ("mistral_args", "[TOOL_CALLS]")])
def test_no_more_is_held_back_than_may_open_a_call(name: str, marker: str) -> None:
    """Text that begins like a call's opening is held until it is another, and no longer."""
    for length in range(1, len(marker)):
        stream = stream_of(name)
        assert ["abc"] == stream.push(f"abc{marker[:length]}")
        assert [f"{marker[:length]}x"] == stream.push("x")
