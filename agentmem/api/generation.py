"""GenerationService: adding to sessions and streaming replies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from agentmem.api import validation as check
from agentmem.api.call import Context, current_call, tenant
from agentmem.api.ports import SessionPort
from agentmem.conversing import ConverseStep
from agentmem.errors import InvalidInput
from agentmem.events import GenerationEvent
from agentmem.v1 import convert, views
from agentmem.v1 import generation_pb2 as pb
from agentmem.v1.converse import converse_event_to_pb, step_from_pb
from agentmem.v1.enums import FIDELITY
from agentmem.v1.generation_pb2_grpc import GenerationServiceServicer
from agentmem.v1.output import output_from_pb


class GenerationService(GenerationServiceServicer):
    """Writes to sessions over gRPC. A reply's generator is closed as soon as its client is gone; the manager decides what goes on."""

    def __init__(self, sessions: SessionPort) -> None:
        self._sessions = sessions

    async def Append(self, request: pb.AppendRequest, context: Context) -> pb.AppendResponse:
        """Add input without a reply."""
        result = await self._sessions.append(
            tenant(),
            check.identifier("session_id", request.session_id),
            check.some_input(convert.turn_input_from_pb(request.input)),
            request_id=check.optional_identifier("request_id", request.request_id),
        )
        return views.append_result_to_pb(result)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        """Add input and stream the reply. Writing waits for the client, so a slow one slows its own reply and fills no queue."""
        async with aclosing(self._events(request)) as events:
            async for event in events:
                await context.write(convert.event_to_pb(event))

    def _events(self, request: pb.GenerateRequest) -> AsyncGenerator[GenerationEvent]:
        call = current_call.get()
        return self._sessions.generate(
            call.tenant,
            check.identifier("session_id", request.session_id),
            check.turn_input(convert.turn_input_from_pb(request.input)),
            convert.sampling_from_pb(request.sampling),
            request_id=check.optional_identifier("request_id", request.request_id),
            resume_after=_resume_after(request),
            deadline=call.deadline,
            fidelity=FIDELITY.read(request.fidelity, "fidelity") if request.fidelity else None,
            output=output_from_pb(request.tool_choice, request.response_format),
        )

    async def Converse(self, request_iterator: AsyncIterator[pb.ConverseRequest], context: Context) -> None:
        """Answer the messages of a tool loop. Writing waits for the client, and the next message for what answers this one."""
        async with aclosing(self._sessions.converse(tenant(), _steps(request_iterator))) as events:
            async for event in events:
                await context.write(converse_event_to_pb(event))

    async def EndTurn(self, request: pb.EndTurnRequest, context: Context) -> pb.EndTurnResponse:
        """Seal the open turn."""
        info = await self._sessions.end_turn(
            tenant(),
            check.identifier("session_id", request.session_id),
            waiting_on_tool=request.waiting_on_tool,
            eta_seconds=check.seconds("eta_seconds", request.eta_seconds),
        )
        return pb.EndTurnResponse(session=views.session_to_pb(info))

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Stop a running reply."""
        session_id = check.identifier("session_id", request.session_id)
        request_id = check.identifier("request_id", request.request_id)
        return pb.CancelResponse(cancelled=await self._sessions.cancel(tenant(), session_id, request_id))


async def _steps(requests: AsyncIterator[pb.ConverseRequest]) -> AsyncGenerator[ConverseStep]:
    async for request in requests:
        step = step_from_pb(request)
        if step.session_id:
            check.identifier("session_id", step.session_id)
        check.optional_identifier("request_id", step.request_id)
        check.count("resume_after_tokens", step.resume_after)
        if step.given is not None:
            check.turn_input(step.given)
        if step.waiting is not None:
            check.seconds("waiting.eta_seconds", step.waiting)
        yield step


def _resume_after(request: pb.GenerateRequest) -> int:
    tokens = check.count("resume_after_tokens", request.resume_after_tokens)
    if tokens and not request.request_id:
        raise InvalidInput("resume_after_tokens is set without request_id; allowed: with the id of the reply to resume")
    return tokens
