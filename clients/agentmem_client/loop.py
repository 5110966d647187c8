"""The tool loop: messages and tool results in, events of replies out, over one stream that is made anew whenever it breaks."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import AgentMemError, Disconnected, InternalError
from agentmem.events import ConverseEvent, FinishEvent, PieceEvent, StartEvent, TokenEvent
from agentmem.output import FREE, OutputSpec
from agentmem.types import Fidelity, SamplingParams, ToolCall, TurnInput
from agentmem.v1 import generation_pb2 as pb
from agentmem.v1.converse import converse_event_from_pb, step_to_pb
from agentmem_client.transport import Duplex, Transport

Content = Callable[[], Awaitable[TurnInput]]


class ToolLoop:
    """A tool loop on one session; see ``AsyncSession.converse``. Used from one event loop, one call at a time.

    ``calls``: what the last reply called and waits for.
    """

    def __init__(
        self, transport: Transport, session_id: str, sampling: SamplingParams, output: OutputSpec, fidelity: Fidelity | None
    ) -> None:
        self.calls: tuple[ToolCall, ...] = ()
        self._transport = transport
        self._step = ConverseStep(session_id, params=sampling, output=output, fidelity=fidelity)
        self._stream: Duplex[pb.ConverseEvent] | None = None
        self._request_id = ""
        self._sent: list[ResultPiece] = []  # of the request under way, so that a new stream can be told all of it
        self._n_chars = 0

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
        self, given: TurnInput, *, sampling: SamplingParams | None = None, output: OutputSpec | None = None
    ) -> AsyncGenerator[ConverseEvent, None]:
        """Add messages and yield the events of the reply. ``sampling`` and ``output`` are for this reply."""
        self._begin()
        step = self._with(replace(self._step, given=given), sampling, output)
        async with aclosing(self._exchange(step)) as events:
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
        if not self._sent:
            self._begin()
        held: str | None = None  # one piece is kept back, because the last one says that it is
        async for piece in _pieces(text):
            if held is not None:
                async with aclosing(self._send(ResultPiece(call_id, held, name), sampling, output)) as events:
                    async for event in events:
                        yield event
            held = piece
        async with aclosing(self._send(ResultPiece(call_id, held or "", name, last=True, more=more), sampling, output)) as events:
            async for event in events:
                yield event

    async def waiting(self, eta_seconds: float = 0.0) -> None:
        """Say that a tool is running, and for about how long: the session's memory will be there when its result comes."""
        stream = self._open()
        await stream.write(step_to_pb(ConverseStep(self._step.session_id, waiting=eta_seconds)))

    # -- internals ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._request_id = f"loop-{secrets.token_hex(8)}"
        self._sent, self._n_chars = [], 0

    def _with(self, step: ConverseStep, sampling: SamplingParams | None, output: OutputSpec | None) -> ConverseStep:
        params = sampling or self._step.params or SamplingParams()
        if params.temperature > 0 and params.seed is None:  # so that a reply that is computed anew after a crash is the same
            params = replace(params, seed=secrets.randbits(63))
        return replace(step, params=params, output=output or self._step.output or FREE, request_id=self._request_id)

    async def _send(
        self, piece: ResultPiece, sampling: SamplingParams | None, output: OutputSpec | None
    ) -> AsyncGenerator[ConverseEvent, None]:
        piece = replace(piece, offset=self._n_chars)
        self._n_chars += len(piece.text)
        self._sent.append(piece)
        async with aclosing(self._exchange(self._with(replace(self._step, piece=piece), sampling, output))) as events:
            async for event in events:
                yield event
        if piece.last and not piece.more:
            self._sent = []

    async def _exchange(self, step: ConverseStep) -> AsyncGenerator[ConverseEvent, None]:
        """Send ``step`` and yield its events, each once, over as many streams as it takes."""
        attempts = self._transport.attempts(self._transport.reply_seconds)
        seen = _Seen(is_piece=step.piece is not None and (not step.piece.last or step.piece.more))
        while not seen.is_over():
            try:
                stream = self._open()
                for earlier in self._sent[:-1] if stream.is_new else ():
                    await stream.write(step_to_pb(replace(step, piece=earlier)))
                    await self._accepted(stream)
                stream.is_new = False
                await stream.write(step_to_pb(replace(step, resume_after=seen.n_tokens)))
                async for event in _events(stream):
                    if seen.is_news(event):
                        attempts.succeeded()
                        yield event
                    if seen.is_over():
                        break
            except AgentMemError as error:
                self.close()
                await attempts.failed(error)
        if seen.finish is not None:
            self.calls = seen.finish.message.tool_calls if seen.finish.message else ()

    def _open(self) -> Duplex[pb.ConverseEvent]:
        if self._stream is None:
            self._stream = self._transport.duplex("GenerationService/Converse", pb.ConverseEvent)
        return self._stream

    async def _accepted(self, stream: Duplex[pb.ConverseEvent]) -> None:
        async for event in _events(stream):
            if isinstance(event, PieceEvent):
                return


class _Seen:
    """Which events of a step have been delivered, and whether it is over."""

    def __init__(self, *, is_piece: bool) -> None:
        self.finished = False
        self.finish: FinishEvent | None = None
        self.n_tokens = 0
        self._is_piece = is_piece
        self._started = False

    def is_over(self) -> bool:
        """Whether every event of the step has been seen."""
        return self.finished

    def is_news(self, event: ConverseEvent) -> bool:
        """Count ``event``; False when it was delivered before. Raises InternalError when tokens are missing."""
        match event:
            case PieceEvent():
                self.finished = self._is_piece
            case StartEvent():
                seen, self._started = self._started, True
                return not seen
            case TokenEvent():
                if event.index != self.n_tokens:
                    raise InternalError(f"the server sent token {event.index} of a reply of which {self.n_tokens} tokens were received")
                self.n_tokens += len(event.token_ids)
            case FinishEvent():
                self.finished, self.finish = True, event
        return True


async def _events(stream: Duplex[pb.ConverseEvent]) -> AsyncIterator[ConverseEvent]:
    while (message := await stream.read()) is not None:
        event = converse_event_from_pb(message)
        if event is not None:
            yield event
    raise Disconnected("the stream ended before the reply did")


async def _pieces(text: str | AsyncIterable[str]) -> AsyncIterator[str]:
    if isinstance(text, str):
        yield text
        return
    async for piece in text:
        yield piece
