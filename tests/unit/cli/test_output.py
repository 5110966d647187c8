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


def test_an_error_is_one_line_whatever_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks in a message do not break the line."""
    output.fail(NotFound("no session\n  'x'"))
    assert "error: no session 'x' (NOT_FOUND)\n" == capsys.readouterr().err


def test_a_server_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody who has not started a server is told how to."""
    output.fail(Disconnected("cannot connect"))
    assert "error: cannot connect; is a server running there? `agentmem serve` starts one (DISCONNECTED)\n" == capsys.readouterr().err
