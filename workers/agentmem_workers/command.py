"""What ``agentmem worker`` does, from opening the state directory to leaving it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from agentmem import faults
from agentmem.compression.sealing import run_seal_job
from agentmem.stores.jobs import JobStore
from agentmem.stores.seal_files import SealFiles
from agentmem_workers.local import LOWEST_PRIORITY
from agentmem_workers.place import Place
from agentmem_workers.port import DATABASE
from agentmem_workers.worker import Worker, stop_signals


def run_worker(state_dir: Path, *, threads: int, idle_exit: float | None, on_ready: Callable[[Worker], None]) -> int:
    """Do the jobs of the server of ``state_dir`` until SIGTERM or SIGINT, or until none came for ``idle_exit`` seconds.

    Returns how many jobs were tried. The server may come and go meanwhile: its lock is not taken. Main thread only. Raises ConfigError
    when no server has asked for workers, or one of another version or with another model than when this worker began.
    """
    faults.arm_from_env()
    torch.set_num_threads(threads)
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)  # a replica beside it goes first; alone it has the machine all the same
    with closing(JobStore(state_dir / DATABASE)) as store, stop_signals() as stopped:
        place = Place.from_text(store.place())
        files = SealFiles(state_dir / "blocks", place.header, place.archive_format)
        worker = Worker(store, place, partial(run_seal_job, files=files), _device())
        on_ready(worker)
        return worker.work(stopped, idle_exit)


def _device() -> str:
    """Say where jobs compute."""
    return f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
