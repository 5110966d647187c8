from __future__ import annotations

from pathlib import Path

import pytest
from support.seal_jobs import seal_job, store_blocks
from support.stores import HEADER

from agentmem.compression.sealing import load_unit
from agentmem.config import WorkersSettings
from agentmem.errors import ConfigError
from agentmem.stores.jobs import JobStore
from agentmem.stores.mapped import ArchiveFormat
from agentmem_workers.local import LocalExecutor
from agentmem_workers.make import make_executor
from agentmem_workers.place import Place
from agentmem_workers.port import DATABASE, Executor, executors
from agentmem_workers.process import ProcessExecutor

JOB = seal_job("a")


def make(state: Path, **settings: object) -> Executor:
    files = store_blocks(state, JOB)
    return make_executor(WorkersSettings(**settings), files, HEADER, ArchiveFormat.NATIVE, state)  # type: ignore[arg-type]


def test_the_known_executors() -> None:
    """Threads and processes are registered; a further kind is one more file."""
    assert {"local", "process"} <= set(executors)


def test_an_unknown_name_is_a_wrong_setting(tmp_path: Path) -> None:
    """The message names the setting and what is known."""
    with pytest.raises(ConfigError, match="workers.executor: unknown executor 'threads'; known: local, process"):
        make(tmp_path, executor="threads")


async def test_the_local_executor_seals_real_blocks(tmp_path: Path) -> None:
    """Its threads compute and store the job's result."""
    executor = make(tmp_path, threads=2, max_attempts=5)
    assert isinstance(executor, LocalExecutor)
    await executor.seal(JOB)
    executor.close()
    assert 2 * HEADER.n_tokens == load_unit(JOB, store_blocks(tmp_path)).codes.shape[2]
    assert not (tmp_path / DATABASE).exists()


async def test_the_process_executor_announces_its_place(tmp_path: Path) -> None:
    """A worker learns the header, the archive's format and the rules of work; a result that exists needs no worker."""
    local = make(tmp_path)
    await local.seal(JOB)
    local.close()
    executor = make(tmp_path, executor="process", lease_seconds=7.0, max_attempts=5)
    assert isinstance(executor, ProcessExecutor)
    await executor.seal(JOB)
    executor.close()
    store = JobStore(tmp_path / DATABASE)
    assert Place(HEADER, ArchiveFormat.NATIVE, 7.0, 5) == Place.from_text(store.place())
    store.close()
