from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from agentmem.errors import AgentMemError, Disconnected, InternalError
from agentmem.events import FinishEvent, TokenEvent
from agentmem.types import Fidelity, FinishReason, ReuseReport, Usage
from agentmem.v1.convert import event_to_pb
from agentmem.v1.generation_pb2 import GenerateRequest, GenerationEvent
from agentmem_client.reply import Reply
from agentmem_client.retry import Attempts, RetryPolicy

END = event_to_pb(FinishEvent(1, FinishReason.STOP, None, "", Usage(), ReuseReport(), Fidelity.EXACT, durable=True))


def token(index: int, n: int = 1) -> GenerationEvent:
    return event_to_pb(TokenEvent(index, tuple(range(n)), "x" * n))


class Script:
    """A transport whose streams are written down: events, or an error that breaks the stream."""

    def __init__(self, *streams: list[GenerationEvent | AgentMemError]) -> None:
        self.streams = list(streams)

    def attempts(self, seconds: float) -> Attempts:
        return Attempts(RetryPolicy(attempts=2, base_seconds=0.0), seconds)

    async def stream(self, method: str, request: object, reply: object, *, seconds: float) -> AsyncGenerator[GenerationEvent, None]:
        for item in self.streams.pop(0):
            if isinstance(item, AgentMemError):
                raise item
            yield item


async def indices(*streams: list[GenerationEvent | AgentMemError]) -> list[int]:
    reply = Reply(Script(*streams), GenerateRequest(), 60.0)  # type: ignore[arg-type]
    return [event.index async for event in reply.events() if isinstance(event, TokenEvent)]


async def test_a_stream_that_ends_early_is_a_broken_one() -> None:
    """An orderly end without the finish event is not the end of the reply."""
    assert [0, 1] == await indices([token(0)], [token(1), END])


async def test_a_server_that_replays_from_the_start_repeats_nothing() -> None:
    """Tokens that were received already are left out, as are events that this version does not know."""
    assert [0, 2, 4] == await indices(
        [token(0, 2), token(2, 2), Disconnected("gone")], [GenerationEvent(), token(0, 2), token(2, 2), token(4), END]
    )


@pytest.mark.parametrize("second", [token(3), token(1, 3)])
async def test_missing_or_overlapping_tokens_are_an_error(second: GenerationEvent) -> None:
    """A gap, or an event that is half known, is a bug that must not become wrong text."""
    with pytest.raises(InternalError, match="of which 2 tokens were received"):
        await indices([token(0, 2), second, END])


async def test_a_break_after_the_last_event_does_not_matter() -> None:
    """When the finish event is there, the reply has ended, whatever the connection does."""
    assert [0] == await indices([token(0), END, Disconnected("gone")])
