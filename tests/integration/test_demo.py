"""The demo is the first thing that a new user runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmem import demo
from agentmem.bench import server


@pytest.fixture(autouse=True)
def _cache(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTMEM_MODEL_CACHE_DIR", str(models))


@pytest.mark.timeout(120)
def test_the_demo_holds_its_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """Shortened, it exits with 0, prints JSON alone on stdout, and its turns show sharing, the fork and what came from disk."""
    sizes = demo.Sizes(style_characters=300, file_characters=300, reply_tokens=4, killed_reply_tokens=32)
    assert 0 == demo.run_demo(threads=1, json_output=True, sizes=sizes)
    value = json.loads(capsys.readouterr().out)
    assert value["passed"]
    assert 9 == len(value["checks"])
    first, second, _, fork, killed, *restored = value["turns"]
    assert (0, 0) == (first["from_memory"], first["from_disk"])
    assert second["from_memory"] > 0
    assert fork["computed"] == fork["input_tokens"] + 1
    assert 0 == killed["tokens_per_second"]
    assert all(turn["from_disk"] + turn["from_memory"] > 0 for turn in (killed, *restored))  # idle steps may bring a session back first
    assert all(turn["same_tokens"] for turn in value["turns"])


def test_a_demo_without_a_server_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the service does not start, the exit code is 1 and the reason is printed."""
    monkeypatch.setattr(server, "COMMAND", (server.COMMAND[0], "-c", "raise SystemExit('it does not start')"))
    assert 1 == demo.run_demo(threads=1)
    assert "it does not start" in capsys.readouterr().out


def test_a_wrong_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is not there fails before anything starts."""
    assert 1 == demo.run_demo(model="./no-such-model")
    assert "no-such-model" in capsys.readouterr().out
