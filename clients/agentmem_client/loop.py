"""The tool loop: messages and tool results in, events of replies out, over one stream that is made anew whenever it breaks."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import AgentMemError, Disconnected
from agentmem.events import ConverseEvent, FinishEvent, PieceEvent, StartEvent, TokenEvent
from agentmem.output import FREE, OutputSpec
from agentmem.types import Fidelity, Message, SamplingParams, ToolCall, TurnInput
from agentmem.v1 import generation_pb2 as pb
from agentmem.v1.converse import converse_event_from_pb, step_to_pb
from agentmem_client.received import ReceivedTokens
from agentmem_client.transport import Duplex, Transport


class ToolLoop:
    """A tool loop on one session; see ``AsyncSession.converse``. Used from one event loop, one call at a time.

    ``calls``: what the last reply called and waits for. A reply that its caller leaves early goes on at the server; a result that is left
    early, or refused, was never sent. Methods raise the AgentMemError that the server answered with, or Disconnected; the loop can be
    used again then.
    """

    def __init__(
        self, transport: Transport, session_id: str, sampling: SamplingParams, output: OutputSpec, fidelity: Fidelity | None
    ) -> None:
        self.calls: tuple[ToolCall, ...] = ()
        self._transport = transport
        self._step = ConverseStep(session_id, params=sampling, output=output, fidelity=fidelity)
        self._stream: Duplex[pb.ConverseEvent] | None = None
        self._request_id = ""
        self._told: tuple[ResultPiece, ...] = ()  # of results before the one that comes next, in the same request
        self._under_way: object | None = None  # stands for the call of say or result that has not come to its end

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the stream; a reply under way goes on at the server."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def say(
        self, given: TurnInput | Message | str, *, sampling: SamplingParams | None = None, output: OutputSpec | None = None
    ) -> AsyncGenerator[ConverseEvent, None]:
        """Add messages, or what the user says, and yield the events of the reply. ``sampling`` and ``output`` are for this reply."""
        if not isinstance(given, TurnInput):
            given = TurnInput((Message("user", given) if isinstance(given, str) else given,))
        with self._turn():
            self._told = ()
            self._request_id = _new_id()
            async with aclosing(self._exchange(self._with(replace(self._step, given=given), sampling, output))) as events:
                async for event in events:
                    yield event

    async def result(
        self,
        call: ToolCall | str,
        text: str | AsyncIterable[str],
        *,
        name: str = "",
        more: bool = False,
        sampling: SamplingParams | None = None,
        output: OutputSpec | None = None,
    ) -> AsyncGenerator[ConverseEvent, None]:
        """Send the result of ``call``, whole or in pieces as they come, and yield what the server says of them; then the reply's events.

        ``more``: another call's result follows, so that there is no reply yet.
        """
        call_id = call if isinstance(call, str) else call.id
        name = name or ("" if isinstance(call, str) else call.name)
        with self._turn() as was_left:
            if was_left or not self._told:  # what the server has of a result that broke off is of a request that nobody goes on with
                self._request_id = _new_id()
            sent = list(self._told)
            n_chars = sum(len(piece.text) for piece in sent)
            step = self._with(self._step, sampling, output)
            async for part, last in _pieces(text):
                piece = ResultPiece(call_id, part, name, last=last, more=more and last, offset=n_chars)
                async with aclosing(self._exchange(replace(step, piece=piece), sent)) as events:
                    async for event in events:
                        yield event
                n_chars += len(part)
                sent.append(piece)
            self._told = tuple(sent) if more else ()

    async def waiting(self, eta_seconds: float = 0.0) -> None:
        """Say that a tool is running, and for about how long: the session's memory will be there when its result comes."""
        attempts = self._transport.attempts(self._transport.deadline_seconds)
        if self._under_way is not None:  # the server would hear it only after the reply that was left
            self.close()
        while True:
            try:
                await self._open().write(step_to_pb(ConverseStep(self._step.session_id, waiting=eta_seconds)))
                return
            except AgentMemError as error:
                self.close()
                await attempts.failed(error)

    # -- internals ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Yield whether the last call was left before its end. Nothing that it is still sent may be heard by the next: its stream ends."""
        was_left = self._under_way is not None
        if was_left:
            self.close()
        mine, calls = object(), self.calls
        self._under_way = mine
        try:
            yield was_left
        except BaseException as error:
            if self._under_way is mine:  # and not a generator that is collected while the next call is under way
                self.close()
                if isinstance(error, AgentMemError):
                    self.calls = calls
            raise
        self._under_way = None

    def _with(self, step: ConverseStep, sampling: SamplingParams | None, output: OutputSpec | None) -> ConverseStep:
        params = sampling or self._step.params or SamplingParams()
        if params.temperature > 0 and params.seed is None:  # so that a reply that is computed anew after a crash is the same
            params = replace(params, seed=secrets.randbits(63))
        return replace(step, params=params, output=output or self._step.output or FREE, request_id=self._request_id)

    async def _exchange(self, step: ConverseStep, sent: Sequence[ResultPiece] = ()) -> AsyncGenerator[ConverseEvent, None]:
        """Send ``step`` and yield its events, each once, over as many streams as it takes. ``sent``: its request's pieces before it."""
        attempts = self._transport.attempts(self._transport.reply_seconds)
        seen = _Seen(is_piece=step.piece is not None and (not step.piece.last or step.piece.more))
        while not seen.is_over:
            try:
                async with aclosing(self._one_stream(step, sent, seen)) as events:
                    async for event in events:
                        if isinstance(event, TokenEvent):  # a server that always dies before the first token makes no progress
                            attempts.succeeded()
                        yield event
            except AgentMemError as error:
                self.close()
                await attempts.failed(error)

    async def _one_stream(self, step: ConverseStep, sent: Sequence[ResultPiece], seen: _Seen) -> AsyncGenerator[ConverseEvent, None]:
        """Yield the events of ``step`` that are news, as far as one stream brings them. A new stream is told first what was ``sent``."""
        stream = self._open()
        pieces = [*(sent if stream.is_new else ()), step.piece]
        stream.is_new = False
        for piece in pieces:
            await stream.write(step_to_pb(replace(step, piece=piece, resume_after=seen.tokens.count)))
            event = await _next(stream)
            if not isinstance(event, PieceEvent):
                break  # the reply, which the server may have already: it needs no more pieces
        while True:
            if seen.is_news(event):
                if isinstance(event, StartEvent):
                    self.calls = ()
                if isinstance(event, FinishEvent):
                    self.calls = event.message.tool_calls if event.message else ()
                yield event
            if seen.is_over:
                return
            event = await _next(stream)

    def _open(self) -> Duplex[pb.ConverseEvent]:
        if self._stream is None:
            self._stream = self._transport.duplex("GenerationService/Converse", pb.ConverseEvent)
        return self._stream


