"""A real ``agentmem serve`` in a process of its own, to be measured, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from agentmem.errors import AgentMemError, Disconnected
from agentmem_client import AsyncAgentMem, RetryPolicy

# The script ``agentmem`` by another name: it need not be on PATH.
COMMAND = (sys.executable, "-c", "from agentmem.cli.main import main; main()", "serve", "--json")
START_SECONDS = 300.0  # converting and loading a model included
STOP_SECONDS = 30.0
LOG_LINES = 20  # of the server's log, in the error when it does not start


class ServerProcess:
    """Entering starts the server on a free loopback port, leaving ends it, whatever happened. Settings as in ``Settings``.

    After ``kill`` or ``stop`` it can be started again, on the same port, with the same state directory.
    """

    def __init__(self, settings: Mapping[str, object], state_dir: Path) -> None:
        self.state_dir = state_dir
        self.address = ""
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.kill()
        if isinstance(error, AgentMemError):
            error.add_note(self.log_tail())

    @property
    def log_file(self) -> Path:
        """Where the server's log goes; it grows over restarts."""
        return self.state_dir / "server.log"

    @property
    def pid(self) -> int:
        """The process id. Raises Disconnected when the server is not running."""
        if self._process is None or self._process.returncode is not None:
            raise Disconnected("the server is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start the server, ending one that runs; return once it serves. Raises Disconnected with the end of its log."""
        await self.kill()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment(),
                cwd=self.state_dir,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends the server
            )
        try:
            self.address = await asyncio.wait_for(self._read_address(), START_SECONDS)
        except (TimeoutError, Disconnected) as error:
            await self.kill()
            raise Disconnected(f"the server did not start; {self.log_tail()}") from error

    def log_tail(self) -> str:
        """Return the last lines that the server logged."""
        lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(("the server's log ends with:", *lines))

    async def kill(self) -> None:
        """End the server with SIGKILL: no handler runs, nothing is flushed. Does nothing when it is not running."""
        await self._end(signal.SIGKILL)

    def kill_now(self) -> None:
        """Send SIGKILL at once, from a callback; ``kill`` or ``start`` must follow."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the server with SIGTERM and let it drain; SIGKILL when it takes longer than STOP_SECONDS."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end(signal.SIGTERM), STOP_SECONDS)
            return
        await self.kill()

    async def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(how)
        await process.communicate()
        self._process = None

    def _environment(self) -> dict[str, str]:
        given = {
            "server.host": "127.0.0.1",
            "server.port": self.address.rpartition(":")[2] or "0",
            "storage.state_dir": str(self.state_dir),
            **self._settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AGENTMEM_")}
        return inherited | {"AGENTMEM_" + key.replace(".", "_").upper(): str(value) for key, value in given.items()}

    async def _read_address(self) -> str:
        """Return the address in the first line of JSON that the server prints. Raises Disconnected when it ends before."""
        stdout = self._process.stdout if self._process else None
        while stdout is not None and (line := await stdout.readline()):
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if isinstance(said, dict) and said.get("address"):
                    return str(said["address"])
        raise Disconnected("the server ended before it was ready")


@contextlib.asynccontextmanager
async def connected(server: ServerProcess, token: str = "") -> AsyncIterator[AsyncAgentMem]:
    """Yield a client of ``server`` that waits out a restart: it tries again for as long as loading a model takes."""
    retry = RetryPolicy(attempts=1000, base_seconds=0.1, max_seconds=0.5)
    async with AsyncAgentMem(server.address, token=token, deadline_seconds=START_SECONDS, retry=retry) as client:
        await client.wait_ready(START_SECONDS)
        yield client
