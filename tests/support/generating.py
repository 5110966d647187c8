"""What tests of replies share: stopping prefill, waiting for what outlives a caller, checking the next turn."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace

from support.replica import Replica, greedy
from torch import Tensor

from agentmem.engine.batch import StepBatch
from agentmem.events import GenerationEvent, TokenEvent

LONG = 400


async def first_token(events: AsyncIterator[GenerationEvent]) -> None:
    """Read until the first token."""
    async for event in events:
        if isinstance(event, TokenEvent):
            return


@contextmanager
def slow_prefill(replica: Replica) -> Iterator[threading.Event]:
    """Let prompts be computed 64 tokens a step, and no step until the event is set."""
    engine, gate = replica.core.engine, threading.Event()
    limits, forward = engine.scheduler.limits, engine.runner.forward

    def gated(batch: StepBatch) -> Tensor:
        gate.wait()
        return forward(batch)

    engine.scheduler.limits, engine.runner.forward = replace(limits, idle_batch_tokens=64), gated
    try:
        yield gate
    finally:
        gate.set()
        engine.scheduler.limits, engine.runner.forward = limits, forward


async def settled(replica: Replica) -> None:
    """Wait until everything that outlives its caller has ended."""
    await replica.manager.generator.tasks.wait(None)


async def exact_next(replica: Replica, name: str = "a") -> None:
    """Ask once more and compare with transformers on the same ids."""
    answer = await replica.ask(name, "next", 6)
    assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 6) == answer.token_ids
