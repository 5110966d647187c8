"""Callers go away at any moment: memory and ledger stay equal, and the session goes on exactly."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest
from support.replica import TENANT, Replica, chunks_of, gather_bytes, greedy, user

from agentmem.errors import NotFound
from agentmem.types import TurnInput
from agentmem.views import SessionPatch


class CancelledAt:
    """Awaits ``work`` and cancels the task that does so at its await number ``at``."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int) -> None:
        self.work = work
        self.at = at

    def __await__(self) -> Generator[Any, None, Any]:
        inner = self.work.__await__()
        step: Callable[[], Any] = partial(inner.send, None)
        while True:
            try:
                waited = step()
            except StopIteration as done:
                return done.value
            if self.at == 0:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.at -= 1
            try:
                yield waited
                step = partial(inner.send, None)
            except BaseException as error:  # noqa: BLE001 - handed on to the work
                step = partial(inner.throw, error)


async def cancelled(work: Coroutine[Any, Any, Any], at: int) -> bool:
    """Run ``work`` in a task that is cancelled at its await number ``at``; return False when it had ended before."""

    async def run() -> None:
        await CancelledAt(work, at)

    try:
        await asyncio.create_task(run())
    except asyncio.CancelledError:
        return True
    return False


async def imported(replica: Replica, name: str) -> None:
    data = await gather_bytes(replica.manager.export(TENANT, name))
    await replica.manager.import_session(TENANT, chunks_of(data), new_id=f"{name}-copy")


CALLS: dict[str, Callable[[Replica, str], Coroutine[Any, Any, Any]]] = {
    "create": lambda r, name: r.create(f"{name}-new", system="x" * 30),
    "append": lambda r, name: r.manager.append(TENANT, name, user("more"), request_id="q"),
    "generate": lambda r, name: r.ask(name, "more", 12, ignore_eos=True),
    "generate named": lambda r, name: r.ask(name, "more", 12, request_id="q", ignore_eos=True),
    "diverge": lambda r, name: r.ask(name, TurnInput(messages=user("else").messages, full_history=True), 4),
    "fork": lambda r, name: r.manager.fork(TENANT, name, at_turn=1, new_id=f"{name}-fork", labels=None),
    "rollback": lambda r, name: r.manager.rollback(TENANT, name, to_turn=1),
    "update": lambda r, name: r.manager.update(TENANT, name, SessionPatch(pinned=True)),
    "end turn": lambda r, name: r.manager.end_turn(TENANT, name, waiting_on_tool=False, eta_seconds=0.0),
    "delete": lambda r, name: r.manager.delete(TENANT, name),
    "import": imported,
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("call", CALLS)
async def test_a_caller_that_goes_away(replica: Replica, call: str, live: bool) -> None:
    """Cancelled at any await, a call has happened or not: the books are sound, memory equals ledger, the next reply is exact."""
    was_cancelled, at = True, 0
    while was_cancelled:
        name = f"s{at}"
        await replica.create(name, system="s" * 40)
        await replica.ask(name, "one", 4)
        await replica.manager.append(TENANT, name, user("two"), request_id="p")
        if not live:
            await replica.manager.table.forget(replica.session(name))
        was_cancelled = await cancelled(CALLS[call](replica, name), at)
        at += 1
        await replica.manager.generator.tasks.wait(None)
        await replica.check()
        for session in replica.manager.table:
            assert session.writer is None
        try:
            answer = await replica.ask(name, "next", 4)
        except NotFound:
            assert "delete" == call
            continue
        assert greedy(tuple(replica.tokens(name)[: -len(answer.token_ids)]), 4) == answer.token_ids
        await replica.manager.delete(TENANT, name)
    assert at > 1
