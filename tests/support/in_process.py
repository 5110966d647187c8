"""A server in the test's own process, where a benchmark would start one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from agentmem.api.server import ApiServer
from agentmem.app import build_core, load_handle
from agentmem.config import load_settings
from agentmem.telemetry import Metrics


class InProcess:
    """Stands in for a server process."""

    def __init__(self, settings: Mapping[str, object], state_dir: Path) -> None:
        given = {"memory.kv_bytes": "64MiB", **settings, "storage.state_dir": str(state_dir), "server.port": 0}
        self._settings = load_settings(None, {}, given)
        self.pid = os.getpid()
        self.address = ""

    async def __aenter__(self) -> Self:
        self._core = build_core(self._settings, load_handle(self._settings))
        self._api = ApiServer(self._core.manager, self._settings.server, metrics=Metrics(), request_drain=lambda _: None)
        await self._api.start()
        self.address = self._api.address
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.drain(0.0)
        await self._core.close(0.0)
