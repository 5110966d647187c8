from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_service import FakeSessions

from agentmem.cli.chat import LastSession, finish, reply
from agentmem.events import FinishEvent
from agentmem.types import Fidelity, FinishReason, Policy, ReuseReport, SamplingParams, Usage

Run = Callable[..., Any]


def test_one_question_and_its_cost(online: Run) -> None:
    """With a message the reply is printed on stdout and its cost on stderr."""
    done = online("chat", "hello there")
    assert (0, "you said: hello there \n") == (done.exit_code, done.stdout)
    assert "context 10: 7 from memory, 0 from disk, 3 computed" in done.stderr


def test_the_session_goes_on_at_the_next_run(online: Run, sessions: FakeSessions) -> None:
    """A second run resumes the session of the first; --new begins another; a session that is gone is replaced."""
    online("chat", "one")
    assert "resuming session-" in online("chat", "two").stderr
    assert 1 == len(sessions.sessions)
    online("chat", "three", "--new")
    assert 2 == len(sessions.sessions)
    sessions.sessions.clear()
    done = online("chat", "four")
    assert (0, 1) == (done.exit_code, len(sessions.sessions))
    assert "is gone; a new one begins" in done.stderr


def test_a_named_session_is_created_or_resumed(online: Run, sessions: FakeSessions) -> None:
    """--session picks the session whatever the last one was, and becomes the last one."""
    online("chat", "one", "--session", "mine", "--system", "Be brief.")
    online("chat", "two", "--session", "mine")
    online("chat", "three")
    ((_, name),) = sessions.sessions
    assert ("mine", 4) == (name, len(sessions.sessions["default", "mine"].turns))


def test_a_reply_may_have_a_fidelity_of_its_own(online: Run, sessions: FakeSessions) -> None:
    """--fidelity is for the replies of this run, and the cost tells what they attended to; --policy is for a new session."""
    done = online("chat", "hello", "--session", "a", "--fidelity", "recall", "--policy", "keep=0.5", "--policy", "reencode=false")
    assert "3 computed; fidelity recall, attended to 50%" in done.stderr
    assert Policy(keep=0.5, reencode=False) == sessions.sessions["default", "a"].record.policy
    assert "computed; fidelity exact]" in online("chat", "hello", "--session", "a").stderr
    assert [Fidelity.RECALL, None] == sessions.fidelities
    assert 2 == online("chat", "hello", "--fidelity", "vague").exit_code


def test_a_conversation_reads_lines_until_they_end(online: Run, sessions: FakeSessions) -> None:
    """Every line that is piped in gets a reply; with --json each reply is one object."""
    done = online("chat", "--json", "--temperature", "0.5", "--seed", "3", input="one\n\ntwo\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["you said: one ", "you said: two "] == [answer["text"] for answer in answers]
    assert {"stop"} == {answer["finish_reason"] for answer in answers}
    assert SamplingParams(temperature=0.5, seed=3) == sessions.params[0]


def test_wrong_sampling_is_told_before_anything_is_made(online: Run, sessions: FakeSessions) -> None:
    """A temperature that is not allowed is one line, and no session is created for it."""
    done = online("chat", "hello", "--temperature", "-1")
    assert (1, {}) == (done.exit_code, sessions.sessions)
    assert "temperature is -1.0; allowed" in done.stderr


def test_ctrl_c_stops_a_reply_only(capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt while a reply streams ends the reply, not the conversation."""

    class Interrupted:
        id = "a"

        def generate(self, content: str, sampling: SamplingParams, *, fidelity: Fidelity | None) -> object:
            raise KeyboardInterrupt

    reply(Interrupted(), "hello", SamplingParams(), None, json_output=False)  # type: ignore[arg-type]
    assert "\n(stopped)\n" == capsys.readouterr().err


def test_a_reply_that_is_not_durable_yet_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The line about the cost tells when the turn could not be written, and leaves out the speed of a single token."""
    event = FinishEvent(
        1, FinishReason.LENGTH, None, "x", Usage(output_tokens=1), ReuseReport(disk=64), Fidelity.EXACT, durable=False, detail="disk full"
    )
    finish("a", event, json_output=False)
    said = capsys.readouterr().err
    assert "64 from disk, 0 computed; fidelity exact; not durable yet: disk full" in said
    assert "tokens/s" not in said


def test_a_damaged_memory_of_sessions_is_begun_anew(tmp_path: Path) -> None:
    """What cannot be read is no session; each server has its own."""
    path = tmp_path / "deep" / "chat.json"
    here, there = LastSession(path, "here"), LastSession(path, "there")
    assert here.read() is None
    here.write("a")
    there.write("b")
    assert ("a", "b") == (here.read(), there.read())
    path.write_text("{")
    assert here.read() is None
