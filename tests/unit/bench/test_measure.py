from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

from agentmem.bench.measure import TokenTimes, greedy, timed_reply
from agentmem.errors import InternalError
from agentmem.events import FinishEvent, GenerationEvent, TokenEvent
from agentmem.output import FREE, OutputSpec
from agentmem.types import Fidelity, FinishReason, ReuseReport, Usage

FINISH = FinishEvent(1, FinishReason.LENGTH, None, "abc", Usage(), ReuseReport(), Fidelity.EXACT, durable=True)


class Session:
    """Replies with the events it was made with."""

    def __init__(self, *events: GenerationEvent) -> None:
        self.events = events
        self.asked: tuple[Any, ...] = ()

    async def generate(
        self, *given: Any, request_id: str | None, fidelity: Fidelity | None, output: OutputSpec
    ) -> AsyncGenerator[GenerationEvent]:
        self.asked = (*given, request_id, fidelity)
        assert FREE == output
        for event in self.events:
            yield event


def test_tokens_that_came_with_the_first_are_not_timed() -> None:
    """The mean counts the tokens after the first arrival; without any it is 0."""
    assert (0.5, 0.0) == (TokenTimes((1, 2, 3, 4), 1.0, 2.0, num_first=2).seconds_per_token, TokenTimes((1,), 1.0, 1.0).seconds_per_token)


async def test_a_reply_is_timed_at_its_tokens() -> None:
    """Tokens are collected in order, text without tokens is not an arrival, and counts are told as they grow."""
    session = Session(TokenEvent(0, (7, 8), "a"), TokenEvent(2, (9,), "b"), TokenEvent(3, (), "c"), FINISH)
    counts: list[int] = []
    reply = await timed_reply(session, "hi", greedy(3), request_id="r", fidelity=Fidelity.RECALL, on_tokens=counts.append)
    assert ((7, 8, 9), 2, [2, 3], FINISH) == (reply.tokens.token_ids, reply.tokens.num_first, counts, reply.finish)
    assert 0 < reply.tokens.first_token_s <= reply.tokens.last_token_s
    assert ("hi", greedy(3), "r", Fidelity.RECALL) == session.asked


async def test_a_stream_without_an_end_is_an_error() -> None:
    """A reply that just stops is not measured."""
    with pytest.raises(InternalError, match="finish"):
        await timed_reply(Session(TokenEvent(0, (7,), "a")), "hi", greedy(1))


def test_greedy_replies_have_their_full_length() -> None:
    """The model's end token does not shorten what is measured."""
    assert (0.0, 5, True) == (greedy(5).temperature, greedy(5).max_tokens, greedy(5).ignore_eos)
