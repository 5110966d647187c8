from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

import agentmem
from agentmem.config import Settings
from agentmem.errors import ConfigError

Run = Callable[..., Any]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Stand in for the module that loads torch: remember the settings, report progress, be ready, end."""
    seen: list[Settings] = []

    def serve(settings: Settings, on_ready: Callable[[str], None], progress: Callable[[str, float], None]) -> None:
        seen.append(settings)
        if settings.model.id == "broken":
            raise ConfigError("server.port 1 cannot be bound")
        progress("converting", 0.5)
        progress("converting", 1.0)
        on_ready("127.0.0.1:7071")

    module = types.SimpleNamespace(serve=serve)
    monkeypatch.setitem(sys.modules, "agentmem.app", module)
    monkeypatch.setattr(agentmem, "app", module, raising=False)
    return seen


def test_flags_win_over_the_environment(run: Run, served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags override --set, which overrides AGENTMEM_ variables; what no flag names keeps its value."""
    monkeypatch.setenv("AGENTMEM_SERVER_PORT", "1")
    monkeypatch.setenv("AGENTMEM_MODEL_DTYPE", "bf16")
    done = run(
        "serve",
        "--model",
        "m",
        "--port",
        "7071",
        "--state-dir",
        "s",
        "--kv-bytes",
        "2GiB",
        "--set",
        "server.port=5",
        "--set",
        "memory.max_queue=9",
    )
    assert (0, "agentmem serves m on 127.0.0.1:7071\n") == (done.exit_code, done.stdout)
    (settings,) = served
    assert ("m", "bf16", 7071, "s", 2 << 30, 9, "text") == (
        settings.model.id,
        settings.model.dtype,
        settings.server.port,
        str(settings.storage.state_dir),
        settings.memory.kv_bytes,
        settings.memory.max_queue,
        settings.log.format,
    )


def test_json_is_for_programs(run: Run, served: list[Settings]) -> None:
    """With --json the address is one line of JSON on stdout, and the log is JSON too."""
    done = run("serve", "--json")
    assert {"address": "127.0.0.1:7071"} == json.loads(done.stdout)
    assert "json" == served[0].log.format


def test_what_keeps_a_server_from_starting_is_one_line(run: Run, served: list[Settings]) -> None:
    """A wrong setting never reaches the server, an error of the server is told; both exit with 1."""
    done = run("serve", "--host", "0.0.0.0")
    assert (1, []) == (done.exit_code, served)
    assert "unless server.api_keys names a file of tokens" in done.stderr
    done = run("serve", "--model", "broken")
    assert 1 == done.exit_code
    assert "error: server.port 1 cannot be bound (CONFIG_ERROR)" in done.stderr
