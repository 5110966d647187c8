"""MemoryService: looking into a session's memory and editing it."""

from __future__ import annotations

from agentmem.api import validation as check
from agentmem.api.call import Context, tenant
from agentmem.api.ports import SessionPort
from agentmem.v1 import memory_pb2 as pb
from agentmem.v1 import views
from agentmem.v1.enums import FIDELITY
from agentmem.v1.memory_pb2_grpc import MemoryServiceServicer

DEFAULT_SPANS = 10
MAX_SPANS = 1000


class MemoryService(MemoryServiceServicer):
    """What a session remembers, over gRPC."""

    def __init__(self, sessions: SessionPort) -> None:
        self._sessions = sessions

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """Return a session's turns and where they are."""
        session_id = check.identifier("session_id", request.session_id)
        info, turns = await self._sessions.inspect(tenant(), session_id, attention=request.include_attention)
        shown = (views.turn_info_to_pb(turn, messages=request.include_messages, token_ids=request.include_token_ids) for turn in turns)
        return pb.InspectResponse(session=views.session_to_pb(info), turns=shown)

    async def Seal(self, request: pb.SealRequest, context: Context) -> pb.SealResponse:
        """Make all of a session durable."""
        info = await self._sessions.seal(tenant(), check.identifier("session_id", request.session_id))
        return pb.SealResponse(session=views.session_to_pb(info))

    async def Recall(self, request: pb.RecallRequest, context: Context) -> pb.RecallResponse:
        """Return what a text would attend to."""
        session_id, text = check.identifier("session_id", request.session_id), check.text("text", request.text)
        k = check.count("k", request.k, 1, MAX_SPANS) if request.HasField("k") else DEFAULT_SPANS
        return pb.RecallResponse(spans=map(views.span_to_pb, await self._sessions.recall(tenant(), session_id, text, k)))

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        """Forget messages."""
        session_id = check.identifier("session_id", request.session_id)
        info = await self._sessions.forget(tenant(), session_id, check.targets(views.forget_from_pb(request)))
        return pb.ForgetResponse(session=views.session_to_pb(info))

    async def SetFidelity(self, request: pb.SetFidelityRequest, context: Context) -> pb.SetFidelityResponse:
        """Change what replies attend to from now on."""
        session_id = check.identifier("session_id", request.session_id)
        info = await self._sessions.set_fidelity(tenant(), session_id, FIDELITY.read(request.fidelity, "fidelity"))
        return pb.SetFidelityResponse(session=views.session_to_pb(info))
