from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def talked(online: Run) -> None:
    """Leave a session "a" that knows a code on the server."""
    assert 0 == online("chat", "the code is\n[red]7\x1b[2J", "--session", "a").exit_code


def test_spans_are_shown_by_weight(online: Run) -> None:
    """Each span has its weight, a bar, its turn, its tokens and its text on one line; a terminal cannot be told anything by it."""
    done = online("recall", "a", "the code")
    first, second = [line.split() for line in done.stdout.splitlines() if "%" in line]
    assert ["50.0%", "#" * 20, "1", "5", "to", "9", "the", "code", "is", "[red]7\ufffd[2J"] == first
    assert (0, ["33.3%", "#" * 13]) == (done.exit_code, second[:2])
    assert "\x1b" not in done.stdout


def test_json_and_the_number_of_spans(online: Run) -> None:
    """With --json the spans are one list; -k bounds it."""
    spans = json.loads(online("recall", "a", "the code", "-k", "1", "--json").stdout)
    assert [{"turn_index": 1, "first_token": 5, "n_tokens": 5, "text": "the code is\n[red]7\x1b[2J", "weight": 0.5}] == spans
    assert [] == json.loads(online("recall", "a", "nothing like it", "--json").stdout)
    assert 0 == online("recall", "a", "nothing like it").exit_code


def test_what_cannot_be_recalled(online: Run) -> None:
    """A number of spans that is not allowed is wrong usage; an empty text and an unknown session are errors."""
    assert [2, 2] == [online("recall", "a", "x", "-k", k).exit_code for k in ("0", "1001")]
    done = online("recall", "a", "")
    assert (1, "error: text is ''; allowed: a text that is not empty (INVALID_INPUT)\n") == (done.exit_code, done.stderr)
    assert (1, "error: no session 'b' (NOT_FOUND)\n") == ((done := online("recall", "b", "x")).exit_code, done.stderr)
