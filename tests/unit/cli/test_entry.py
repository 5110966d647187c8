from __future__ import annotations

import subprocess
import sys

import pytest

from agentmem.cli import entry


def test_the_client_alone_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the server extra the command names what it needs and how to get it, in one line."""
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit, match=r"^error: .* needs typer and rich.* pip install 'agentmem-kv\[server\]'$"):
        entry.run()


def test_the_command_line_runs() -> None:
    """With the extra the entry point is the command line itself."""
    code = "import sys; sys.argv = ['agentmem', '--version']; from agentmem.cli.entry import run; run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("0.3.0")
