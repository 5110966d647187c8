"""What an executor is: where the work of sealing runs. Sessions know this page and no executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from agentmem.compression.recipe import SealJob
from agentmem.compression.sealing import SealInputMissing
from agentmem.config import WorkersSettings
from agentmem.errors import SealFailed
from agentmem.registry import Registry
from agentmem.stores.records import BlockUnavailable
from agentmem_workers.place import Place

T = TypeVar("T")
DATABASE = "jobs.sqlite"  # in the state directory: the queue between a replica and its worker processes


@dataclass(frozen=True, slots=True)
class ParkedJob:
    """A seal job that failed as often as it may. ``block`` in hex, ``error`` of the last attempt, ``since`` seconds since the epoch."""

    name: str
    block: str
    attempts: int
    error: str
    since: float


class Executor(Protocol):
    """Runs closures on threads of this process, and seal jobs wherever it likes.

    ``run`` and ``seal`` are for the event loop, all else for any thread.
    """

    @property
    def num_workers(self) -> int:
        """Worker processes that were heard from in time; 0 for an executor that has none of its own kind. Costs nothing."""
        ...

    async def run(self, job: Callable[[], T]) -> T:
        """Run ``job`` off the event loop and return what it returns or raises."""
        ...

    async def seal(self, job: SealJob) -> None:
        """Return when the job's result is there.

        Equal jobs at once are computed once, and not at all where the result exists. A caller that is cancelled leaves the job running.
        Raises SealFailed for a job that is parked, or whose input is lost, and Draining once the executor is closed.
        """
        ...

    def parked(self) -> list[ParkedJob]:
        """Return the jobs that were given up, the oldest first. May wait for the disk for a second. Raises StorageFailed."""
        ...

    def retry_parked(self) -> int:
        """Start every parked job anew and return how many there were. May wait for the disk for a second. Raises StorageFailed."""
        ...

    def close(self) -> None:
        """Wait for what runs in this process and end its threads; ``seal`` calls that still wait raise Draining."""
        ...


@dataclass(frozen=True, slots=True)
class SealWork:
    """What sealing is to an executor. Both may be called from any thread.

    ``run`` computes and stores a job's result, and does nothing where it exists; ``exists`` says whether it does.
    """

    run: Callable[[SealJob], None]
    exists: Callable[[SealJob], bool]


@dataclass(frozen=True, slots=True)
class Setup:
    """What a replica gives to the executor that it makes. ``database``: the file through which worker processes find their work."""

    work: SealWork
    settings: WorkersSettings
    place: Place
    database: Path


executors: Registry[Callable[[Setup], Executor]] = Registry("executor")


def job_key(job: SealJob) -> str:
    """Return the name of the job's result: equal jobs have equal keys."""
    return f"{job.block.hex()}.{job.name}"


# What a job reads is not there: trying again cannot help, but whoever makes it again may ask again.
LOST = (BlockUnavailable, SealInputMissing)


def parked_job(key: str, attempts: int, error: str, since: float) -> ParkedJob:
    """Return the record of a parked job by its key."""
    block, _, name = key.partition(".")
    return ParkedJob(name, block, attempts, error, since)


def parked_error(key: str, attempts: int, error: str) -> SealFailed:
    """Return what waiting for a parked job raises."""
    return SealFailed(f"seal job {key} is parked after {attempts} attempts; the last error: {error}", metadata={"job": key})


def lost_error(key: str, error: str) -> SealFailed:
    """Return what waiting for a job raises whose input is not there."""
    return SealFailed(f"seal job {key} cannot read its input: {error}", reason="SEAL_INPUT_LOST", metadata={"job": key})
