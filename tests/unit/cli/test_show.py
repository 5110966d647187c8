from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def talked(online: Run) -> None:
    """Leave a session "a" of two turns on the server."""
    assert 0 == online("chat", "hello there", "--session", "a", "--system", "Be brief.").exit_code


def row(shown: str, turn: int, *, table: int = 0) -> list[str]:
    """Return the words of a turn's line in one of the tables."""
    return [line for line in shown.splitlines() if line.split()[:1] == [str(turn)]][table].split()


def test_show_tells_the_turns(online: Run) -> None:
    """A session is shown with its turns and the last message of each, shortened; a fork names its parent."""
    online("chat", "word " * 30, "--session", "a")
    online("session", "fork", "a", "--id", "b", "--at-turn", "1")
    shown = online("session", "show", "b").stdout
    assert all(text in shown for text in ("b: 2 turns", "durable", "forked from a at turn 1", "you said: hello there", "stop"))
    assert "..." in online("session", "show", "a").stdout
    whole = json.loads(online("session", "show", "a", "--json").stdout)
    assert ("a", 3, "you said: hello there ") == (whole["id"], whole["n_turns"], whole["turns"][1]["turn"]["messages"][-1]["content"])


def test_show_tells_the_tiers(online: Run) -> None:
    """Each turn has its tokens, blocks, bytes on device, host and disk, the share that stays and how far sealing has come."""
    shown = online("session", "show", "a").stdout
    assert "1 5 0 of 0 1.0 KiB 2.0 KiB 0 B 25% queued 0 0 stop you said: hello there" == " ".join(row(shown, 1))
    assert "fidelity auto, exact now, durable" in shown
    assert "mean KL" not in shown


def test_show_tells_what_was_forgotten(online: Run) -> None:
    """Forgotten messages are counted, and that the aftermath is not exact yet is said."""
    online("session", "forget", "a", "1:0")
    shown = online("session", "show", "a").stdout
    assert "not all exact yet" in shown
    assert "(1 forgotten) you said" in shown


def test_show_tells_how_close_replies_came(online: Run) -> None:
    """A turn with a fidelity report has a line in a second table; budgets that grew say so."""
    online("chat", "more", "--session", "a", "--fidelity", "recall")
    shown = online("session", "show", "a").stdout
    expected = "2 recall 50% 50.0% of 3 0.2500 0.7500 4 10%, then 20% 256, then 512 full cache"
    assert expected == " ".join(row(shown, 2, table=1))
    report = json.loads(online("session", "show", "a", "--json").stdout)["turns"][2]["turn"]["report"]
    assert (0.5, 4, 512) == (report["top1_agreement"], report["worst_position"], report["next_recall_tokens"])


def test_show_plots_attention(online: Run) -> None:
    """With --attention a bar for each turn, the longest where most goes; without, nothing is measured."""
    online("chat", "more", "--session", "a")
    shown = online("session", "show", "a", "--attention").stdout
    assert [["0", "0.0%"], ["1", "33.3%", "#" * 10], ["2", "66.7%", "#" * 20]] == [row(shown, turn, table=1) for turn in range(3)]
    turns = json.loads(online("session", "show", "a", "--attention", "--json").stdout)["turns"]
    assert [0, 1 / 3, 2 / 3] == [turn["attention"] for turn in turns]
    assert json.loads(online("session", "show", "a", "--json").stdout)["turns"][1]["attention"] is None


def test_a_session_that_is_not_there(online: Run) -> None:
    """An unknown session is one line and exit code 1."""
    done = online("session", "show", "nobody", "--attention")
    assert (1, "error: no session 'nobody' (NOT_FOUND)\n") == (done.exit_code, done.stderr)
