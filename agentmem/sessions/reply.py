"""A reply that any number of readers can follow, leave and come back to.

The run's outputs are the buffer: a reader is a cursor into them, so a slow or vanished reader costs no memory, and reading
again from any token gives the same events (idempotent ``request_id``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from agentmem import faults
from agentmem.chat import CallStream, Piece
from agentmem.engine.engine import Engine
from agentmem.engine.run import Output, Run
from agentmem.errors import AgentMemError, Cancelled, DeadlineExceeded, InternalError, InvalidInput
from agentmem.events import FinishEvent, GenerationEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.sessions.reuse import reuse_of
from agentmem.types import FinishReason, RequestId, SessionId, Usage

PROGRESS_TOKENS = 1024  # prompts with more to compute than this report their progress


class Reply:
    """One Generate: its run while it lasts, its closing event afterwards. Event loop only."""

    def __init__(
        self,
        run: Run,
        *,
        session_id: SessionId,
        request_id: RequestId,
        digest: str,
        turn_index: int,
        input_tokens: int,
        parser: Callable[[], CallStream] | None = None,
    ) -> None:
        self.session_id = session_id
        self.request_id = request_id
        self.digest = digest
        self.turn_index = turn_index
        self.input_tokens = input_tokens
        self.run = run
        self.parser = parser  # None: the text is only text
        self.finish: FinishEvent | None = None
        self.error: AgentMemError | None = None
        self.closed_at: float | None = None  # loop time when nothing more will happen
        self.num_readers = 0
        self.left_at = asyncio.get_running_loop().time()  # when the last reader left; so far nobody has come
        self._closed = asyncio.Event()

    # -- writing: by the task that drives the reply ---------------------------------------------------------------------

    async def run_to_end(self) -> None:
        """Wait until the engine is done with the run. Raises its error, or Cancelled / DeadlineExceeded when nothing came out."""
        while not self.run.done:
            await self.run.news.wait()
        if self.run.error is not None:
            raise self.run.error
        if self.run.outputs or self.run.request.sampling is None:
            if self.run.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE) and not self.run.outputs:
                raise _unanswered(self.run.finish_reason)
            return
        raise _unanswered(self.run.finish_reason)

    def close(self, finish: FinishEvent | None, error: AgentMemError | None) -> None:
        """Say how it ended; every reader gets it."""
        self.finish, self.error = finish, error
        self.closed_at = asyncio.get_running_loop().time()
        self._closed.set()
        self.run.wake()

    async def closed(self) -> None:
        """Wait until the reply has ended, for good or ill."""
        await self._closed.wait()

    def usage(self) -> Usage:
        """Return what the reply cost so far."""
        run = self.run
        end = run.finished or run.first_token or run.created
        return Usage(
            input_tokens=self.input_tokens,
            context_tokens=run.context_length,
            output_tokens=len(run.outputs),
            queue_seconds=max(0.0, (run.started or end) - run.created),
            first_token_seconds=max(0.0, (run.first_token or end) - run.created),
            total_seconds=max(0.0, end - run.created),
            steps=run.num_steps,
            attended=run.attended,
            drafted=run.num_drafted,
            accepted=run.num_accepted,
        )

    def text(self) -> str:
        """Return the reply's text, stop strings cut off."""
        return "".join(output.text for output in self.run.outputs) + self.run.tail_text

    # -- reading --------------------------------------------------------------------------------------------------------

    async def events(self, engine: Engine, *, after: int = 0, keep_alone: bool) -> AsyncGenerator[GenerationEvent]:
        """Yield the reply's events from its token ``after`` on.

        When the last reader leaves early, the run is cancelled unless ``keep_alone``. Raises what the reply ended with, and
        InvalidInput when ``after`` is more than was generated.
        """
        self.num_readers += 1
        try:
            async for event in self._follow(after):
                yield event
        finally:
            self.num_readers -= 1
            self.left_at = asyncio.get_running_loop().time()
            if not keep_alone and self.num_readers == 0 and not self.run.done:
                engine.cancel(self.run)

    async def _follow(self, after: int) -> AsyncGenerator[GenerationEvent]:
        run, cursor, started, reported = self.run, after, False, -1
        parts = Parts(self.parser)
        told = 0  # outputs whose text went through the parser
        while True:
            news = run.news
            if run.explained and not started:
                started = True
                yield self._start_event()
            if started and not run.outputs and (progress := self._progress()) is not None and progress.prefilled > reported:
                reported = progress.prefilled
                yield progress
            outputs = run.outputs[cursor:]
            if outputs:
                faults.point("generation.mid_stream")
                parts.skip("".join(output.text for output in run.outputs[told:cursor]))
                yield parts.added(token_event(cursor, outputs))
                cursor += len(outputs)
                told = cursor
                continue
            if self._ended:
                break
            await news.wait()
        if cursor > len(run.outputs):
            raise InvalidInput(f"resume_after is {after}, but the reply has {len(run.outputs)} tokens")
        if self.error is not None:
            raise self.error
        parts.skip("".join(output.text for output in run.outputs[told:cursor]))
        last = parts.ended(TokenEvent(len(run.outputs), (), run.tail_text))
        if last.text or last.content or last.tool_calls:
            yield last
        if self.finish is None:
            raise InternalError("a reply ended without saying how")
        yield self.finish

    @property
    def _ended(self) -> bool:
        return self._closed.is_set()

    def _progress(self) -> ProgressEvent | None:
        run = self.run
        if run.prompt_length - sum(run.reused.values()) < PROGRESS_TOKENS:
            return None
        return ProgressEvent(prefilled=run.branch.length if run.branch else 0, total=run.prompt_length)

    def _start_event(self) -> StartEvent:
        return StartEvent(
            session_id=self.session_id,
            request_id=self.request_id,
            turn_index=self.turn_index,
            reuse=reuse_of(self.run),
            fidelity=self.run.request.fidelity,
            input_tokens=self.input_tokens,
            context_tokens=self.run.context_length,
        )


