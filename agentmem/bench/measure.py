"""Times a reply where its user sees it: at the client, when the tokens arrive."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from agentmem.errors import InternalError
from agentmem.events import FinishEvent, TokenEvent
from agentmem.output import FREE, OutputSpec
from agentmem.types import Fidelity, SamplingParams
from agentmem_client import AsyncSession
from agentmem_client.session import Input


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """A reply's tokens and when they came. Seconds from the request; ``num_first`` tokens came together with the first."""

    token_ids: tuple[int, ...]
    first_token_s: float
    last_token_s: float
    num_first: int = 1

    @property
    def seconds_per_token(self) -> float:
        """Mean time of the tokens after the first; 0 when there are none."""
        following = len(self.token_ids) - self.num_first
        return (self.last_token_s - self.first_token_s) / following if following else 0.0


@dataclass(frozen=True, slots=True)
class TimedReply:
    """A reply of the service: its tokens in time, and its last event."""

    tokens: TokenTimes
    finish: FinishEvent


def greedy(max_tokens: int) -> SamplingParams:
    """Return greedy sampling of exactly ``max_tokens`` tokens, the model's end token or not."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


async def timed_reply(
    session: AsyncSession,
    content: Input | None,
    sampling: SamplingParams,
    *,
    request_id: str | None = None,
    fidelity: Fidelity | None = None,
    output: OutputSpec = FREE,
    on_tokens: Callable[[int], None] | None = None,
) -> TimedReply:
    """Generate and return the reply with its times. ``on_tokens`` is called with the number of tokens received so far.

    Raises what ``generate`` raises.
    """
    began = time.perf_counter()
    ids: list[int] = []
    first = last = 0.0
    num_first = 0
    finish: FinishEvent | None = None
    events = session.generate(content, sampling, request_id=request_id, fidelity=fidelity, output=output)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, TokenEvent) and event.token_ids:
                last = time.perf_counter() - began
                if not ids:
                    first, num_first = last, len(event.token_ids)
                ids += event.token_ids
                if on_tokens is not None:
                    on_tokens(len(ids))
            elif isinstance(event, FinishEvent):
                finish = event  # read on to the end of the stream: leaving it now would look like giving up
    if finish is None:
        raise InternalError("the reply ended without a finish event")
    return TimedReply(TokenTimes(tuple(ids), first, last, num_first), finish)
