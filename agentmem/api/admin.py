"""AdminService: the operator's view of one replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from agentmem.api import validation as check
from agentmem.api.call import Context, require_admin, tenant
from agentmem.api.ports import SessionPort
from agentmem.v1 import admin_pb2 as pb
from agentmem.v1 import views
from agentmem.v1.admin_pb2_grpc import AdminServiceServicer
from agentmem.views import Placement

MAX_DRAIN_SECONDS = 3600.0


class AdminService(AdminServiceServicer):
    """Running a server, over gRPC. ``placement`` tells where this replica is, ``request_drain`` begins a shutdown and returns at once."""

    def __init__(self, sessions: SessionPort, *, placement: Callable[[], Placement], request_drain: Callable[[float | None], None]) -> None:
        self._sessions = sessions
        self._placement = placement
        self._request_drain = request_drain
        self._asked = False

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.GetStatsResponse:
        """Return the replica's numbers."""
        require_admin()
        return views.stats_to_pb(self._sessions.stats())

    async def ListPrefixes(self, request: pb.ListPrefixesRequest, context: Context) -> pb.ListPrefixesResponse:
        """Return the prefixes that the tenant's sessions share."""
        prefixes = await self._sessions.prefixes(tenant(), check.page_size("limit", request.limit))
        return pb.ListPrefixesResponse(prefixes=map(views.prefix_to_pb, prefixes))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        """Begin to shut down; asking again changes nothing."""
        require_admin()
        seconds = check.seconds("seconds", request.seconds, MAX_DRAIN_SECONDS) if request.HasField("seconds") else None
        if not self._asked:
            self._asked = True
            self._request_drain(seconds)
        return pb.DrainResponse()

    async def GetPlacement(self, request: pb.GetPlacementRequest, context: Context) -> pb.GetPlacementResponse:
        """Return who serves a session: with one replica, this one."""
        placement = self._placement()
        session_id = check.optional_identifier("session_id", request.session_id)
        if session_id is not None:
            info = await self._sessions.get(tenant(), session_id)
            placement = replace(placement, epoch=info.record.epoch)
        return views.placement_to_pb(placement)
