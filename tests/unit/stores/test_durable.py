"""Durable files and mappings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from agentmem.stores.durable import make_directories, map_file, write_temp


def test_mapping_outlives_descriptor_and_name(tmp_path: Path) -> None:
    """A mapped file is readable after it was closed and deleted, needs no descriptor, and what is written to it stays private."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    with path.open("rb") as file:
        before = len(list(Path("/proc/self/fd").iterdir()))
        mapped, other = map_file(file.fileno(), 100), map_file(file.fileno(), 100)
        assert before == len(list(Path("/proc/self/fd").iterdir()))
    mapped[0] = 99
    assert (0, bytes(range(100))) == (other[0], path.read_bytes())
    path.unlink()
    assert torch.equal(torch.arange(1, 100, dtype=torch.uint8), mapped[1:])


@pytest.mark.parametrize("size", [0, 11])
def test_mapping_that_the_system_refuses_is_an_os_error(tmp_path: Path, size: int) -> None:
    """More bytes than the file has, or a descriptor that is none, are OSError."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        descriptor = file.fileno() if size else 9999
        with pytest.raises(OSError, match="cannot be mapped"):
            map_file(descriptor, max(size, 1))


def test_temporary_file_is_known_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns of the temporary file before anything can fail, so that it can remove it."""
    temps: list[tuple[Path, Path]] = []

    def refuse(_: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no"):
        write_temp(tmp_path / "target", b"data", temps)
    assert [(tmp_path / "target", b"data")] == [(target, temp.read_bytes()) for temp, target in temps]


def test_directories_are_made_once(tmp_path: Path) -> None:
    """Directories that are there, or that another process makes at the same time, are no error."""
    for _ in range(2):
        make_directories([tmp_path / "a", tmp_path / "a", tmp_path / "b"])
    assert [True, True] == [(tmp_path / name).is_dir() for name in "ab"]
