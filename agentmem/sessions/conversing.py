"""The tool loop on one stream: messages and pieces of results in, events of replies out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import InvalidInput
from agentmem.events import ConverseEvent, GenerationEvent
from agentmem.output import FREE
from agentmem.sessions.generation import Asked, Generator
from agentmem.sessions.incoming import Incoming
from agentmem.sessions.inputs import digest_of
from agentmem.sessions.sealing import Sealing
from agentmem.sessions.session import Session
from agentmem.sessions.table import SessionTable
from agentmem.types import RequestId, SamplingParams, TenantId, TurnInput

MAX_LEFT = 4  # requests of a session whose pieces wait for their client to come back

Generate = Callable[..., AsyncGenerator[GenerationEvent]]


class Converser:
    """Answers the steps of all streams. ``generate`` is the session manager's. Event loop only."""

    def __init__(self, table: SessionTable, generator: Generator, sealing: Sealing, generate: Generate) -> None:
        self._table = table
        self._generator = generator
        self._sealing = sealing
        self._generate = generate

    async def converse(self, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
        """Yield the events that answer each step before the next is taken.

        When the client goes, a reply with a request id goes on, and pieces that have arrived wait for it to come back; the session is
        free for others at once.
        """
        defaults = ConverseStep(params=SamplingParams(), output=FREE)
        incoming: Incoming | None = None
        try:
            async for sent in steps:
                step = _completed(sent, defaults)
                defaults = replace(defaults, session_id=step.session_id, params=step.params, output=step.output)
                session = await self._table.open(tenant, step.session_id)
                if step.request_id and session.knows(RequestId(step.request_id)):
                    await self._left(session, incoming, steps)
                    incoming = None
                    events: AsyncGenerator[ConverseEvent] = self._follow(session, step)
                elif step.piece is not None:
                    incoming = incoming or self._incoming(session, step, steps)
                    _check_request(incoming, step)
                    yield await self._generator.tasks.finish(incoming.take(step.piece, steps))
                    if not _is_whole(incoming, step.piece):
                        continue
                    events, incoming = self._reply(session, incoming, step), None
                elif incoming is None:
                    events = self._other(tenant, session, step)
                elif step.waiting is not None:
                    continue  # between two results: the session's memory is held for the next one anyway
                else:
                    raise InvalidInput("input came before the last piece of a tool's result")
                async with aclosing(events):
                    async for event in events:
                        yield event
        finally:
            if incoming is not None:
                await self._generator.tasks.finish(incoming.leave(steps))

    def _follow(self, session: Session, step: ConverseStep) -> AsyncGenerator[GenerationEvent]:
        """Take up the reply that the session has for the request."""
        stop = step.params.stop if step.params is not None else ()
        return self._generator.follow(session, RequestId(step.request_id), step.resume_after, stop)

    async def _left(self, session: Session, incoming: Incoming | None, stream: object) -> None:
        """Drop pieces of another request: the reply that is taken up has come after them."""
        if incoming is not None:
            await self._generator.tasks.finish(incoming.leave(stream))
            session.left_pieces.pop(incoming.request_id, None)

    def _incoming(self, session: Session, step: ConverseStep, stream: object) -> Incoming:
        """Return what has arrived of the request's pieces, on another stream too, which has nothing more to say then."""
        if session.is_raw:
            raise InvalidInput("a RAW session takes no tool results; send text or token_ids as input")
        name = RequestId(step.request_id)
        left = session.left_pieces.get(name) if name else None
        incoming = left if isinstance(left, Incoming) else Incoming(self._generator, session, name)
        if incoming is not left:
            self._generator.refuse_when_draining()
            if name:
                session.left_pieces[name] = incoming
            while len(session.left_pieces) > MAX_LEFT:
                del session.left_pieces[next(iter(session.left_pieces))]
        incoming.stream = stream
        return incoming

    def _reply(self, session: Session, incoming: Incoming, step: ConverseStep) -> AsyncGenerator[GenerationEvent]:
        """Answer the results that have arrived."""
        given = TurnInput(incoming.messages)
        params, output = step.params or SamplingParams(), step.output or FREE
        asked = Asked(
            given,
            params,
            digest_of(given, params, output),
            incoming.request_id or None,
            step.resume_after,
            fidelity=step.fidelity,
            output=output,
            ahead=tuple(incoming.ids),
        )
        incoming.release()
        session.left_pieces.pop(incoming.request_id, None)
        return self._generator.generate(session, asked)

    async def _other(self, tenant: TenantId, session: Session, step: ConverseStep) -> AsyncGenerator[ConverseEvent]:
        if step.waiting is not None:
            self._sealing.expect(session, step.waiting)
            return
        events = self._generate(
            tenant,
            session.record.id,
            step.given,
            step.params,
            request_id=step.request_id or None,
            resume_after=step.resume_after,
            deadline=None,
            fidelity=step.fidelity,
            output=step.output,
        )
        async with aclosing(events):
            async for event in events:
                yield event


def _completed(step: ConverseStep, defaults: ConverseStep) -> ConverseStep:
    """Return ``step`` with what it leaves out as it was before. Raises InvalidInput unless it says one thing, of one session."""
    session_id = step.session_id or defaults.session_id
    if not session_id:
        raise InvalidInput("the first message of the stream names no session_id")
    if defaults.session_id and session_id != defaults.session_id:
        raise InvalidInput(f"the stream is of session {defaults.session_id!r}; open another for {session_id!r}")
    said = [name for name in ("given", "piece", "waiting") if getattr(step, name) is not None]
    if len(said) > 1 or not (said or step.request_id):
        raise InvalidInput("a message holds input, a piece or waiting, one of them, or the request_id of a reply to take up")
    if not said:
        step = replace(step, given=TurnInput())
    return replace(step, session_id=session_id, params=step.params or defaults.params, output=step.output or defaults.output)


def _check_request(incoming: Incoming, step: ConverseStep) -> None:
    """Raise InvalidInput for a piece of another request."""
    if step.request_id not in ("", incoming.request_id):
        known = f"request {incoming.request_id!r}" if incoming.request_id else "a request without an id"
        raise InvalidInput(f"piece is of request {step.request_id!r}, but the results of {known} are not whole yet")


def _is_whole(incoming: Incoming, piece: ResultPiece) -> bool:
    """Return whether ``piece`` was the last of all results: now it is for the model to reply."""
    return piece.last and not piece.more and not incoming.is_open
