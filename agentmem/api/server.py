"""The gRPC server: services, stages, health, reflection, start and drain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agentmem.api.admin import AdminService
from agentmem.api.auth import Authenticate, KeyFile
from agentmem.api.generation import GenerationService
from agentmem.api.interceptor import CallInterceptor
from agentmem.api.memory import MemoryService
from agentmem.api.ports import SessionPort
from agentmem.api.sessions import SessionService
from agentmem.api.stages import Deadline, Measure, map_errors
from agentmem.config import LOOPBACK, ServerSettings
from agentmem.errors import ConfigError
from agentmem.telemetry import Metrics
from agentmem.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)
from agentmem.views import Placement

log = logging.getLogger(__name__)

SERVICES = tuple(
    service.full_name
    for module in (session_pb2, generation_pb2, memory_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
_LAST_CALLS_SECONDS = 1.0  # for short calls that are still answered after the replies have ended


class ApiServer:
    """One replica's gRPC endpoint. Not thread safe: everything is called from the event loop that ``start`` ran in.

    ``request_drain`` is called when AdminService.Drain asks for a shutdown, with the seconds asked for or None; it must only begin one.
    Raises ConfigError for a bad key file, for a host that needs one, and for a port that is taken.
    """

    def __init__(
        self,
        sessions: SessionPort,
        settings: ServerSettings,
        *,
        metrics: Metrics,
        request_drain: Callable[[float | None], None],
        replica_id: str = "local",
    ) -> None:
        if not settings.api_keys and settings.host not in LOOPBACK:
            raise ConfigError(f"server.host is {settings.host!r} without server.api_keys; allowed: {', '.join(LOOPBACK)}, or a key file")
        self._sessions = sessions
        self._settings = settings
        self._metrics = metrics
        self._request_drain = request_drain
        self._replica_id = replica_id
        self._keys = KeyFile(Path(settings.api_keys).expanduser()) if settings.api_keys else None
        self._health = health.aio.HealthServicer()
        self._draining = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.port = settings.port

    @property
    def address(self) -> str:
        """``host:port`` that clients connect to; the real port once started."""
        host = self._settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> int:
        """Bind, serve, and return the port."""
        stages = (
            Measure(self._metrics).around,
            map_errors,
            Deadline(self._settings.default_deadline_seconds).around,
            Authenticate(self._keys).around,
        )
        server = grpc.aio.server(interceptors=(CallInterceptor(stages),), options=_options(self._settings))
        self._add_services(server)
        try:
            self.port = server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ConfigError(f"server.port {self.port} of {self._settings.host} cannot be bound: {error}") from error
        await server.start()
        self._server = server
        for name in ("", *SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", extra={"address": self.address, "authentication": "tokens" if self._keys else "none"})
        return self.port

    def _add_services(self, server: grpc.aio.Server) -> None:
        admin = AdminService(self._sessions, placement=self._placement, request_drain=self._request_drain)
        for add, servicer in (
            (session_pb2_grpc.add_SessionServiceServicer_to_server, SessionService(self._sessions, self._draining)),
            (generation_pb2_grpc.add_GenerationServiceServicer_to_server, GenerationService(self._sessions)),
            (memory_pb2_grpc.add_MemoryServiceServicer_to_server, MemoryService(self._sessions)),
            (admin_pb2_grpc.add_AdminServiceServicer_to_server, admin),
            (health_pb2_grpc.add_HealthServicer_to_server, self._health),
        ):
            add(servicer, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)

    def _placement(self) -> Placement:
        return Placement(self._replica_id, self.address, local=True)

    async def drain(self, seconds: float) -> None:
        """Shut down within about ``seconds``: health says NOT_SERVING, running replies finish or are checkpointed, then the port closes.

        A second call waits for the same end. Does nothing before ``start``.
        """
        end = time.monotonic() + seconds
        self._draining.set()
        await self._health.enter_graceful_shutdown()
        await self._sessions.drain(seconds)
        await self._stop(max(_LAST_CALLS_SECONDS, end - time.monotonic()))

    async def stop(self) -> None:
        """Close the port and cut off whatever runs."""
        await self._stop(None)

    async def _stop(self, grace: float | None) -> None:
        if self._server is not None:
            await self._server.stop(grace)

    async def wait(self) -> None:
        """Return when the server has stopped."""
        if self._server is not None:
            await self._server.wait_for_termination()


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not take half of the connections
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Notice a client that vanished without a word, and let idle clients ping through NATs and proxies.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
