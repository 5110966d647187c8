"""A real server in its own process, to be killed, restarted on the same state, and looked at from outside."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil

from agentmem.stores.archive import Archive
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.ledger import Ledger
from agentmem.stores.records import BlockHeader, SweepReport
from agentmem.types import Fingerprint
from agentmem_client import AsyncAgentMem

START_SECONDS = 50.0
EXIT_SECONDS = 30.0
MIB = 1 << 20
_MAIN = """
import json, sys
from agentmem.app import serve
from agentmem.config import load_settings
serve(load_settings(None, {}, json.loads(sys.argv[1])), lambda address: print(address, flush=True))
"""
# fp32, so that tokens may be compared; one thread, so that two servers side by side don't wait for each other's.
_DEFAULTS: dict[str, object] = {
    "model.id": "smollm2",
    "model.dtype": "fp32",
    "model.threads": 1,
    "server.port": 0,
    "server.drain_seconds": 5.0,
    "memory.kv_bytes": 1024 * MIB,
}
# The stores of a dead server are checked without its model: the header only matters to what is read or written.
_ANY_MODEL = BlockHeader(
    format_version=1,
    fingerprint=Fingerprint("none"),
    dtype="float32",
    layers=1,
    kv_heads=1,
    head_dim=1,
    first_token=0,
    n_tokens=64,
    rope="",
)


class Server:
    """One server process over ``state_dir``. ``start`` after ``kill`` (or ``stop``) goes on with the same state and port."""

    def __init__(self, state_dir: Path, models: Path, settings: Mapping[str, object] | None = None) -> None:
        self.state_dir = state_dir
        self.log_path = state_dir.with_suffix(".log")
        self.settings = {**_DEFAULTS, "model.cache_dir": str(models), "storage.state_dir": str(state_dir), **(settings or {})}
        self.address = ""
        self._process: subprocess.Popen[bytes] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, *, faults: str = "", settings: Mapping[str, object] | None = None) -> Self:
        """Start and return when it serves. ``faults`` is AGENTMEM_FAULTS, ``settings`` override from here on."""
        self.kill()
        self.settings.update(settings or {})
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "AGENTMEM_FAULTS": faults, "OMP_NUM_THREADS": "1"}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, json.dumps(self.settings)], stdout=subprocess.PIPE, stderr=log, env=env
            )
        watchdog = threading.Timer(START_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self.address = self._process.stdout.readline().decode().strip()
        finally:
            watchdog.cancel()
        if not self.address:
            raise AssertionError(f"the server did not start, exit code {self.wait()}:\n{self.log()[-4000:]}")
        self.settings["server.port"] = int(self.address.rpartition(":")[2])
        return self

    def strike(self) -> None:
        """Send SIGKILL and return at once. Any thread."""
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """End the process without a word, as a power cut would."""
        self.strike()
        self.wait()

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """Ask it to drain, wait for its end and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self, seconds: float = EXIT_SECONDS) -> int:
        """Return the exit code once the process has ended; a process that does not end in time is killed and an error."""
        process, self._process = self._process, None
        if process is None:
            return 0
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end in {seconds} s:\n{self.log()[-4000:]}") from None
        finally:
            process.stdout.close()

    # -- from outside -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise AssertionError("the server is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        """The process, to measure it."""
        return psutil.Process(self.pid)

    def client(self, **options: object) -> AsyncAgentMem:
        """Return a client of this server."""
        return AsyncAgentMem(self.address, **options)

    def log(self) -> str:
        """Return everything it has logged, over all its lives."""
        return self.log_path.read_text(errors="replace")

    def limit_file_size(self, n_bytes: int) -> None:
        """Let the kernel refuse (EFBIG) every write beyond ``n_bytes`` of a file; -1 lifts the limit."""
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (n_bytes, hard))

    # -- its state on disk ----------------------------------------------------------------------------------------------

    def block_files(self) -> list[Path]:
        """Return the block files, by name; what sealing has put beside them (``<hash>.<name>.safetensors``) is not among them."""
        return sorted(path for path in (self.state_dir / "blocks").glob("*/*.safetensors") if "." not in path.stem)

    def temp_files(self) -> list[Path]:
        """Return what interrupted writes left behind."""
        return sorted((self.state_dir / "blocks").glob("*/*.tmp"))

    def check_state(self) -> SweepReport:
        """Sweep a stopped server's orphans, check everything its stores promise, and return what was swept."""
        ledger = Ledger(self.state_dir / "meta.sqlite")
        try:
            files = BlockFiles(self.state_dir / "blocks", quarantine=self.state_dir / "quarantine")
            archive = Archive(files, ledger, header=_ANY_MODEL, host_bytes=0, disk_bytes=1 << 40)
            report = archive.sweep(min_age_s=0.0)
            archive.check_integrity()
        finally:
            ledger.close()
        return report
