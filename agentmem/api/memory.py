"""MemoryService: looking into a session."""

from __future__ import annotations

from agentmem.api import validation as check
from agentmem.api.call import Context, tenant
from agentmem.api.ports import SessionPort
from agentmem.errors import NotImplementedYet
from agentmem.v1 import memory_pb2 as pb
from agentmem.v1 import views
from agentmem.v1.memory_pb2_grpc import MemoryServiceServicer


class MemoryService(MemoryServiceServicer):
    """What a session remembers, over gRPC."""

    def __init__(self, sessions: SessionPort) -> None:
        self._sessions = sessions

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """Return a session's turns and where they are."""
        info, turns = await self._sessions.inspect(tenant(), check.identifier("session_id", request.session_id))
        shown = (views.turn_info_to_pb(turn, messages=request.include_messages, token_ids=request.include_token_ids) for turn in turns)
        return pb.InspectResponse(session=views.session_to_pb(info), turns=shown)

    async def Seal(self, request: pb.SealRequest, context: Context) -> pb.SealResponse:
        """Make all of a session durable."""
        info = await self._sessions.seal(tenant(), check.identifier("session_id", request.session_id))
        return pb.SealResponse(session=views.session_to_pb(info))

    async def Recall(self, request: pb.RecallRequest, context: Context) -> pb.RecallResponse:
        """Refuse: there is no recall yet."""
        raise NotImplementedYet("Recall is not in this version", metadata={"capability": "recall"})

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        """Refuse: there is no context editing yet."""
        raise NotImplementedYet("Forget is not in this version; RollbackSession drops the last turns", metadata={"capability": "forget"})

    async def SetFidelity(self, request: pb.SetFidelityRequest, context: Context) -> pb.SetFidelityResponse:
        """Refuse: nothing but exact attention exists yet."""
        raise NotImplementedYet("SetFidelity is not in this version; replies are exact", metadata={"capability": "set_fidelity"})
