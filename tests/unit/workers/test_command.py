from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.seal_jobs import PLACE, seal_job, store_blocks

from agentmem.compression.sealing import load_unit
from agentmem.errors import ConfigError
from agentmem.stores.jobs import JobState, JobStore
from agentmem.stores.state import StateLock
from agentmem_workers.command import run_worker
from agentmem_workers.local import LOWEST_PRIORITY
from agentmem_workers.port import DATABASE, job_key
from agentmem_workers.spec import to_text
from agentmem_workers.worker import Worker

JOB = seal_job("a")


@pytest.fixture
def priorities(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Keep the test's own process where it is, and remember where it was to go."""
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "setpriority", lambda *given: asked.append(given))
    return asked


def test_a_worker_needs_the_state_directory_alone(tmp_path: Path, priorities: list[tuple[int, ...]]) -> None:
    """From there it learns what blocks are like and what to do, beside a server that holds the lock, at the lowest priority."""
    store_blocks(tmp_path, JOB)
    lock, store = StateLock(tmp_path), JobStore(tmp_path / DATABASE, owner=True)
    store.enqueue(PLACE.to_text(), {job_key(JOB): to_text(JOB)})
    ready: list[Worker] = []
    assert 1 == run_worker(tmp_path, threads=torch.get_num_threads(), idle_exit=0.0, on_ready=ready.append)
    assert [JobState.DONE] == [row.state for row in store.jobs()]
    assert load_unit(JOB, store_blocks(tmp_path)).keep.numel() > 0
    assert ready[0].row.device == "cpu" or ready[0].row.device.startswith("cuda (")
    assert [(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)] == priorities
    store.close()
    lock.release()


@pytest.mark.usefixtures("priorities")
def test_a_server_of_another_version_is_refused(tmp_path: Path) -> None:
    """The worker touches neither blocks nor jobs."""
    store = JobStore(tmp_path / DATABASE, owner=True)
    store.enqueue(replace(PLACE, version="99.1").to_text(), {job_key(JOB): to_text(JOB)})
    with pytest.raises(ConfigError, match="the server runs agentmem 99.1"):
        run_worker(tmp_path, threads=torch.get_num_threads(), idle_exit=None, on_ready=lambda _: pytest.fail("not ready"))
    assert ([JobState.QUEUED], []) == ([row.state for row in store.jobs()], store.workers())
    store.close()