class _Seen:
    """Which events of a step have been delivered, and whether it is over: with the reply or, of a mere piece, once that was taken."""

    def __init__(self, *, is_piece: bool) -> None:
        self.is_over = False
        self.tokens = ReceivedTokens()
        self._is_piece = is_piece
        self._once: set[type[ConverseEvent]] = set()

    def is_news(self, event: ConverseEvent) -> bool:
        """Count ``event``; False when it was delivered before. Raises InternalError when tokens are missing."""
        match event:
            case PieceEvent() | StartEvent():
                self.is_over = self._is_piece and isinstance(event, PieceEvent)
                seen = type(event) in self._once
                self._once.add(type(event))
                return not seen
            case TokenEvent():
                return self.tokens.adds(event)
            case FinishEvent():
                self.is_over = True
        return True


async def _next(stream: Duplex[pb.ConverseEvent]) -> ConverseEvent:
    """Return the next event that this version knows."""
    while (message := await stream.read()) is not None:
        event = converse_event_from_pb(message)
        if event is not None:
            return event
    raise Disconnected("the stream ended before the reply did")


async def _pieces(text: str | AsyncIterable[str]) -> AsyncIterator[tuple[str, bool]]:
    """Yield each piece with whether it is the last, which is why one is held back; one that is empty if there is none."""
    held: str | None = None
    if isinstance(text, str):
        held = text
    else:
        async for piece in text:
            if held is not None:
                yield held, False
            held = piece
    yield held or "", True


def _new_id() -> str:
    return f"loop-{secrets.token_hex(8)}"
