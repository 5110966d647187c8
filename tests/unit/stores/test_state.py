from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentmem.errors import ConfigError
from agentmem.stores import state
from agentmem.stores.state import StateLock, read_secret

HOLD = """
import sys
from pathlib import Path
from agentmem.stores.state import StateLock
lock = StateLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_the_secret_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    """32 random bytes, readable by their owner, the same at every start, others elsewhere; nothing else is left in the directory."""
    secret = read_secret(tmp_path / "state")
    assert 32 == len(secret)
    assert secret == read_secret(tmp_path / "state")
    assert secret != read_secret(tmp_path / "other")
    assert 0o600 == (tmp_path / "state" / "secret").stat().st_mode & 0o777
    assert ["secret"] == [path.name for path in (tmp_path / "state").iterdir()]


def test_servers_that_start_at_once_keep_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is slower takes the secret that is there, so that nobody's hashes are lost."""
    meeting, make = threading.Barrier(4), state._make_secret

    def together(path: Path) -> None:
        meeting.wait(10)
        make(path)

    monkeypatch.setattr(state, "_make_secret", together)
    with ThreadPoolExecutor(4) as threads:
        secrets = set(threads.map(read_secret, [tmp_path] * 4))
    assert 1 == len(secrets)
    assert ["secret"] == [path.name for path in tmp_path.iterdir()]


def test_a_start_that_was_killed_half_way_does_not_block_the_next(tmp_path: Path) -> None:
    """A temporary file that a dead process of the same number left behind is nobody's secret."""
    (tmp_path / f"secret.{os.getpid()}.tmp").touch()
    assert 32 == len(read_secret(tmp_path))


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_damaged_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file of another length is no secret: the error names it and what to do."""
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigError, match="secret holds .* remove it"):
        read_secret(tmp_path)


def test_a_directory_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    """Where nothing can be written the error names the setting."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage\.state_dir"):
        read_secret(tmp_path / "file" / "state")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A second server on the same directory is refused and told who has it; killing the first frees it at once."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert b"held\n" == holder.stdout.readline()
        with pytest.raises(ConfigError, match=f"in use by process {holder.pid}"):
            StateLock(tmp_path)
        holder.kill()
        holder.wait()
    lock = StateLock(tmp_path)
    lock.release()
    lock.release()
    StateLock(tmp_path).release()


def test_a_directory_that_cannot_hold_a_lock(tmp_path: Path) -> None:
    """A path that is a file is refused by the setting's name."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"storage\.state_dir"):
        StateLock(tmp_path / "file" / "state")
