"""One session of the service, as an object with the words of the API."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Self

from agentmem.errors import AgentMemError, AlreadyExists, InternalError
from agentmem.events import FinishEvent, GenerationEvent
from agentmem.output import FREE, OutputSpec
from agentmem.types import Fidelity, Message, Policy, SamplingParams, SessionFormat, SessionRecord, TurnInput
from agentmem.v1 import generation_pb2, memory_pb2, session_pb2
from agentmem.v1.convert import encoding, sampling_to_pb, turn_input_to_pb
from agentmem.v1.enums import FIDELITY
from agentmem.v1.output import response_format_to_pb, tool_choice_to_pb
from agentmem.v1.views import (
    append_result_from_pb,
    change_from_pb,
    delete_report_from_pb,
    forget_to_pb,
    labels_to_pb,
    patch_to_pb,
    session_from_pb,
    span_from_pb,
    spec_to_pb,
    turn_info_from_pb,
)
from agentmem.views import (
    AppendResult,
    DeleteReport,
    ForgetTarget,
    RecalledSpan,
    SessionChange,
    SessionInfo,
    SessionPatch,
    SessionSpec,
    TurnInfo,
)
from agentmem_client.loop import ToolLoop
from agentmem_client.reply import Reply
from agentmem_client.transport import Transport

log = logging.getLogger("agentmem.client")

CANCEL_SECONDS = 2.0  # what leaving a reply early may cost

Input = str | Message | Sequence[Message] | TurnInput
"""A user's text (in a RAW session: text as it is), messages, or everything that a turn can take."""


def new_id(prefix: str) -> str:
    """Return an id that no other client makes up; made here so that repeating a call after a lost answer is safe."""
    return f"{prefix}-{secrets.token_hex(8)}"


