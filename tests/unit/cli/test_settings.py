from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


def test_config_show_tells_where_each_value_comes_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, environment and flag are named as the source of what they set; the file beside is found by itself."""
    (tmp_path / "agentmem.toml").write_text("[log]\nlevel = 'debug'\n")
    monkeypatch.setenv("AGENTMEM_SERVER_PORT", "7171")
    shown = json.loads(run("config", "show", "--json", "--set", "memory.kv_bytes=2GiB").stdout)
    assert {"value": "debug", "source": "agentmem.toml"} == shown["log.level"]
    assert {"value": 7171, "source": "AGENTMEM_SERVER_PORT"} == shown["server.port"]
    assert {"value": 2 << 30, "source": "flag"} == shown["memory.kv_bytes"]
    assert "default" == shown["model.id"]["source"]
    assert "AGENTMEM_SERVER_PORT" in run("config", "show").stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "server.prot=1"], "did you mean 'server.port'"),
        (["--set", "server.port"], "--set 'server.port' is not KEY=VALUE"),
        (["--config", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_wrong_settings_are_one_line(run: Run, args: list[str], message: str) -> None:
    """A misspelt key, a pair without a value and a missing file are named."""
    done = run("config", "show", *args)
    assert 1 == done.exit_code
    assert message in done.stderr
