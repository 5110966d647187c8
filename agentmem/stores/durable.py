"""Files that are whole or not there: written beside their place, synced, renamed; and mapped for reading."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from agentmem import faults

TEMP_SUFFIX = ".tmp"


def write_temp(target: Path, data: bytes, temps: list[tuple[Path, Path]]) -> None:
    """Write ``data`` to a synced temporary file beside ``target``, adding (temporary, target) to ``temps`` as soon as it exists.

    Raises OSError; removing what ``temps`` holds is the caller's. Any number of threads and processes may write to one target.
    """
    # mkstemp's mode 0600 stays: K and V tell what was said.
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name[:16], suffix=TEMP_SUFFIX)
    temps.append((Path(name), target))
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        faults.point("blocks.write")
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(descriptor)
    faults.point("blocks.after_temp_write")


def make_directories(directories: Iterable[Path]) -> None:
    """Make the directories that are missing, durable in their parents, which exist."""
    new = {directory for directory in directories if not directory.exists()}
    for directory in new:
        directory.mkdir(exist_ok=True)
    for parent in {directory.parent for directory in new}:
        sync_directory(parent)


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_file(descriptor: int, size: int) -> Tensor:
    """Map an open file of ``size`` bytes, privately, and return it as uint8 ``[size]``. The mapping outlives the descriptor and the name.

    Python's ``mmap`` keeps a descriptor for each mapping, and thousands of blocks would use up a process's share. Raises OSError.
    """
    try:
        return torch.from_file(f"/proc/self/fd/{descriptor}", shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:  # torch's one error for all that open, fstat and mmap refuse
        raise OSError(f"cannot be mapped: {error}") from error
