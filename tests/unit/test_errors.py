from __future__ import annotations

import inspect
import re

import pytest

from agentmem import errors


def test_an_error_carries_reason_retry_and_metadata() -> None:
    """Reason defaults to the class's own; metadata is copied, so that the caller's dict stays the caller's."""
    metadata = {"limit": "7"}
    error = errors.Overloaded("queue is full", retry_after=1.5, metadata=metadata)
    metadata["limit"] = "8"
    assert ("queue is full", "OVERLOADED", 1.5, {"limit": "7"}) == (str(error), error.reason, error.retry_after, error.metadata)
    assert "SPECIAL" == errors.NotFound("x", reason="SPECIAL").reason
    assert errors.NotFound("x").retry_after is None


def test_status_of_a_subclass_is_the_nearest_row() -> None:
    """A class that has no row of its own answers as its nearest ancestor; the base answers as a bug."""

    class TooManyTools(errors.ContextTooLong):
        pass

    assert errors.STATUS[errors.ContextTooLong] == errors.status_of(TooManyTools("x"))
    assert errors.STATUS[errors.InternalError] == errors.status_of(errors.AgentMemError("x"))


def test_the_drawn_tree_is_the_table() -> None:
    """Every line of the tree in the module's docstring shows a class and the gRPC code that the table gives it."""
    drawn = re.findall(r"[|`]-- (\w+) +([A-Z_]+) *", inspect.getdoc(errors) or "")
    assert {cls.__name__: status.grpc for cls, status in errors.STATUS.items()} == dict(drawn)


@pytest.mark.parametrize("cls", list(errors.STATUS), ids=lambda cls: cls.__name__)
def test_every_status_makes_sense(cls: type[errors.AgentMemError]) -> None:
    """A gRPC code that exists, an HTTP status of the error range, an UPPER_SNAKE reason."""
    import grpc

    status = errors.STATUS[cls]
    assert hasattr(grpc.StatusCode, status.grpc)
    assert 400 <= status.http < 600
    assert re.fullmatch(r"[A-Z][A-Z_]*", cls.default_reason)
