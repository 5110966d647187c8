from __future__ import annotations

import pytest
from google.rpc import error_details_pb2, status_pb2

from agentmem import errors
from agentmem.errors import STATUS, AgentMemError, status_of
from agentmem.v1.status import _BY_CODE, CODE_NUMBERS, error_from_status, shortened, status_details


def both_ways(error: AgentMemError) -> AgentMemError:
    return error_from_status(status_of(error).grpc, error.message, status_details(error))


@pytest.mark.parametrize("kind", sorted(STATUS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_class_maps_both_ways(kind: type[AgentMemError]) -> None:
    """Class, message, reason, metadata and retry delay come back; an unmapped class fails here."""
    error = both_ways(kind("text", retry_after=1.25, metadata={"a": "b"}))
    assert (kind, "text", kind.default_reason) == (type(error), str(error), error.reason)
    assert (1.25, {"a": "b"}) == (error.retry_after, error.metadata)
    assert None is both_ways(kind("text")).retry_after


def test_a_reason_of_its_own() -> None:
    """A reason that no class has keeps its word and gets the nearest class of the code."""
    error = both_ways(errors.NotFound("no turn 7", reason="TURN_NOT_FOUND"))
    assert (errors.NotFound, "TURN_NOT_FOUND") == (type(error), error.reason)


@pytest.mark.parametrize("code", sorted(CODE_NUMBERS))
def test_a_status_without_details(code: str) -> None:
    """What grpc or a proxy says on its own becomes the nearest class; what is not expected is internal."""
    error = error_from_status(code, "text", None)
    assert _BY_CODE.get(code, errors.InternalError) is type(error)
    assert (type(error).default_reason, None, {}) == (error.reason, error.retry_after, error.metadata)


def test_details_of_somebody_else() -> None:
    """A foreign domain's reason is not taken for ours, its retry delay is."""
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="SESSION_BUSY", domain="example.com", metadata={"a": "b"}))
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(3)
    status.details.add().Pack(retry)
    error = error_from_status("UNAVAILABLE", "text", status.SerializeToString())
    assert (errors.Disconnected, "DISCONNECTED", 3.0, {}) == (type(error), error.reason, error.retry_after, error.metadata)


def test_details_that_are_no_status() -> None:
    """Broken bytes don't hide the code and the message."""
    assert errors.NotFound is type(error_from_status("NOT_FOUND", "text", b"\xff\xff"))


def test_long_messages_are_cut() -> None:
    """A message fits into trailers whatever it repeats, and is cut between characters."""
    assert "short ä" == shortened("short ä")
    assert "ä" * 500 + "..." == shortened("ä" * 600)
    assert "?" == shortened("\ud800")
    error = errors.InvalidInput("x" * 5000, metadata={"what": "y" * 5000})
    assert len(status_details(error)) < 2200
