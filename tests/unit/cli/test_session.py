from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_service import FakeSessions

from agentmem.types import Fidelity, Policy
from agentmem.views import ForgetTarget

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def talked(online: Run) -> None:
    """Leave a session "a" of two turns on the server."""
    assert 0 == online("chat", "hello there", "--session", "a", "--system", "Be brief.").exit_code


def test_ls_shows_tables_and_json(online: Run) -> None:
    """Sessions are listed for people and for programs, filtered by labels, cut at a limit."""
    online("session", "fork", "a", "--id", "b")
    assert all(word in online("session", "ls").stdout for word in ("session", "a ", "b ", "never", "made-by=agentmem-chat"))
    assert ["a", "b"] == [one["id"] for one in json.loads(online("session", "ls", "--json").stdout)]
    assert ["a"] == [one["id"] for one in json.loads(online("session", "ls", "--json", "--limit", "1").stdout)]
    assert [] == json.loads(online("session", "ls", "--json", "--label", "x=y").stdout)
    assert "not KEY=VALUE" in online("session", "ls", "--label", "xy").stderr


def test_create_makes_a_session_with_a_policy(online: Run, sessions: FakeSessions) -> None:
    """A session is made before anybody speaks in it; what is not allowed in a policy makes none."""
    made = online("session", "create", "b", "--policy", "fidelity=recall", "--policy", "recall_tokens=64", "--label", "k=v")
    assert (0, "b: 1 turns, 0 tokens\n") == (made.exit_code, made.stdout)
    record = sessions.sessions["default", "b"].record
    assert (Policy(Fidelity.RECALL, recall_tokens=64), {"k": "v"}) == (record.policy, record.labels)
    assert json.loads(online("session", "create", "--json").stdout)["id"].startswith("session-")
    assert (1, 3) == (online("session", "create", "c", "--policy", "keep=0").exit_code, len(sessions.sessions))


def test_forget_names_messages(online: Run, sessions: FakeSessions) -> None:
    """Messages are named by turn and place; what is no place, and what does not exist, is told and forgets nothing."""
    done = online("session", "forget", "a", "1:0", "1:1")
    assert (0, "a: 2 turns, 5 tokens; not all of it exact until the server has been idle\n") == (done.exit_code, done.stdout)
    assert {ForgetTarget(1, 0), ForgetTarget(1, 1)} == sessions.sessions["default", "a"].forgotten
    assert json.loads(online("session", "forget", "a", "1:0", "--json").stdout)["exact"] is False
    for wrong in ("1", "1:", ":1", "x:1", "1:-1", "1:0:2"):
        failed = online("session", "forget", "a", wrong)
        assert (1, f"error: '{wrong}' is not TURN:MESSAGE, two numbers as in 3:1 (INVALID_INPUT)\n") == (failed.exit_code, failed.stderr)
    assert "there is no turn 9" in online("session", "forget", "a", "9:0").stderr
    assert 2 == online("session", "forget", "a").exit_code


def test_fork_and_rollback_print_the_session(online: Run) -> None:
    """Both print what stands now; dropping more than there is fails."""
    assert "b: 1 turns" in online("session", "fork", "a", "--id", "b", "--at-turn", "0").stdout
    assert 1 == json.loads(online("session", "rollback", "a", "--to-turn", "0", "--json").stdout)["n_turns"]
    done = online("session", "rollback", "a", "--to-turn", "9")
    assert (1, "error: to_turn is 9; allowed: 0 to 0 (INVALID_INPUT)\n") == (done.exit_code, done.stderr)


def test_rm_says_what_was_removed(online: Run, sessions: FakeSessions) -> None:
    """Several sessions are removed at once; one that does not exist is an error."""
    online("session", "fork", "a", "--id", "b")
    removed = online("session", "rm", "a").stdout
    assert "a: 2 turns and 2 blocks (4.0 KiB) removed, 1 blocks kept for others" in removed
    assert {"id": "b", "turns": 2, "blocks_erased": 2, "bytes_erased": 4096, "blocks_shared": 1} == json.loads(
        online("session", "rm", "b", "--json").stdout
    )
    assert {} == sessions.sessions
    assert 1 == online("session", "rm", "a").exit_code


def test_export_and_import(online: Run, tmp_path: Path) -> None:
    """A session travels through a file, or through a pipe."""
    file = tmp_path / "a.session"
    assert "10 B written" in online("session", "export", "a", file).stdout
    assert b"agentmem:a" == file.read_bytes()
    assert {"id": "a", "file": str(file), "bytes": 10} == json.loads(online("session", "export", "a", file, "--json").stdout)
    assert [file] == list(tmp_path.glob("a.session*"))
    assert "copy: 1 turns" in online("session", "import", file, "--id", "copy").stdout
    piped = online("session", "export", "a", "-")
    assert "agentmem:a" == piped.stdout
    assert "b" == json.loads(online("session", "import", "-", "--id", "b", "--json", input=b"agentmem:a").stdout)["id"]


def test_files_that_cannot_be_used_are_named(online: Run, tmp_path: Path) -> None:
    """A file that is not there, and a place where none can be written, are errors that name it; no half file stays."""
    done = online("session", "import", tmp_path / "none")
    assert (1, f"error: {tmp_path}/none cannot be read: No such file or directory (INVALID_INPUT)\n") == (done.exit_code, done.stderr)
    assert "cannot be written" in online("session", "export", "a", tmp_path / "no" / "where").stderr
    assert 1 == online("session", "export", "nobody", tmp_path / "x").exit_code
    assert [] == list(tmp_path.glob("x*"))
