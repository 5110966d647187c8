"""Brings archived blocks back to the device, on its own threads, into rows that the engine has claimed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from agentmem.memory.segment import Segment
from agentmem.memory.upload import Uploader
from agentmem.stores.mapped import MappedBlock
from agentmem.stores.records import BlockUnavailable, LoadedBlock
from agentmem.types import BlockHash, MissReason, Tier

T = TypeVar("T")
log = logging.getLogger(__name__)


class Archive(Protocol):
    """Where blocks are kept when they leave the device. Thread safe."""

    def load(self, block_hash: BlockHash) -> LoadedBlock:
        """Return a verified block. Raises BlockUnavailable with the reason."""

    def contains(self, block_hash: BlockHash) -> bool:
        """Return whether ``load`` is worth trying. Cheap."""

    def map(self, block_hash: BlockHash) -> MappedBlock:
        """Return a verified block where it lies. Raises BlockUnavailable with the reason."""


@dataclass(slots=True)
class Restored:
    """What a restore brought back: tokens by tier, blocks in all, and why it stopped early."""

    num_blocks: int = 0
    tokens: dict[Tier, int] = field(default_factory=dict)
    reason: MissReason = MissReason.NONE
    detail: str = ""


class Restorer:
    """Loads runs of blocks; ``done`` is called on the loader's thread."""

    def __init__(self, archive: Archive, block_tokens: int, threads: int = 2) -> None:
        self.archive = archive
        self.block_tokens = block_tokens
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="restore", initializer=partial(torch.set_num_threads, 1))

    def start(
        self, names: Sequence[BlockHash], segment: Segment, row: int, wanted: Callable[[], bool], done: Callable[[Restored], None]
    ) -> None:
        """Load ``names`` in order into ``segment`` from ``row`` on, stopping at the first that is unavailable.

        ``wanted`` is asked before each block; False stops. The rows must stay claimed until ``done`` was called.
        """
        self._threads.submit(self._load, list(names), segment, row, wanted, done)

    def run(self, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        """Do ``work`` on a loader's thread and hand ``done`` what it returns or raises."""

        def job() -> None:
            try:
                result: T | Exception = work()
            except Exception as error:  # noqa: BLE001 - handed on, whatever it is
                result = error
            done(result)

        self._threads.submit(job)

    def _load(
        self, names: list[BlockHash], segment: Segment, row: int, wanted: Callable[[], bool], done: Callable[[Restored], None]
    ) -> None:
        result = Restored()
        uploader = Uploader(segment.k.device)
        try:
            for index, name in enumerate(names):
                if not wanted():
                    break
                block = self.archive.load(name)
                start = row + index * self.block_tokens
                for rows, loaded in ((segment.k, block.k), (segment.v, block.v)):
                    _fill(uploader, rows[:, :, start : start + self.block_tokens], loaded)
                result.num_blocks += 1
                result.tokens[block.tier] = result.tokens.get(block.tier, 0) + self.block_tokens
        except BlockUnavailable as error:
            result.reason, result.detail = error.reason, error.detail
        except Exception as error:  # whatever broke, the tokens can be computed; the report says what it was
            log.exception("a block could not be restored")
            result.reason, result.detail = MissReason.CORRUPT, f"{type(error).__name__}: {error}"
        uploader.wait()
        done(result)

    def close(self) -> None:
        """Wait for loads under way and end the threads."""
        self._threads.shutdown(wait=True)


def _fill(uploader: Uploader, rows: Tensor, loaded: Tensor) -> None:
    """Copy a block into its rows; raises BlockUnavailable where torch would broadcast or convert instead."""
    if rows.shape != loaded.shape or rows.dtype != loaded.dtype:
        detail = f"it holds {loaded.dtype} {tuple(loaded.shape)}, expected {rows.dtype} {tuple(rows.shape)}"
        raise BlockUnavailable(MissReason.CORRUPT, detail)
    uploader.copy(rows, loaded)