class AsyncSession:
    """A session on the server. Entering opens it (creates it, or resumes the one of that id); leaving keeps it there.

    Used from one event loop. Every method raises the AgentMemError that the server answered with, or Disconnected.
    """

    def __init__(self, transport: Transport, session_id: str, *, spec: SessionSpec | None = None, delete_on_exit: bool = False) -> None:
        self.id = session_id
        self._transport = transport
        self._spec = spec
        self._delete_on_exit = delete_on_exit
        self._format: SessionFormat | None = None
        self._last_request = ""

    async def open(self) -> SessionInfo:
        """Create the session, or resume it where its id exists already.

        Raises AlreadyExists when it exists with another format, system prompt or other tools than were asked for.
        """
        if self._spec is None:
            return await self.info()
        try:
            request = spec_to_pb(replace(self._spec, session_id=self.id))
            answer = await self._transport.unary("SessionService/CreateSession", request, session_pb2.CreateSessionResponse)
            info = session_from_pb(answer.session)
        except AlreadyExists:  # made earlier: by an agent's last run, or by a try whose answer was lost
            info = await self.info()
            _check_same(self._spec, info.record)
        self._format = info.record.format
        return info

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._delete_on_exit:
            await self.delete()

    async def info(self) -> SessionInfo:
        """Return the session as it stands."""
        request = session_pb2.GetSessionRequest(session_id=self.id)
        answer = await self._transport.unary("SessionService/GetSession", request, session_pb2.GetSessionResponse)
        info = session_from_pb(answer.session)
        self._format = info.record.format
        return info

    async def update(
        self,
        *,
        ttl_seconds: float | None = None,
        pinned: bool | None = None,
        policy: Policy | None = None,
        labels: dict[str, str] | None = None,
    ) -> SessionInfo:
        """Change what is given and leave the rest; ``labels`` replaces all labels."""
        request = patch_to_pb(self.id, SessionPatch(ttl_seconds, pinned, policy, labels))
        answer = await self._transport.unary("SessionService/UpdateSession", request, session_pb2.UpdateSessionResponse)
        return session_from_pb(answer.session)

    async def append(self, content: Input, *, request_id: str | None = None) -> AppendResult:
        """Add input without a reply. With its request id, made up here by default, the same input is added once."""
        request = generation_pb2.AppendRequest(
            session_id=self.id,
            input=turn_input_to_pb(await self._turn_input(content)),
            request_id=request_id or new_id("append"),
        )
        seconds = self._transport.reply_seconds
        return append_result_from_pb(
            await self._transport.unary("GenerationService/Append", request, generation_pb2.AppendResponse, seconds=seconds)
        )

    async def generate(
        self,
        content: Input | None = None,
        sampling: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        resume_after: int = 0,
        fidelity: Fidelity | None = None,
        output: OutputSpec = FREE,
        deadline_seconds: float | None = None,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Add input and yield the reply's events, reconnecting when the stream breaks. Leaving the loop early cancels the reply.

        ``content`` None replies to what is there. ``request_id`` with ``resume_after`` (tokens already received) continues a
        reply of an earlier process. ``fidelity`` is for this reply only; None: as the session's policy says. ``output`` says which tools it
        calls and what its text must match.
        """
        sampling = sampling or SamplingParams()
        if sampling.temperature > 0 and sampling.seed is None and request_id is None:
            # Chosen here, so that a reply that has to be computed anew after a crash of the server has the same tokens. With
            # an id of the caller's the server derives the seed from it, so that another process can send the same request.
            sampling = replace(sampling, seed=secrets.randbits(63))
        self._last_request = request_id or new_id("reply")
        request = generation_pb2.GenerateRequest(
            session_id=self.id,
            input=turn_input_to_pb(await self._turn_input(() if content is None else content)),
            sampling=sampling_to_pb(sampling),
            request_id=self._last_request,
            resume_after_tokens=resume_after,
            fidelity=FIDELITY[fidelity],
            tool_choice=tool_choice_to_pb(output.tool_choice),
            response_format=response_format_to_pb(output.response_format),
        )
        reply = Reply(self._transport, request, deadline_seconds or self._transport.reply_seconds)
        try:
            async with aclosing(reply.events()) as events:
                async for event in events:
                    yield event
        except (GeneratorExit, asyncio.CancelledError):
            await self._abandon(request.request_id)
            raise

    async def generate_text(
        self,
        content: Input | None = None,
        sampling: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        fidelity: Fidelity | None = None,
        output: OutputSpec = FREE,
        deadline_seconds: float | None = None,
    ) -> FinishEvent:
        """Like ``generate``, but return only the last event, which holds the whole text."""
        events = self.generate(
            content, sampling, request_id=request_id, fidelity=fidelity, output=output, deadline_seconds=deadline_seconds
        )
        finish: FinishEvent | None = None
        async with aclosing(events):
            async for event in events:  # to the end of the stream: leaving early would cancel
                finish = event if isinstance(event, FinishEvent) else None
        if finish is None:
            raise InternalError("the reply ended without a finish event")
        return finish

    def converse(self, sampling: SamplingParams | None = None, *, output: OutputSpec = FREE, fidelity: Fidelity | None = None) -> ToolLoop:
        """Return a tool loop on one stream: ``say`` something, then send each call's ``result``, whole or as it comes.

        async with session.converse() as loop:
            async for event in loop.say("Fix the bug."): ...
            while loop.calls:
                for call in loop.calls:
                    async for event in loop.result(call, run(call), more=call is not loop.calls[-1]): ...
        """
        return ToolLoop(self._transport, self.id, sampling or SamplingParams(), output, fidelity)

    async def cancel(self, request_id: str | None = None) -> bool:
        """Stop a running reply, by default the last one begun here; False when it was not running."""
        request = generation_pb2.CancelRequest(session_id=self.id, request_id=request_id or self._last_request)
        answer = await self._transport.unary("GenerationService/Cancel", request, generation_pb2.CancelResponse)
        return answer.cancelled

    async def end_turn(self, *, waiting_on_tool: bool = False, eta_seconds: float = 0.0) -> SessionInfo:
        """Seal the open turn; the hints tell the server how long the session will rest."""
        request = generation_pb2.EndTurnRequest(session_id=self.id, waiting_on_tool=waiting_on_tool, eta_seconds=eta_seconds)
        answer = await self._transport.unary("GenerationService/EndTurn", request, generation_pb2.EndTurnResponse)
        return session_from_pb(answer.session)

    async def fork(
        self, at_turn: int | None = None, *, session_id: str | None = None, labels: Mapping[str, str] | None = None
    ) -> AsyncSession:
        """Return a new session that shares the history up to ``at_turn``, by default all turns that have ended."""
        fork = AsyncSession(self._transport, session_id or new_id("session"))
        request = session_pb2.ForkSessionRequest(
            session_id=self.id,
            at_turn=at_turn,
            new_session_id=fork.id,
            labels=labels_to_pb(None if labels is None else dict(labels)),
        )
        try:
            await self._transport.unary("SessionService/ForkSession", request, session_pb2.ForkSessionResponse)
        except AlreadyExists:
            if session_id is not None:
                raise
            # The id was made up here, so the session is the fork of a try whose answer was lost.
        return fork

    async def rollback(self, to_turn: int) -> SessionInfo:
        """Drop the turns after ``to_turn``; 0 keeps only the prelude."""
        request = session_pb2.RollbackSessionRequest(session_id=self.id, to_turn=to_turn)
        answer = await self._transport.unary("SessionService/RollbackSession", request, session_pb2.RollbackSessionResponse)
        return session_from_pb(answer.session)

    async def inspect(
        self, *, messages: bool = True, token_ids: bool = False, attention: bool = False
    ) -> tuple[SessionInfo, list[TurnInfo]]:
        """Return the session and its turns, with their messages, token ids and shares of attention when asked for."""
        request = memory_pb2.InspectRequest(
            session_id=self.id, include_messages=messages, include_token_ids=token_ids, include_attention=attention
        )
        seconds = self._transport.reply_seconds if attention else None  # attention is computed, the rest looked up
        answer = await self._transport.unary("MemoryService/Inspect", request, memory_pb2.InspectResponse, seconds=seconds)
        return session_from_pb(answer.session), [turn_info_from_pb(turn) for turn in answer.turns]

    async def recall(self, text: str, k: int = 10) -> list[RecalledSpan]:
        """Return up to ``k`` (1 to 1,000) spans of the session that ``text`` attends to, heaviest first. The session stays as it is."""
        with encoding("text or k"):
            request = memory_pb2.RecallRequest(session_id=self.id, text=text, k=k)
        seconds = self._transport.reply_seconds
        answer = await self._transport.unary("MemoryService/Recall", request, memory_pb2.RecallResponse, seconds=seconds)
        return [span_from_pb(span) for span in answer.spans]

    async def forget(self, messages: Iterable[ForgetTarget]) -> SessionInfo:
        """Forget messages for good: all of them or, where one does not exist, none. One that is forgotten already is no error."""
        request = forget_to_pb(self.id, messages)
        return session_from_pb((await self._transport.unary("MemoryService/Forget", request, memory_pb2.ForgetResponse)).session)

    async def set_fidelity(self, fidelity: Fidelity) -> SessionInfo:
        """Change what replies attend to from now on; the rest of the policy stays."""
        request = memory_pb2.SetFidelityRequest(session_id=self.id, fidelity=FIDELITY[fidelity])
        return session_from_pb((await self._transport.unary("MemoryService/SetFidelity", request, memory_pb2.SetFidelityResponse)).session)

    async def seal(self) -> SessionInfo:
        """Seal the open turn and wait until everything survives a crash."""
        request = memory_pb2.SealRequest(session_id=self.id)
        seconds = self._transport.reply_seconds
        answer = await self._transport.unary("MemoryService/Seal", request, memory_pb2.SealResponse, seconds=seconds)
        return session_from_pb(answer.session)

    async def export(self) -> AsyncGenerator[bytes, None]:
        """Yield the session as bytes that ``import_session`` takes, here or elsewhere. Not repeated when the stream breaks."""
        request = session_pb2.ExportSessionRequest(session_id=self.id)
        seconds = self._transport.reply_seconds
        stream = self._transport.stream("SessionService/ExportSession", request, session_pb2.ExportSessionResponse, seconds=seconds)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                yield piece.chunk

    async def watch(self) -> AsyncGenerator[SessionChange, None]:
        """Yield the session's changes, its present state first, until it is deleted or the caller leaves."""
        request = session_pb2.WatchSessionRequest(session_id=self.id)
        stream = self._transport.stream("SessionService/WatchSession", request, session_pb2.WatchSessionResponse, seconds=None)
        async with aclosing(stream) as changes:
            async for change in changes:
                yield change_from_pb(change)

    async def delete(self) -> DeleteReport:
        """Delete the session and what only it used. Not repeated: a second answer could not tell what was removed."""
        request = session_pb2.DeleteSessionRequest(session_id=self.id)
        answer = await self._transport.unary("SessionService/DeleteSession", request, session_pb2.DeleteSessionResponse, idempotent=False)
        return delete_report_from_pb(answer)

    async def _turn_input(self, content: Input) -> TurnInput:
        match content:
            case TurnInput():
                return content
            case str():
                if self._format is None:
                    await self.info()
                return TurnInput(text=content) if self._format is SessionFormat.RAW else TurnInput((Message("user", content),))
            case Message():
                return TurnInput((content,))
            case _:
                return TurnInput(tuple(content))

    async def _abandon(self, request_id: str) -> None:
        """Stop a reply nobody reads any more. It would end by itself at its deadline, so that a failure is only logged."""
        request = generation_pb2.CancelRequest(session_id=self.id, request_id=request_id)
        try:
            await self._transport.unary("GenerationService/Cancel", request, generation_pb2.CancelResponse, seconds=CANCEL_SECONDS)
        except AgentMemError as error:
            log.warning("reply %s was left, but cancelling it failed: %s", request_id, error)


def _check_same(spec: SessionSpec, record: SessionRecord) -> None:
    """Raise AlreadyExists when ``record`` is not what ``spec`` asked for; an empty system prompt or tool list asks for nothing."""
    pairs = (("format", spec.format, record.format), ("system prompt", spec.system, record.system), ("tools", spec.tools, record.tools))
    for name, wanted, found in pairs:
        if wanted and wanted != found:
            raise AlreadyExists(f"session {record.id!r} exists with another {name}; use another id, or leave the {name} out to resume it")