def token_event(index: int, outputs: list[Output]) -> TokenEvent:
    """Return one event for consecutive outputs, the first of which is number ``index`` of the reply."""
    return TokenEvent(
        index=index,
        token_ids=tuple(output.token_id for output in outputs),
        text="".join(output.text for output in outputs),
        logprobs=tuple(output.logprob for output in outputs if output.logprob is not None),
        top_logprobs=tuple(output.top for output in outputs if output.logprob is not None),
    )


class Parts:
    """What text adds to a message's content and to its tool calls, as it comes. One for each reader."""

    def __init__(self, parser: Callable[[], CallStream] | None) -> None:
        self._stream = parser() if parser is not None else None

    def skip(self, text: str) -> None:
        """Take in text that the reader already has."""
        if self._stream is not None:
            self._stream.push(text)

    def added(self, event: TokenEvent) -> TokenEvent:
        """Return ``event`` with what its text adds."""
        return event if self._stream is None else _with(event, self._stream.push(event.text))

    def ended(self, event: TokenEvent) -> TokenEvent:
        """Return ``event``, the reply's last, with what its text and the end of the reply add."""
        return event if self._stream is None else _with(event, [*self._stream.push(event.text), *self._stream.finish()])


def _with(event: TokenEvent, pieces: Sequence[Piece]) -> TokenEvent:
    content = "".join(piece for piece in pieces if isinstance(piece, str))
    return replace(event, content=content, tool_calls=tuple(piece for piece in pieces if not isinstance(piece, str)))


def _unanswered(reason: FinishReason | None) -> AgentMemError:
    if reason is FinishReason.DEADLINE:
        return DeadlineExceeded("the deadline passed before the first token; the session is unchanged")
    return Cancelled("cancelled before the first token; the session is unchanged")
