from __future__ import annotations

import asyncio
import time

import grpc.aio
import pytest
from support.api import EVENTS, Api, refusal, running

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import InvalidInput, Overloaded
from agentmem.events import PieceEvent
from agentmem.output import FREE, FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import Fidelity, Message, RequestId, SamplingParams, TurnInput
from agentmem.v1 import convert
from agentmem.v1 import generation_pb2 as pb
from agentmem.v1.converse import converse_event_from_pb
from agentmem.views import AppendResult

SLOW = (("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0))


async def test_append(api: Api) -> None:
    """Input and request id reach the manager, the result comes back."""
    turn_input = TurnInput((Message("user", "hello"),), full_history=True)
    request = pb.AppendRequest(session_id="s", input=convert.turn_input_to_pb(turn_input), request_id="r")
    response = await api.generation.Append(request)
    assert (1, 3, 9, True) == (response.turn_index, response.input_tokens, response.context_tokens, response.durable)
    assert AppendResult(1, 3, 9, durable=True).context_tokens == response.context_tokens
    assert [("append", ("default", "s", turn_input), {"request_id": "r"})] == api.sessions.calls


async def test_generate(api: Api) -> None:
    """Every event arrives in order and unchanged."""
    request = pb.GenerateRequest(
        session_id="s",
        input={"text": "x"},
        sampling={"temperature": 0.5, "seed": 0},
        fidelity="FIDELITY_EXACT",
        tool_choice={"mode": "TOOL_MODE_NAMED", "name": "grep", "parallel": False},
        response_format={"kind": "FORMAT_KIND_REGEX", "text": "a+"},
    )
    events = [convert.event_from_pb(event) async for event in api.generation.Generate(request, timeout=30)]
    assert list(EVENTS) == events
    [(_, args, kwargs)] = api.sessions.calls
    assert ("default", "s", TurnInput(text="x"), SamplingParams(temperature=0.5, seed=0)) == args
    assert 20 < kwargs.pop("deadline") - time.monotonic() <= 31  # grpc rounds up
    output = OutputSpec(ToolChoice(ToolMode.NAMED, "grep", parallel=False), ResponseFormat(FormatKind.REGEX, "a+"))
    assert {"request_id": None, "resume_after": 0, "fidelity": Fidelity.EXACT, "output": output} == kwargs


async def test_generate_with_nothing_said(api: Api) -> None:
    """Everything but the session's id has a default; the server's deadline is passed on."""
    async for _ in api.generation.Generate(pb.GenerateRequest(session_id="s")):
        pass
    [(_, args, kwargs)] = api.sessions.calls
    assert ("default", "s", TurnInput(), SamplingParams()) == args
    assert 500 < kwargs.pop("deadline") - time.monotonic() <= 600
    assert {"request_id": None, "resume_after": 0, "fidelity": None, "output": FREE} == kwargs


async def test_resume(api: Api) -> None:
    """A repeated request says how much of the reply the client has."""
    async for _ in api.generation.Generate(pb.GenerateRequest(session_id="s", request_id="r", resume_after_tokens=5)):
        pass
    [(_, _, kwargs)] = api.sessions.calls
    assert ("r", 5) == (kwargs["request_id"], kwargs["resume_after"])


async def test_resume_needs_a_request_id(api: Api) -> None:
    """Without the reply's id there is nothing to resume."""
    error = await refusal(api.generation.Generate(pb.GenerateRequest(session_id="s", resume_after_tokens=5)))
    assert isinstance(error, InvalidInput)
    assert "resume_after_tokens is set without request_id" in str(error)


async def test_an_error_before_the_first_event(api: Api) -> None:
    """A manager that refuses ends the stream with its error, retry delay included."""
    api.sessions.error = Overloaded("the queue is full", retry_after=2.5)
    error = await refusal(api.generation.Generate(pb.GenerateRequest(session_id="s")))
    assert (Overloaded, "the queue is full", 2.5) == (type(error), str(error), error.retry_after)


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_client_that_leaves_closes_the_generator(api: Api, request_id: str) -> None:
    """With and without a request id the manager is told promptly; it decides whether the reply goes on."""
    api.sessions.hold = asyncio.Event()
    stream = api.generation.Generate(pb.GenerateRequest(session_id="s", request_id=request_id))
    await stream.read()
    stream.cancel()
    await asyncio.wait_for(api.sessions.closed.wait(), 5)


async def test_a_client_whose_deadline_passes_closes_the_generator(api: Api) -> None:
    """The client's deadline ends the call on the server too."""
    api.sessions.hold = asyncio.Event()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in api.generation.Generate(pb.GenerateRequest(session_id="s"), timeout=0.2):
            pass
    assert "DEADLINE_EXCEEDED" == caught.value.code().name
    await asyncio.wait_for(api.sessions.closed.wait(), 5)


async def test_a_slow_consumer_stops_the_producer() -> None:
    """A client that does not read holds the manager's generator up: no buffer grows without bound."""
    async with running(SLOW) as api:
        api.sessions.events = None  # for ever
        stream = api.generation.Generate(pb.GenerateRequest(session_id="s"))
        await stream.read()
        pulled = -1
        while pulled != api.sessions.pulled:
            pulled = api.sessions.pulled
            await asyncio.sleep(0.2)  # the producer yields thousands of events in this time unless it is held up
        assert pulled * 10_000 < 2**24
        stream.cancel()
        await asyncio.wait_for(api.sessions.closed.wait(), 5)


async def test_converse(api: Api) -> None:
    """Steps reach the manager as they are and in order, its events the client; what a step leaves out is None."""
    requests = [
        pb.ConverseRequest(session_id="s", input={"text": "x"}, sampling={"temperature": 0.5}, request_id="r"),
        pb.ConverseRequest(piece={"tool_call_id": "c", "text": "y", "last": True, "more": True, "offset": 3}, resume_after_tokens=2),
        pb.ConverseRequest(waiting={"eta_seconds": 1.5}, tool_choice={"mode": "TOOL_MODE_REQUIRED"}),
    ]
    events = [converse_event_from_pb(event) async for event in api.generation.Converse(iter(requests))]
    assert [*EVENTS, PieceEvent(RequestId("r"), 1, 0)] == events
    assert [
        ConverseStep("s", given=TurnInput(text="x"), params=SamplingParams(temperature=0.5), request_id="r"),
        ConverseStep(piece=ResultPiece("c", "y", last=True, more=True, offset=3), resume_after=2),
        ConverseStep(waiting=1.5, output=OutputSpec(ToolChoice(ToolMode.REQUIRED))),
    ] == api.sessions.steps


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"session_id": "a b"}, "session_id"),
        ({"session_id": "s", "piece": {"offset": -1}}, "piece.offset is -1"),
        ({"session_id": "s", "piece": {"more": True}}, "piece.more is set without piece.last"),
        ({"session_id": "s", "waiting": {"eta_seconds": -1}}, "waiting.eta_seconds"),
        ({"session_id": "s", "resume_after_tokens": -1}, "resume_after_tokens"),
        ({"session_id": "s", "tool_choice": {"mode": "TOOL_MODE_NAMED"}}, "tool_choice.name"),
    ],
)
async def test_converse_refuses(api: Api, request_: dict[str, object], words: str) -> None:
    """A bad message ends the stream with what is wrong with it."""
    error = await refusal(api.generation.Converse(iter([pb.ConverseRequest(**request_)])))
    assert isinstance(error, InvalidInput)
    assert words in error.message


async def test_end_turn(api: Api) -> None:
    """The hints reach the manager."""
    response = await api.generation.EndTurn(pb.EndTurnRequest(session_id="s", waiting_on_tool=True, eta_seconds=2))
    assert "s" == response.session.session_id
    assert [("end_turn", ("default", "s"), {"waiting_on_tool": True, "eta_seconds": 2.0})] == api.sessions.calls


async def test_cancel(api: Api) -> None:
    """The answer says whether a reply was running."""
    response = await api.generation.Cancel(pb.CancelRequest(session_id="s", request_id="r"))
    assert response.cancelled
    assert [("cancel", ("default", "s", "r"), {})] == api.sessions.calls
