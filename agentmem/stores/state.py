"""The state directory itself: the server's secret, and the lock that keeps it to one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from pathlib import Path

from agentmem.errors import ConfigError

SECRET_BYTES = 32


class StateLock:
    """Holds ``state_dir`` for this process. The kernel releases it when the process ends, however it ends.

    Raises ConfigError naming the holder while another process has it: two writers of one ledger would each believe that
    blocks are theirs to erase.
    """

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / "lock"
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+", encoding="ascii")
        except OSError as error:
            raise ConfigError(f"storage.state_dir {state_dir} cannot be written: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read(32).strip() or "unknown"
            self._file.close()
            raise ConfigError(f"storage.state_dir {state_dir} is in use by process {holder}; give each server its own") from error
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have the directory. Releasing twice does nothing."""
        self._file.close()


def read_secret(state_dir: Path) -> bytes:
    """Return the server's secret, made on first use and readable by its owner only. Raises ConfigError."""
    path = state_dir / "secret"
    try:
        if not path.exists():
            state_dir.mkdir(parents=True, exist_ok=True)
            _make_secret(path)
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"storage.state_dir {state_dir} cannot keep the server's secret: {error}") from error
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path} holds {len(secret)} bytes, not the {SECRET_BYTES} of a secret; remove it to have a new one made")
    return secret


def _make_secret(path: Path) -> None:
    descriptor, temp = tempfile.mkstemp(dir=path.parent, prefix="secret.")  # readable by its owner only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was faster: its secret counts
            os.link(temp, path)
    finally:
        Path(temp).unlink()
