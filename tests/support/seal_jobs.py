"""Seal jobs that need no blocks, and what runs them while a test watches."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support.stores import HEADER, digest, stored

from agentmem.compression.recipe import Recipe, SealJob
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.mapped import ArchiveFormat
from agentmem.stores.records import BlockFile
from agentmem.stores.seal_files import SealFiles
from agentmem_workers.place import Place
from agentmem_workers.port import SealWork

PAUSE_SECONDS = 0.002
PLACE = Place(HEADER, ArchiveFormat.NATIVE, lease_seconds=30.0, max_attempts=3)


def seal_job(name: str, **recipe: object) -> SealJob:
    """Return a job of two blocks that belong to ``name``."""
    return SealJob((digest(f"{name} 0"), digest(name)), 0, 4, Recipe(**recipe))  # type: ignore[arg-type]


def store_blocks(state: Path, *jobs: SealJob) -> SealFiles:
    """Write the blocks of ``jobs`` into ``state`` as an archive would, and return the files to seal them with."""
    files = BlockFiles(state / "blocks", quarantine=state / "quarantine")
    for job in jobs:
        blocks = [stored(block.hex()) for block in job.blocks]
        places = [replace(HEADER, first_token=job.start + index * HEADER.n_tokens) for index in range(len(blocks))]
        pairs = zip(job.blocks, places, blocks, strict=True)
        files.write_all([BlockFile(digest, place, block.k, block.v) for digest, place, block in pairs])
    return SealFiles(files.root, HEADER, ArchiveFormat.NATIVE, files=files)


class Work:
    """Stands in for the computation: counts runs, remembers results, fails or waits where told to. Thread safe."""

    def __init__(self) -> None:
        self.runs: Counter[SealJob] = Counter()
        self.results: set[SealJob] = set()
        self.failures: dict[SealJob, Callable[[int], Exception | None]] = {}  # by the number of the run, from 1 on
        self.gate = threading.Event()  # closed: jobs wait in it
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()

    def run(self, job: SealJob) -> None:
        if job in self.results:
            return
        with self._lock:
            self.runs[job] += 1
            error = self.failures.get(job, lambda _: None)(self.runs[job])
        self.entered.release()
        assert self.gate.wait(10)
        if error is not None:
            raise error
        self.results.add(job)

    @property
    def port(self) -> SealWork:
        return SealWork(self.run, lambda job: job in self.results)


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as ``condition`` holds; the test's timeout is the limit."""
    while not condition():  # noqa: ASYNC110 - threads and processes have no event for it
        await asyncio.sleep(PAUSE_SECONDS)
