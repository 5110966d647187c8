from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentmem.memory import compiled
from agentmem.memory.compiled import kept

ONES = np.ones(3, np.float32)


def scaled_by(factor: int) -> Any:
    """Return a kernel that was made for ``factor``, as if by a process of its own."""

    @kept(factor)
    def scale(x: Any) -> Any:
        return x * factor

    return scale


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where kernels are kept."""
    monkeypatch.setattr(compiled, "DIRECTORY", tmp_path / "kernels")
    return tmp_path / "kernels"


def was_read(kernel: Any) -> bool:
    """Return whether the last types a kernel was called with were on disk. numba counts what its cache answers."""
    return bool(sum(kernel.stats.cache_hits.values()))


def test_the_second_one_is_read_and_does_the_same() -> None:
    """A kernel of the same name, parameters and types is read; others are compiled."""
    first, second, other = scaled_by(2), scaled_by(2), scaled_by(3)
    assert [2, 2, 2] == first(ONES).tolist() == second(ONES).tolist()
    assert [3, 3, 3] == other(ONES).tolist()
    assert [False, True, False] == [was_read(kernel) for kernel in (first, second, other)]
    assert 4.0 == second(2.0)


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_file_is_compiled_again(directory: Path, damage: bytes | None) -> None:
    """A power cut may leave anything; nothing that does not match its digest is run."""
    scaled_by(2)(ONES)
    (path,) = directory.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    again, then = scaled_by(2), scaled_by(2)
    assert [2, 2, 2] == again(ONES).tolist() == then(ONES).tolist()
    assert [False, True] == [was_read(again), was_read(then)]


def test_a_directory_that_cannot_be_made(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel works, and the log says why the next process will compile it again."""
    directory.write_text("a file")
    assert [2, 2, 2] == scaled_by(2)(ONES).tolist()
    assert "cannot be kept" in caplog.text


def test_other_text_or_another_numba_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one version of the kernels compiled is never run by another."""
    scaled_by(2)(ONES)
    monkeypatch.setattr(compiled, "_sources", lambda: "changed")
    changed = scaled_by(2)
    changed(ONES)
    assert not was_read(changed)


_OTHER = """
import sys
from pathlib import Path
import numpy as np
from agentmem.memory import compiled
compiled.DIRECTORY = Path(sys.argv[1])
from agentmem.memory.decode_kernel import piece_kernel

def attend(dim):
    k = np.ones((2, dim), np.float32)
    address, q = np.array([k.ctypes.data], np.uint64), np.ones((1, dim), np.float32)
    out, top, total = np.empty((1, 1, dim), np.float32), np.empty((1, 1), np.float32), np.empty((1, 1), np.float32)
    piece_kernel("float32", dim, 1)(address, address, np.array([2]), np.array([0]), q, out, top, total)
    return [*out.ravel().tolist(), *top.ravel().tolist()]

print([attend(int(dim)) for dim in sys.argv[2:]])
"""


def attended(directory: Path, *dims: int) -> str:
    """Return what a new process prints that attends to two rows of ones with heads of each of ``dims``."""
    command = [sys.executable, "-c", _OTHER, str(directory), *map(str, dims)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return done.stdout


def expected(*dims: int) -> str:
    """Return what it must print: sums of two ones, and the score of ``dim`` products."""
    return f"{[[2.0] * dim + [float(dim)] for dim in dims]}\n"


def test_processes_share_them(directory: Path) -> None:
    """Closures over other compiled functions are found again by another process, which compiles nothing."""
    assert expected(16) == attended(directory, 16) == attended(directory, 16)
    assert 1 == len(list(directory.iterdir()))


def test_code_of_many_processes_runs_in_one(directory: Path) -> None:
    """Functions that differ only in what they were made for stay apart, read or compiled, whichever process compiled them."""
    assert [expected(16), expected(64)] == [attended(directory, 16), attended(directory, 64)]
    assert expected(32, 16, 64) == attended(directory, 32, 16, 64)
