from __future__ import annotations

import pytest

from agentmem.cli import output
from agentmem.errors import Disconnected, NotFound


@pytest.mark.parametrize(
    ("then", "text"),
    [(1000, "0 s ago"), (970, "30 s ago"), (1000 - 7200, "2 h ago"), (1000 + 300, "in 5 min"), (1000 - 86400 * 3, "3 d ago")],
)
def test_ago_picks_the_largest_unit(then: float, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments are told by their distance, past or future."""
    monkeypatch.setattr(output.time, "time", lambda: 1000.0)
    assert text == output.ago(then)


@pytest.mark.parametrize(("share", "whole", "length"), [(0, 1, 0), (0.5, 1, 10), (1, 1, 20), (0.001, 1, 1), (0, 0, 0), (0.2, 0.2, 20)])
def test_bars(share: float, whole: float, length: int) -> None:
    """A bar is as long as its share; little is never shown as nothing, and nothing of nothing is no bar."""
    assert "#" * length == output.bar(share, whole)


@pytest.mark.parametrize(("text", "shown"), [("a\n b", "a b"), ("12345", "12345"), ("123456", "12345..."), ("a\x1b[2J", "a\ufffd[2J")])
def test_snippets(text: str, shown: str) -> None:
    """Text is shown as one line, shortened, without what a terminal would obey."""
    assert shown == output.snippet(text, 5)


def test_an_error_is_one_line_whatever_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks in a message do not break the line."""
    output.fail(NotFound("no session\n  'x'"))
    assert "error: no session 'x' (NOT_FOUND)\n" == capsys.readouterr().err


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody who has not started a server is told how to."""
    output.fail(Disconnected("cannot connect"))
    assert "error: cannot connect; is a server running there? `agentmem serve` starts one (DISCONNECTED)\n" == capsys.readouterr().err
