"""The tool loop's messages on the wire."""

from __future__ import annotations

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import InvalidInput
from agentmem.events import ConverseEvent, PieceEvent
from agentmem.types import RequestId
from agentmem.v1 import generation_pb2 as pb
from agentmem.v1.convert import encoding, event_from_pb, event_to_pb, sampling_from_pb, sampling_to_pb, turn_input_from_pb, turn_input_to_pb
from agentmem.v1.enums import FIDELITY
from agentmem.v1.output import output_from_pb, response_format_to_pb, tool_choice_to_pb


def step_to_pb(step: ConverseStep) -> pb.ConverseRequest:
    """Return the wire form of one step. Raises InvalidInput for what the wire cannot hold."""
    with encoding("a step of the tool loop"):
        request = pb.ConverseRequest(
            session_id=step.session_id,
            request_id=step.request_id,
            fidelity=FIDELITY[step.fidelity],
            resume_after_tokens=step.resume_after,
        )
        if step.piece is not None:
            piece = step.piece
            request.piece.CopyFrom(
                pb.ResultPiece(
                    tool_call_id=piece.tool_call_id, name=piece.name, text=piece.text, last=piece.last, more=piece.more, offset=piece.offset
                )
            )
        if step.waiting is not None:
            request.waiting.CopyFrom(pb.Waiting(eta_seconds=step.waiting))
    if step.given is not None:
        request.input.CopyFrom(turn_input_to_pb(step.given))
    if step.params is not None:
        request.sampling.CopyFrom(sampling_to_pb(step.params))
    if step.output is not None:
        request.tool_choice.CopyFrom(tool_choice_to_pb(step.output.tool_choice))
        request.response_format.CopyFrom(response_format_to_pb(step.output.response_format))
    return request


def step_from_pb(request: pb.ConverseRequest) -> ConverseStep:
    """Return the step; what the message leaves out is None. Raises InvalidInput naming the field that is wrong."""
    shaped = request.HasField("tool_choice") or request.HasField("response_format")
    return ConverseStep(
        session_id=request.session_id,
        given=turn_input_from_pb(request.input) if request.HasField("input") else None,
        piece=_piece(request.piece) if request.HasField("piece") else None,
        waiting=request.waiting.eta_seconds if request.HasField("waiting") else None,
        params=sampling_from_pb(request.sampling) if request.HasField("sampling") else None,
        output=output_from_pb(request.tool_choice, request.response_format) if shaped else None,
        fidelity=FIDELITY.read(request.fidelity, "fidelity") if request.fidelity else None,
        request_id=request.request_id,
        resume_after=request.resume_after_tokens,
    )


def _piece(piece: pb.ResultPiece) -> ResultPiece:
    if piece.offset < 0:
        raise InvalidInput(f"piece.offset is {piece.offset}; allowed: 0 or more characters")
    if piece.more and not piece.last:
        raise InvalidInput("piece.more is set without piece.last; allowed: with the last piece of a result")
    return ResultPiece(piece.tool_call_id, piece.text, piece.name, piece.last, piece.more, piece.offset)


def converse_event_to_pb(event: ConverseEvent) -> pb.ConverseEvent:
    """Return the wire form of one event."""
    if isinstance(event, PieceEvent):
        accepted = pb.PieceAccepted(request_id=event.request_id, received=event.received, prefilled=event.prefilled)
        return pb.ConverseEvent(accepted=accepted)
    return pb.ConverseEvent(generation=event_to_pb(event))


def converse_event_from_pb(event: pb.ConverseEvent) -> ConverseEvent | None:
    """Return the event; None for one that is newer than this code."""
    if event.HasField("accepted"):
        return PieceEvent(RequestId(event.accepted.request_id), event.accepted.received, event.accepted.prefilled)
    return event_from_pb(event.generation) if event.HasField("generation") else None
