from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.engine.stopping import ReplyText, StopScanner

STOPS = st.lists(st.text("ab😀", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("abc😀", max_size=3), max_size=10)


def scan(stop: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stop)
    shown = [scanner.push(piece) for piece in pieces]
    return [*shown, scanner.finish()], scanner.stopped


def expected(stop: list[str], text: str) -> tuple[str, bool]:
    """Return the text before the stop string that is complete first, looked for character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(each) for each in stop if text[:end].endswith(each)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(STOPS, PIECES)
@settings(deadline=None)
def test_the_cut_does_not_depend_on_the_pieces(stop: list[str], pieces: list[str]) -> None:
    """However the text is split, it is cut before the stop string that is complete first."""
    shown, stopped = scan(stop, pieces)
    assert expected(stop, "".join(pieces)) == ("".join(shown), stopped)


@given(STOPS, PIECES)
@settings(deadline=None)
def test_no_text_is_taken_back(stop: list[str], pieces: list[str]) -> None:
    """What was shown at any time is the beginning of what is shown in the end, and as much as could be."""
    scanner = StopScanner(stop)
    text = shown = ""
    for piece in pieces:
        text += piece
        shown += scanner.push(piece)
        final, stopped = expected(stop, text)
        held = next(
            len(text) - n for n in range(len(text) + 1) if n == len(text) or any(s.startswith(text[n:]) and s != text[n:] for s in stop)
        )
        assert shown == (final if stopped else text[: len(text) - held])


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", "", ""]),
        (["END"], ["a E", "N", "d b"], ["a ", "", "ENd b", ""]),
        (["END"], ["a E", "N"], ["a ", "", "EN"]),
        (["bc", "abcd"], ["ab", "cd"], ["", "a", ""]),
        (["bc", "abc"], ["xabc"], ["x", ""]),
        (["b", "a"], ["cab"], ["c", ""]),
        (["🦄!"], ["a🦄", "!b"], ["a", "", ""]),
        ([], ["a", "b"], ["a", "b", ""]),
    ],
)
def test_examples(stop: list[str], pieces: list[str], shown: list[str]) -> None:
    """Beginnings of stop strings are held back, let go when they turn out to be something else, and dropped with the stop string."""
    assert shown == scan(stop, pieces)[0]


def test_nothing_follows_a_stop_string() -> None:
    """After a stop string there is no more text."""
    scanner = StopScanner(["x"])
    assert ["a", "", ""] == [scanner.push("axb"), scanner.push("c"), scanner.finish()]
    assert scanner.stopped


class Bytes:
    """Ids are bytes; characters appear with their last byte."""

    def __init__(self) -> None:
        self.held = b""

    def push(self, token_id: int) -> str:
        self.held += bytes([token_id])
        text = self.held.decode(errors="ignore")
        if text:
            self.held = b""
        return text

    def finish(self) -> str:
        return self.held.decode(errors="replace")


def test_stop_strings_split_over_tokens_and_bytes_are_found() -> None:
    """A stop string of several tokens, with characters that are several tokens themselves, is found and cut."""
    reply = ReplyText(Bytes(), ["é🦄"])
    assert ["a", "b", *[""] * 6] == [reply.push(byte) for byte in "abé🦄".encode()]
    assert reply.stopped
    assert "" == reply.push(ord("c")) + reply.finish()


def test_what_was_held_back_comes_at_the_end() -> None:
    """A reply that ends elsewhere shows the beginning of a stop string and of a character that never came."""
    reply = ReplyText(Bytes(), ["bcd"])
    assert ["a", "", "", ""] == [reply.push(byte) for byte in b"abc\xf0"]
    assert "bc\N{REPLACEMENT CHARACTER}" == reply.finish()
    assert not reply.stopped


def test_a_stop_string_can_appear_in_what_was_held_back() -> None:
    """Text that only the end of the reply makes certain is searched too."""
    stream = SimpleNamespace(push=lambda _: "", finish=lambda: "a!b")
    reply = ReplyText(stream, ["!"])
    assert ("", "a", True) == (reply.push(0), reply.finish(), reply.stopped)


def test_hidden_tokens_have_no_text() -> None:
    """Stop tokens end a reply without appearing in it."""
    reply = ReplyText(Bytes(), hidden_token_ids=[98])
    assert ["a", "", "c"] == [reply.push(byte) for byte in b"abc"]
