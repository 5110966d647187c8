"""Makes the executor that the settings name. What is imported here has registered itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from agentmem.compression.sealing import run_seal_job
from agentmem.config import WorkersSettings
from agentmem.errors import ConfigError, InvalidInput
from agentmem.stores.mapped import ArchiveFormat
from agentmem.stores.records import BlockHeader
from agentmem.stores.seal_files import SealFiles
from agentmem_workers import local, process
from agentmem_workers.place import Place
from agentmem_workers.port import DATABASE, Executor, SealWork, Setup, executors

__all__ = ["local", "make_executor", "process"]


def make_executor(
    settings: WorkersSettings, files: SealFiles, header: BlockHeader, archive_format: ArchiveFormat, state_dir: Path
) -> Executor:
    """Return the executor ``settings.executor``, with threads running. ``files`` are the replica's own.

    Raises ConfigError for an unknown name, with those that are known.
    """
    work = SealWork(partial(run_seal_job, files=files), lambda job: files.exists(job.block, job.name))
    place = Place(header, archive_format, settings.lease_seconds, settings.max_attempts)
    try:
        make = executors.get(settings.executor)
    except InvalidInput as error:
        raise ConfigError(f"workers.executor: {error.message}") from error
    return make(Setup(work, settings, place, state_dir / DATABASE))
