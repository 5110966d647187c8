"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from types import TracebackType
from typing import Self

import grpc

from agentmem.types import Policy, SessionFormat, ToolSpec
from agentmem.v1 import admin_pb2, session_pb2
from agentmem.v1.views import placement_from_pb, prefix_from_pb, session_from_pb, stats_from_pb
from agentmem.views import Placement, PrefixInfo, ServerStats, SessionInfo, SessionSpec
from agentmem_client.retry import RetryPolicy
from agentmem_client.session import AsyncSession, new_id
from agentmem_client.transport import Transport

DEFAULT_TARGET = "127.0.0.1:7070"


class AsyncAgentMem:
    """A connection to one agentmem server. Used from one event loop; opens at the first call.

    ``token``: bearer token. ``credentials``: TLS, None for plain text. ``deadline_seconds`` bounds a short call with all its
    repetitions; ``reply_seconds`` what computes or moves much: replies, appends, seals, exports.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str = "",
        credentials: grpc.ChannelCredentials | None = None,
        deadline_seconds: float = 60.0,
        reply_seconds: float = 600.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._transport = Transport(
            target,
            token=token,
            credentials=credentials,
            deadline_seconds=deadline_seconds,
            reply_seconds=reply_seconds,
            retry=retry or RetryPolicy(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Sessions stay on the server."""
        await self._transport.close()

    async def wait_ready(self, seconds: float = 60.0) -> None:
        """Return when the server is serving. Raises Disconnected after ``seconds``."""
        await self._transport.wait_ready(seconds)

    def session(
        self,
        session_id: str | None = None,
        *,
        system: str = "",
        tools: Sequence[ToolSpec] = (),
        format: SessionFormat = SessionFormat.CHAT,
        policy: Policy | None = None,
        ttl_seconds: float = 0.0,
        labels: Mapping[str, str] | None = None,
        pinned: bool = False,
        delete_on_exit: bool = False,
    ) -> AsyncSession:
        """Return a session that ``async with`` (or ``open``) creates, or resumes where ``session_id`` exists already.

        It stays on the server afterwards, unless ``delete_on_exit``. No call is made yet.
        """
        spec = SessionSpec(
            format=format,
            system=system,
            tools=tuple(tools),
            policy=policy or Policy(),
            ttl_seconds=ttl_seconds,
            labels=dict(labels or {}),
            pinned=pinned,
        )
        return AsyncSession(self._transport, session_id or new_id("session"), spec=spec, delete_on_exit=delete_on_exit)

    def attach(self, session_id: str) -> AsyncSession:
        """Return a session that must exist already. No call is made yet; its methods raise NotFound when it does not."""
        return AsyncSession(self._transport, session_id)

    async def list_sessions(self, labels: Mapping[str, str] | None = None, *, page_size: int = 100) -> AsyncGenerator[SessionInfo, None]:
        """Yield the tenant's sessions that carry all ``labels``, newest first, fetched in pages."""
        token, more = "", True
        while more:
            request = session_pb2.ListSessionsRequest(labels=labels or {}, page_size=page_size, page_token=token)
            page = await self._transport.unary("SessionService/ListSessions", request, session_pb2.ListSessionsResponse)
            for session in page.sessions:
                yield session_from_pb(session)
            token, more = page.next_page_token, bool(page.next_page_token)

    async def import_session(self, chunks: AsyncIterable[bytes], *, session_id: str | None = None) -> AsyncSession:
        """Make a session from exported bytes, under ``session_id`` or the id that it had. Raises AlreadyExists."""

        async def requests() -> AsyncGenerator[session_pb2.ImportSessionRequest, None]:
            yield session_pb2.ImportSessionRequest(new_session_id=session_id or "")
            async for chunk in chunks:
                yield session_pb2.ImportSessionRequest(chunk=chunk)

        answer = await self._transport.upload("SessionService/ImportSession", requests(), session_pb2.ImportSessionResponse)
        return self.attach(answer.session.session_id)

    async def stats(self) -> ServerStats:
        """Return the server's numbers."""
        request = admin_pb2.GetStatsRequest()
        return stats_from_pb(await self._transport.unary("AdminService/GetStats", request, admin_pb2.GetStatsResponse))

    async def prefixes(self, limit: int = 100) -> list[PrefixInfo]:
        """Return the prefixes that the tenant's sessions share, the most shared first."""
        request = admin_pb2.ListPrefixesRequest(limit=limit)
        answer = await self._transport.unary("AdminService/ListPrefixes", request, admin_pb2.ListPrefixesResponse)
        return [prefix_from_pb(prefix) for prefix in answer.prefixes]

    async def placement(self, session_id: str = "") -> Placement:
        """Return which replica serves ``session_id``, or which one answers."""
        request = admin_pb2.GetPlacementRequest(session_id=session_id)
        return placement_from_pb(await self._transport.unary("AdminService/GetPlacement", request, admin_pb2.GetPlacementResponse))

    async def drain(self, seconds: float | None = None) -> None:
        """Begin to shut the server down; running replies get ``seconds``, by default the server's setting."""
        request = admin_pb2.DrainRequest(seconds=seconds)
        await self._transport.unary("AdminService/Drain", request, admin_pb2.DrainResponse)
