from __future__ import annotations

from pathlib import Path

import pytest

from agentmem.bench.scripts.player import Player, max_tokens, replaced
from agentmem.errors import InvalidInput


@pytest.fixture
def player(tmp_path: Path) -> Player:
    made = Player(tmp_path.resolve())
    made.give("a.py", "x = 1\n\n\ndef f():\n    return x\n")
    return made


def test_a_result_is_what_the_next_reply_answers(player: Player) -> None:
    """A call makes one turn, its result is the new message of the turn after it."""
    player.user("Read a.py.")
    result = player.call("read_file", path="a.py", start=1, end=1)
    player.say("It begins with x.")
    call, said = player.turns
    assert "a.py, lines 1 to 1 of 5:\nx = 1" == result
    assert {"id": "call00000", "name": "read_file", "arguments": {"path": "a.py", "start": 1, "end": 1}} == call["reply"]["call"]
    assert [{"role": "tool", "name": "read_file", "tool_call_id": "call00000", "content": result}] == said["messages"]


def test_a_reply_to_nothing_is_refused(player: Player) -> None:
    """An agent that speaks twice in a row is a mistake of the script."""
    with pytest.raises(InvalidInput, match="answers nothing"):
        player.say("Hello?")


def test_quotes_come_from_the_file_as_it_is(player: Player) -> None:
    """A function, lines and the place of a text are looked up after the last change."""
    player.plant("a.py", "return x", "return -x")
    assert "def f():\n    return -x" == player.source("a.py", "f")
    assert ("\n\ndef f():", 4) == (player.lines("a.py", 2, 4), player.line("def f", "a.py"))


def test_a_script_that_no_longer_fits_its_file_fails(player: Player) -> None:
    """A bug that cannot be planted, or a change of a text that is not there, is an error."""
    with pytest.raises(InvalidInput, match="0 times"):
        player.plant("a.py", "return y", "return z")
    with pytest.raises(InvalidInput, match="'y' is not in"):
        replaced("x", "y", "z")


@pytest.mark.parametrize(("reply", "tokens"), [("Done.", 16), ("word " * 40, 64), ("word " * 1000, 400)])
def test_the_limit_of_a_reply_leaves_some_room(reply: str, tokens: int) -> None:
    """It is a multiple of 16, between 16 and 400."""
    assert tokens == max_tokens(reply)
