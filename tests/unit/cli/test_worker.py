from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentmem_workers
from agentmem.cli import worker
from agentmem.errors import ConfigError
from agentmem.stores.jobs import JobState, JobStore, WorkerRow
from agentmem_workers.port import DATABASE

Run = Callable[..., Any]
PLACE = "a place"
ROW = WorkerRow("abc", 42, "host", "cpu", 1000.0, 2000.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    """Return the queue of the state directory that the settings name: a running, a queued and two parked jobs."""
    store = JobStore(tmp_path / "state" / "jobs.sqlite", owner=True)
    for key in ("bad1", "bad2"):
        store.enqueue(PLACE, {key: ""})
        store.claim(ROW, PLACE, 1e9, 3)
        store.fail(key, ROW.id, "ValueError: x", JobState.PARKED)
    store.enqueue(PLACE, {"now": "", "then": ""})
    store.claim(ROW, PLACE, 1e9, 3)
    yield store
    store.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, dict[str, object]]]:
    """Stand in for the module that loads torch: remember what was asked for, be ready, end."""
    seen: list[tuple[Path, dict[str, object]]] = []

    def run_worker(state_dir: Path, *, on_ready: Callable[[object], None], **options: object) -> None:
        seen.append((state_dir, options))
        if state_dir.name == "broken":
            raise ConfigError("the server runs agentmem 99.1")
        on_ready(types.SimpleNamespace(row=ROW))

    module = types.SimpleNamespace(run_worker=run_worker)
    monkeypatch.setitem(sys.modules, "agentmem_workers.command", module)
    monkeypatch.setattr(agentmem_workers, "command", module, raising=False)
    return seen


def queue_in(state: Path) -> Path:
    state.mkdir()
    (state / "jobs.sqlite").touch()
    return state


def test_a_worker_says_when_it_is_ready(run: Run, started: list[object], tmp_path: Path) -> None:
    """One line with its name, the directory and the device; options reach it."""
    state = queue_in(tmp_path / "s")
    done = run("worker", "--state-dir", state, "--threads", 2, "--idle-exit", 5)
    assert (0, f"worker abc takes jobs from {state} on cpu\n") == (done.exit_code, done.stdout)
    assert [(state, {"threads": 2, "idle_exit": 5.0})] == started


def test_once_is_not_to_wait(run: Run, started: list[object], tmp_path: Path) -> None:
    """--once ends when nothing waits; the directory comes from the settings where it is not given; --json is for programs."""
    queue_in(tmp_path / "state")
    done = run("worker", "--once", "--json")
    assert [(tmp_path / "state", {"threads": 1, "idle_exit": 0.0})] == started
    assert DATABASE == worker.DATABASE
    assert {"id": "abc", "pid": 42, "device": "cpu"}.items() <= json.loads(done.stdout).items()


def test_what_keeps_a_worker_from_starting_is_one_line(run: Run, started: list[object], tmp_path: Path) -> None:
    """Without a server that asks for workers, or with another version, it exits with 1; nothing is made in the directory."""
    done = run("worker", "--state-dir", tmp_path / "none")
    assert (1, False) == (done.exit_code, (tmp_path / "none").exists())
    assert "no server has asked for workers in" in done.stderr
    assert [] == started
    done = run("worker", "--state-dir", queue_in(tmp_path / "broken"))
    assert (1, "error: the server runs agentmem 99.1 (CONFIG_ERROR)\n") == (done.exit_code, done.stderr)


@pytest.mark.usefixtures("store")
def test_ls_shows_workers_and_jobs(run: Run, tmp_path: Path) -> None:
    """For people tables of workers and of parked jobs and the count of each state; for programs the same as JSON."""
    shown = run("worker", "ls").stdout
    assert "jobs: 1 queued, 1 running, 0 done, 2 parked, 0 lost" in shown
    worker, bad = (next(line.split() for line in shown.splitlines() if line.strip().startswith(name)) for name in ("abc", "bad1"))
    assert ["abc", "42", "host", "cpu"] == worker[:4]
    assert "now" == worker[-1]
    assert ["1", "ValueError:", "x"] == [bad[1], *bad[-2:]]
    found = json.loads(run("worker", "--state-dir", tmp_path / "state", "ls", "--json").stdout)
    assert [("abc", 42)] == [(row["id"], row["pid"]) for row in found["workers"]]
    assert {"queued": 1, "running": 1, "done": 0, "parked": 2, "lost": 0} == found["jobs"]
    assert ["bad1", "bad2"] == [job["key"] for job in found["parked"]]


def test_ls_of_an_idle_queue_is_short(run: Run, tmp_path: Path) -> None:
    """Without parked jobs there is no table of them."""
    store = JobStore(tmp_path / "state" / "jobs.sqlite", owner=True)
    store.announce(PLACE)
    store.close()
    shown = run("worker", "ls").stdout
    assert "jobs: 0 queued" in shown
    assert "parked job" not in shown


def test_the_settings_file_says_where_the_state_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTMEM_CONFIG counts for a worker and for looking at workers, as it does for the server."""
    monkeypatch.delenv("AGENTMEM_STORAGE_STATE_DIR")
    (tmp_path / "my.toml").write_text(f'[storage]\nstate_dir = "{tmp_path}/mine"\n')
    monkeypatch.setenv("AGENTMEM_CONFIG", str(tmp_path / "my.toml"))
    for command in (["worker"], ["worker", "ls"]):
        assert f"no server has asked for workers in {tmp_path}/mine" in run(*command).stderr


def test_retry_takes_a_name_its_start_or_all(run: Run, store: JobStore) -> None:
    """Parked jobs are queued again; a name that fits none, or several, is refused."""
    for name, message in (("now", "no parked job is called now"), ("bad", "2 parked jobs are called bad")):
        done = run("worker", "retry", name)
        assert 1 == done.exit_code
        assert message in done.stderr
    assert "1 queued again\n" == run("worker", "retry", "bad1").stdout
    assert {"queued": ["bad2"]} == json.loads(run("worker", "retry", "all", "--json").stdout)
    assert [] == store.jobs(JobState.PARKED)
    assert 1 == run("worker", "retry", "all").exit_code
