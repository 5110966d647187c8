from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.api import Api, error_of, refusal, running

from agentmem import errors
from agentmem.api import stages
from agentmem.errors import STATUS, AgentMemError, DeadlineExceeded, InternalError
from agentmem.v1 import generation_pb2, session_pb2

GET = "/agentmem.v1.SessionService/GetSession"
REQUEST = session_pb2.GetSessionRequest(session_id="s")


@pytest.mark.parametrize("kind", sorted(STATUS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
async def test_every_error_reaches_the_client_as_itself(api: Api, kind: type[AgentMemError]) -> None:
    """Class, message, reason, metadata and retry delay survive the wire; the code is the table's."""
    api.sessions.error = kind("what was wrong", metadata={"limit": "5"}, retry_after=0.25)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.session.GetSession(REQUEST)
    error = error_of(caught.value)
    assert STATUS[kind].grpc == caught.value.code().name
    assert (kind, "what was wrong", kind.default_reason) == (type(error), str(error), error.reason)
    assert ({"limit": "5"}, 0.25) == (error.metadata, error.retry_after)


async def test_a_bug_tells_the_request_id_and_nothing_else(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is INTERNAL without its text; the log has the traceback and the same id."""
    api.sessions.error = KeyError("secret detail")
    with caplog.at_level(logging.ERROR, logger="agentmem.api.stages"):
        error = await refusal(api.session.GetSession(REQUEST, metadata=(("x-request-id", "abc"),)))
    assert (InternalError, {"request_id": "abc"}) == (type(error), error.metadata)
    assert "internal error; the server's log tells more under request id abc" == str(error)
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


def calls(api: Api, code: str, method: str = GET) -> float | None:
    return api.metrics.registry.get_sample_value("agentmem_calls_total", {"method": method, "code": code})


async def test_calls_are_counted_by_code(api: Api) -> None:
    """Answered and refused calls are counted apart and timed together; nothing is left running."""
    await api.session.GetSession(REQUEST)
    api.sessions.error = errors.NotFound("no session 's'")
    await refusal(api.session.GetSession(REQUEST))
    await api.server.drain(0.0)  # waits for the server's side of the calls
    assert (1, 1) == (calls(api, "OK"), calls(api, "NOT_FOUND"))
    value = api.metrics.registry.get_sample_value
    assert 2 == value("agentmem_call_duration_seconds_count", {"method": GET})
    assert 0 == value("agentmem_calls_running", {"method": GET})


async def test_a_client_that_left_is_counted(api: Api) -> None:
    """A call that ends because its client is gone counts as CANCELLED."""
    method = "/agentmem.v1.GenerationService/Generate"
    api.sessions.hold = asyncio.Event()
    stream = api.generation.Generate(generation_pb2.GenerateRequest(session_id="s"))
    await stream.read()
    stream.cancel()
    await asyncio.wait_for(api.sessions.closed.wait(), 5)
    await api.server.drain(0.0)
    assert 1 == calls(api, "CANCELLED", method)


async def test_a_foreign_servicer_may_end_its_own_call(api: Api) -> None:
    """The health service's NOT_FOUND passes through and is counted."""
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    assert isinstance(await refusal(stub.Check(health_pb2.HealthCheckRequest(service="x"))), errors.NotFound)
    await api.server.drain(0.0)
    assert 1 == calls(api, "NOT_FOUND", "/grpc.health.v1.Health/Check")


async def test_the_servers_own_deadline_is_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without deadline that outlives the default and its grace is cut off, and the generator closed."""
    monkeypatch.setattr(stages, "_GRACE_SECONDS", 0.0)
    async with running(default_deadline_seconds=0.1) as api:
        api.sessions.hold = asyncio.Event()
        error = await refusal(api.generation.Generate(generation_pb2.GenerateRequest(session_id="s")))
        assert DeadlineExceeded is type(error)
        assert "ran into the server's default of 0.1 seconds" in str(error)
        assert api.sessions.closed.is_set()


async def test_a_watch_has_no_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that are meant to stay open outlive the default deadline."""
    monkeypatch.setattr(stages, "_GRACE_SECONDS", 0.0)
    async with running(default_deadline_seconds=0.01) as api:
        api.sessions.hold = asyncio.Event()
        stream = api.session.WatchSession(session_pb2.WatchSessionRequest(session_id="s"))
        await stream.read()
        await stream.read()
        asyncio.get_running_loop().call_later(0.1, api.sessions.hold.set)
        assert grpc.aio.EOF is await stream.read()


async def test_a_timeout_of_the_code_is_a_bug(api: Api) -> None:
    """A TimeoutError that isn't the deadline's is not taken for it."""
    api.sessions.error = TimeoutError("the database")
    assert InternalError is type(await refusal(api.session.GetSession(REQUEST)))


def test_every_error_class_is_tested() -> None:
    """The matrix above holds every class of the tree."""
    classes = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentMemError)}
    assert classes - {AgentMemError} == set(STATUS)


def test_grpc_knows_every_code_of_the_table() -> None:
    """Each status of the error table is a grpc.StatusCode."""
    assert {status.grpc for status in STATUS.values()} <= {code.name for code in grpc.StatusCode}
