"""SessionService: each method checks, calls the session manager and converts back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TypeVar

from agentmem.api import validation as check
from agentmem.api.call import Context, tenant
from agentmem.api.ports import SessionPort
from agentmem.errors import Draining, InvalidInput
from agentmem.v1 import session_pb2 as pb
from agentmem.v1 import views
from agentmem.v1.session_pb2_grpc import SessionServiceServicer

T = TypeVar("T")


class SessionService(SessionServiceServicer):
    """The life of sessions over gRPC. ``draining`` is set when the server begins to shut down; watchers are sent away then."""

    def __init__(self, sessions: SessionPort, draining: asyncio.Event) -> None:
        self._sessions = sessions
        self._draining = draining

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Context) -> pb.CreateSessionResponse:
        """Create a session."""
        info = await self._sessions.create(tenant(), check.spec(views.spec_from_pb(request)))
        return pb.CreateSessionResponse(session=views.session_to_pb(info))

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        """Return one session."""
        info = await self._sessions.get(tenant(), check.identifier("session_id", request.session_id))
        return pb.GetSessionResponse(session=views.session_to_pb(info))

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        """Return a page of the tenant's sessions."""
        found, next_token = await self._sessions.list(
            tenant(),
            labels=check.labels(request.labels),
            page_size=check.page_size("page_size", request.page_size),
            page_token=check.page_token(request.page_token),
        )
        return pb.ListSessionsResponse(sessions=map(views.session_to_pb, found), next_page_token=next_token)

    async def UpdateSession(self, request: pb.UpdateSessionRequest, context: Context) -> pb.UpdateSessionResponse:
        """Change what the request sets."""
        session_id = check.identifier("session_id", request.session_id)
        info = await self._sessions.update(tenant(), session_id, check.patch(views.patch_from_pb(request)))
        return pb.UpdateSessionResponse(session=views.session_to_pb(info))

    async def DeleteSession(self, request: pb.DeleteSessionRequest, context: Context) -> pb.DeleteSessionResponse:
        """Delete a session."""
        report = await self._sessions.delete(tenant(), check.identifier("session_id", request.session_id))
        return views.delete_report_to_pb(report)

    async def ForkSession(self, request: pb.ForkSessionRequest, context: Context) -> pb.ForkSessionResponse:
        """Make a session that shares another's history."""
        info = await self._sessions.fork(
            tenant(),
            check.identifier("session_id", request.session_id),
            at_turn=check.count("at_turn", request.at_turn) if request.HasField("at_turn") else None,
            new_id=check.optional_identifier("new_session_id", request.new_session_id),
            labels=check.labels(request.labels.entries) if request.HasField("labels") else None,
        )
        return pb.ForkSessionResponse(session=views.session_to_pb(info))

    async def RollbackSession(self, request: pb.RollbackSessionRequest, context: Context) -> pb.RollbackSessionResponse:
        """Drop the turns after one."""
        session_id = check.identifier("session_id", request.session_id)
        if not request.HasField("to_turn"):
            raise InvalidInput("to_turn is not set; allowed: the last turn to keep, 0 or more")
        info = await self._sessions.rollback(tenant(), session_id, to_turn=check.count("to_turn", request.to_turn))
        return pb.RollbackSessionResponse(session=views.session_to_pb(info))

    async def ExportSession(self, request: pb.ExportSessionRequest, context: Context) -> None:
        """Stream a session's bytes."""
        session_id = check.identifier("session_id", request.session_id)
        async with aclosing(self._sessions.export(tenant(), session_id)) as chunks:
            async for chunk in chunks:
                await context.write(pb.ExportSessionResponse(chunk=chunk))

    async def ImportSession(self, request_iterator: AsyncIterator[pb.ImportSessionRequest], context: Context) -> pb.ImportSessionResponse:
        """Make a session from exported bytes."""
        first = await anext(request_iterator, None)
        if first is None:
            raise InvalidInput("the stream holds no message; allowed: one or more with the chunks of an export")
        new_id = check.optional_identifier("new_session_id", first.new_session_id)
        async with aclosing(_chunks(first, request_iterator)) as chunks:
            info = await self._sessions.import_session(tenant(), chunks, new_id=new_id)
        return pb.ImportSessionResponse(session=views.session_to_pb(info))

    async def WatchSession(self, request: pb.WatchSessionRequest, context: Context) -> None:
        """Stream a session's changes until the client or the server leaves."""
        session_id = check.identifier("session_id", request.session_id)
        async with aclosing(self._sessions.watch(tenant(), session_id)) as changes:
            while (change := await next_unless(self._draining, changes)) is not None:
                await context.write(views.change_to_pb(change))


async def _chunks(first: pb.ImportSessionRequest, rest: AsyncIterator[pb.ImportSessionRequest]) -> AsyncGenerator[bytes]:
    yield first.chunk
    async for request in rest:
        yield request.chunk


async def next_unless(event: asyncio.Event, items: AsyncGenerator[T]) -> T | None:
    """Return the next item, None after the last. Raises Draining as soon as ``event`` is set; no task is left behind."""
    stopped = asyncio.ensure_future(event.wait())
    item = asyncio.ensure_future(anext(items, None))
    try:
        await asyncio.wait((stopped, item), return_when=asyncio.FIRST_COMPLETED)
        if not item.done():
            raise Draining("the server is shutting down", retry_after=1.0)
        return item.result()
    finally:
        stopped.cancel()
        item.cancel()
        await asyncio.gather(stopped, item, return_exceptions=True)
