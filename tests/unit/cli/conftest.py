"""A server on a thread, and a runner that talks to it with a state directory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_service import FakeSessions, serving_on_a_thread
from typer.testing import CliRunner

from agentmem.cli.main import app

Run = Callable[..., Any]


@pytest.fixture
def sessions() -> FakeSessions:
    return FakeSessions()


@pytest.fixture
def address(sessions: FakeSessions) -> Iterator[str]:
    with serving_on_a_thread(sessions) as address:
        yield address


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line away from the user's files; AGENTMEM_TARGET says where the server is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENTMEM_STORAGE_STATE_DIR", str(tmp_path / "state"))
    return lambda *args, **options: CliRunner().invoke(app, [str(arg) for arg in args], **options)


@pytest.fixture
def online(run: Run, address: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("AGENTMEM_TARGET", address)
    return run
