from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from agentmem.bench import server
from agentmem.bench.server import ServerProcess
from agentmem.errors import Disconnected, InternalError

# Prints what a server prints, logs its environment, then waits to be ended.
FAKE = """
import json, os, sys, time
print("a line of somebody else", flush=True)
print(json.dumps({"address": "127.0.0.1:" + (os.environ["AGENTMEM_SERVER_PORT"].replace("0", "7070", 1))}), flush=True)
json.dump({k: v for k, v in os.environ.items() if k.startswith("AGENTMEM_")} | {"cwd": os.getcwd()}, sys.stderr)
sys.stderr.write("\\n"); sys.stderr.flush()
time.sleep(60)
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ServerProcess:
    monkeypatch.setattr(server, "COMMAND", (sys.executable, "-c", FAKE))
    return ServerProcess({"model.id": "m"}, tmp_path / "state")


def alive(process: ServerProcess) -> int | None:
    return process._process.pid if process._process else None


async def test_a_server_starts_on_a_port_and_keeps_it(fake: ServerProcess) -> None:
    """The first start takes any port, the next one the same again; leaving ends the process."""
    async with fake:
        pid = alive(fake)
        assert "127.0.0.1:7070" == fake.address
        await fake.kill()
        assert alive(fake) is None
        fake.address = "127.0.0.1:8181"
        await fake.start()
        assert "127.0.0.1:8181" == fake.address
        assert alive(fake) != pid
        last = alive(fake)
    assert alive(fake) is None
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


async def test_only_the_given_settings_reach_the_server(fake: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own AGENTMEM_ variables and settings file stay outside."""
    monkeypatch.setenv("AGENTMEM_SERVER_API_KEYS", "keys")
    async with fake:
        while not fake.log_file.read_text().endswith("\n"):
            assert alive(fake)
    seen = json.loads(fake.log_file.read_text())
    state = str(fake.state_dir)
    assert {
        "AGENTMEM_MODEL_ID": "m",
        "AGENTMEM_SERVER_HOST": "127.0.0.1",
        "AGENTMEM_SERVER_PORT": "0",
        "AGENTMEM_STORAGE_STATE_DIR": state,
        "cwd": state,
    } == seen


async def test_a_server_that_is_killed_at_once_starts_again(fake: ServerProcess) -> None:
    """kill_now only sends the signal; start cleans up behind it. Without a process both do nothing."""
    fake.kill_now()
    await fake.kill()
    async with fake:
        pid = alive(fake)
        fake.kill_now()
        await fake.start()
        assert alive(fake) != pid


async def test_stop_lets_the_server_end_by_itself(fake: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM comes first; a server that ignores it is killed after its time."""
    async with fake:
        await fake.stop()
        assert alive(fake) is None
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAKE
    monkeypatch.setattr(server, "COMMAND", (sys.executable, "-c", stubborn))
    monkeypatch.setattr(server, "STOP_SECONDS", 0.2)
    async with fake:
        await fake.stop()
        assert alive(fake) is None


async def test_a_server_that_does_not_start_shows_its_log(fake: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error holds the last lines of the log, and nothing is left running."""
    monkeypatch.setattr(server, "COMMAND", (sys.executable, "-c", "raise SystemExit('no model here')"))
    with pytest.raises(Disconnected, match="no model here"):
        await fake.start()
    assert alive(fake) is None


async def test_a_server_that_is_never_ready_is_given_up(fake: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting has a time limit."""
    monkeypatch.setattr(server, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(server, "START_SECONDS", 0.2)
    with pytest.raises(Disconnected, match="did not start"):
        await fake.start()
    assert alive(fake) is None


async def test_a_failure_takes_the_log_with_it(fake: ServerProcess) -> None:
    """An error of the service carries the end of the server's log, which goes with its directory."""
    with pytest.raises(InternalError) as caught:
        async with fake:
            raise InternalError("broken")
    assert any("log ends with" in note for note in caught.value.__notes__)
