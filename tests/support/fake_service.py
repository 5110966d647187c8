"""The real gRPC server over sessions that live in a dict and a model that repeats what it hears, with faults on demand."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from support.fake_loop import answers

from agentmem.api.server import ApiServer
from agentmem.config import ServerSettings
from agentmem.conversing import ConverseStep
from agentmem.errors import AgentMemError, AlreadyExists, Disconnected, InvalidInput, NotFound
from agentmem.events import ConverseEvent, FinishEvent, GenerationEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.output import OutputSpec
from agentmem.telemetry import Metrics
from agentmem.types import (
    Fidelity,
    FidelityReport,
    Fingerprint,
    FinishReason,
    Message,
    RequestId,
    ReuseReport,
    SamplingParams,
    SessionId,
    SessionRecord,
    TenantId,
    Tier,
    ToolCall,
    Turn,
    TurnInput,
    TurnState,
    Usage,
)
from agentmem.views import (
    AppendResult,
    ChangeKind,
    DeleteReport,
    ForgetTarget,
    PrefixInfo,
    RecalledSpan,
    SealState,
    ServerStats,
    SessionChange,
    SessionInfo,
    SessionPatch,
    SessionSpec,
    TurnInfo,
)


@dataclass(slots=True)
class FakeSession:
    record: SessionRecord
    turns: list[Turn] = field(default_factory=list)
    forgotten: set[ForgetTarget] = field(default_factory=set)


@dataclass
class FakeSessions:
    """A SessionPort. ``failures`` are raised by the next calls, ``lost_answers`` counts calls that work and then seem to fail.

    ``breaks``: after how many tokens each of the next streams breaks. ``stall``: streams wait here after their first token.
    ``lost_events``: which event, from 0, never reaches the client on each of the next Converse streams, which break there; with
    ``amnesia`` the server has then forgotten every piece and reply. ``tool_calls``: what the next replies call.
    """

    failures: list[AgentMemError] = field(default_factory=list)
    lost_answers: int = 0
    breaks: list[int] = field(default_factory=list)
    stall: asyncio.Event | None = None
    lost_events: list[int] = field(default_factory=list)
    amnesia: bool = False
    tool_calls: list[tuple[ToolCall, ...]] = field(default_factory=list)
    steps: list[ConverseStep] = field(default_factory=list)
    open_streams: int = 0
    results: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: list[OutputSpec] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)
    fidelities: list[Fidelity | None] = field(default_factory=list)
    sessions: dict[tuple[str, str], FakeSession] = field(default_factory=dict)
    replies: dict[str, list[str]] = field(default_factory=dict)
    called: dict[str, tuple[ToolCall, ...]] = field(default_factory=dict)

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)

    def _answer(self) -> None:
        if self.lost_answers:
            self.lost_answers -= 1
            raise Disconnected("the answer was lost")

    def _find(self, tenant: str, session_id: str) -> FakeSession:
        if (tenant, session_id) not in self.sessions:
            raise NotFound(f"no session {session_id!r}")
        return self.sessions[tenant, session_id]

    def _info(self, session: FakeSession) -> SessionInfo:
        asked, n_tokens = session.record.policy.fidelity, sum(len(turn.token_ids) for turn in session.turns)
        runs = Fidelity.EXACT if asked is Fidelity.AUTO else asked
        return SessionInfo(session.record, n_turns=len(session.turns), n_tokens=n_tokens, fidelity=runs, exact=not session.forgotten)

    def _add(self, record: SessionRecord, turns: list[Turn]) -> SessionInfo:
        if (record.tenant, record.id) in self.sessions:
            raise AlreadyExists(f"session {record.id!r} exists")
        session = self.sessions[record.tenant, record.id] = FakeSession(record, turns)
        self._answer()
        return self._info(session)

    async def create(self, tenant: TenantId, spec: SessionSpec) -> SessionInfo:
        self._enter("create")
        record = SessionRecord(
            id=SessionId(spec.session_id or "made-up"),
            tenant=tenant,
            fingerprint=Fingerprint("model"),
            tokenizer_hash="tokens",
            format=spec.format,
            system=spec.system,
            tools=spec.tools,
            policy=spec.policy,
            labels=spec.labels,
            ttl_seconds=spec.ttl_seconds,
            pinned=spec.pinned,
        )
        return self._add(record, [Turn(0, state=TurnState.SEALED)])

    async def get(self, tenant: TenantId, session_id: str) -> SessionInfo:
        self._enter("get")
        return self._info(self._find(tenant, session_id))

    async def list(
        self, tenant: TenantId, *, labels: Mapping[str, str], page_size: int, page_token: str
    ) -> tuple[Sequence[SessionInfo], str]:
        self._enter("list")
        mine = [one for (owner, _), one in self.sessions.items() if owner == tenant and labels.items() <= one.record.labels.items()]
        start = int(page_token or 0)
        end = start + page_size
        return [self._info(session) for session in mine[start:end]], str(end) if end < len(mine) else ""

    async def update(self, tenant: TenantId, session_id: str, patch: SessionPatch) -> SessionInfo:
        self._enter("update")
        session = self._find(tenant, session_id)
        changes = {name: value for name in patch.__dataclass_fields__ if (value := getattr(patch, name)) is not None}
        session.record = replace(session.record, **changes)
        return self._info(session)

    async def delete(self, tenant: TenantId, session_id: str) -> DeleteReport:
        self._enter("delete")
        session = self._find(tenant, session_id)
        del self.sessions[tenant, session_id]
        return DeleteReport(len(session.turns), 2, 4096, 1)

    async def fork(
        self, tenant: TenantId, session_id: str, *, at_turn: int | None, new_id: str | None, labels: Mapping[str, str] | None
    ) -> SessionInfo:
        self._enter("fork")
        source = self._find(tenant, session_id)
        last = len(source.turns) - 1 if at_turn is None else at_turn
        kept = dict(source.record.labels if labels is None else labels)
        record = replace(source.record, id=SessionId(new_id or "fork"), parent=source.record.id, parent_turn=last, labels=kept)
        return self._add(record, source.turns[: last + 1])

    async def rollback(self, tenant: TenantId, session_id: str, *, to_turn: int) -> SessionInfo:
        self._enter("rollback")
        session = self._find(tenant, session_id)
        if to_turn >= len(session.turns):
            raise InvalidInput(f"to_turn is {to_turn}; allowed: 0 to {len(session.turns) - 1}")
        del session.turns[to_turn + 1 :]
        return self._info(session)

    async def export(self, tenant: TenantId, session_id: str) -> AsyncGenerator[bytes]:
        self._enter("export")
        session = self._find(tenant, session_id)
        yield b"agentmem:"
        yield session.record.id.encode()

    async def import_session(self, tenant: TenantId, chunks: AsyncIterator[bytes], *, new_id: str | None) -> SessionInfo:
        self._enter("import")
        raw = b"".join([chunk async for chunk in chunks])
        if not raw.startswith(b"agentmem:"):
            raise InvalidInput("these bytes are no session")
        old = raw.removeprefix(b"agentmem:").decode()
        return self._add(SessionRecord(SessionId(new_id or old), tenant, Fingerprint("model"), "tokens"), [Turn(0)])

    async def watch(self, tenant: TenantId, session_id: str) -> AsyncGenerator[SessionChange]:
        self._enter("watch")
        info = self._info(self._find(tenant, session_id))
        yield SessionChange(ChangeKind.SNAPSHOT, None, info)
        yield SessionChange(ChangeKind.DELETED, 1, info)

    async def append(self, tenant: TenantId, session_id: str, turn_input: TurnInput, *, request_id: str | None) -> AppendResult:
        self._enter("append")
        session = self._find(tenant, session_id)
        if request_id not in {turn.request_id for turn in session.turns}:
            request = None if request_id is None else RequestId(request_id)
            session.turns.append(Turn(len(session.turns), turn_input.messages, tuple(turn_input.token_ids), request_id=request))
        self._answer()
        return AppendResult(len(session.turns) - 1, len(turn_input.messages), len(session.turns), durable=True)

    async def generate(
        self,
        tenant: TenantId,
        session_id: str,
        turn_input: TurnInput,
        params: SamplingParams,
        *,
        request_id: str | None,
        resume_after: int,
        deadline: float | None,
        fidelity: Fidelity | None,
        output: OutputSpec,
    ) -> AsyncGenerator[GenerationEvent]:
        self._enter("generate")
        self.params.append(params)
        self.resumed_after.append(resume_after)
        self.fidelities.append(fidelity)
        self.outputs.append(output)
        session = self._find(tenant, session_id)
        request = RequestId(request_id or "none")
        if request not in self.replies:
            said = turn_input.messages[-1].content if turn_input.messages else turn_input.text
            self.replies[request] = [f"{word} " for word in f"you said: {said}".split()]
            self.called[request] = self.tool_calls.pop(0) if self.tool_calls else ()
            message = Message("assistant", "".join(self.replies[request]), tool_calls=self.called[request])
            session.turns.append(
                Turn(
                    len(session.turns),
                    (*turn_input.messages, message),
                    tuple(range(5)),
                    TurnState.SEALED,
                    2,
                    FinishReason.STOP,
                    fidelity or Fidelity.EXACT,
                    report=FidelityReport(3, 0.5, 0.25, 0.75, 4, 0.5, 0.1, 256, 0.2, 512) if fidelity is Fidelity.RECALL else None,
                )
            )
        words = self.replies[request]
        turn, reuse = len(session.turns) - 1, ReuseReport(device=7, computed=3)
        yield ProgressEvent(1, 10)
        yield StartEvent(session.record.id, request, turn, reuse, fidelity or Fidelity.EXACT, 3, 10)
        fuse = self.breaks.pop(0) if self.breaks else None
        for index in range(resume_after, len(words)):
            if fuse is not None and index - resume_after >= fuse:
                raise Disconnected("connection reset by peer")
            yield TokenEvent(index, (index,), words[index])
            if self.stall is not None:
                await self.stall.wait()
        text = "".join(words)
        usage = Usage(3, 10, len(words), 0.0, 0.01, 0.02, len(words), 0.5 if fidelity is Fidelity.RECALL else 1.0)
        message = Message("assistant", text, tool_calls=self.called[request])
        yield FinishEvent(turn, FinishReason.STOP, message, text, usage, reuse, fidelity or Fidelity.EXACT, durable=True)

    async def converse(self, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
        self._enter("converse")
        lost = self.lost_events.pop(0) if self.lost_events else -1
        self.open_streams += 1
        try:
            async with aclosing(answers(self, tenant, steps)) as events:
                while (event := await anext(events, None)) is not None:
                    if not lost:
                        raise Disconnected("connection reset by peer")
                    lost -= 1
                    yield event
        finally:
            self.open_streams -= 1
            if not lost and self.amnesia:
                self.results, self.replies = {}, {}

    async def end_turn(self, tenant: TenantId, session_id: str, *, waiting_on_tool: bool, eta_seconds: float) -> SessionInfo:
        self._enter("end_turn")
        return self._info(self._find(tenant, session_id))

    async def cancel(self, tenant: TenantId, session_id: str, request_id: str) -> bool:
        self._enter("cancel")
        self.cancelled.append(request_id)
        return request_id in self.replies

    async def inspect(self, tenant: TenantId, session_id: str, *, attention: bool) -> tuple[SessionInfo, Sequence[TurnInfo]]:
        self._enter("inspect")
        session = self._find(tenant, session_id)
        shares = [turn.index / sum(range(len(session.turns))) for turn in session.turns] if attention else [None] * len(session.turns)
        return self._info(session), [
            TurnInfo(
                turn,
                n_tokens=len(turn.token_ids),
                kept=0.25,
                host_bytes=2048,
                device_bytes=1024,
                attention=share,
                sealed=SealState.QUEUED,
                forgotten=sum(target.turn_index == turn.index for target in session.forgotten),
            )
            for turn, share in zip(session.turns, shares, strict=True)
        ]

    async def recall(self, tenant: TenantId, session_id: str, text: str, k: int) -> Sequence[RecalledSpan]:
        self._enter("recall")
        turns = self._find(tenant, session_id).turns
        said = [(turn.index, message.content) for turn in turns for message in turn.messages if text in message.content]
        return [RecalledSpan(index, 5 * index, 5, content, 1 / (2 + i)) for i, (index, content) in enumerate(said[:k])]

    async def forget(self, tenant: TenantId, session_id: str, messages: Sequence[ForgetTarget]) -> SessionInfo:
        self._enter("forget")
        session = self._find(tenant, session_id)
        for target in messages:
            if target.turn_index >= len(session.turns):
                raise InvalidInput(f"there is no turn {target.turn_index}")
        session.forgotten.update(messages)
        self._answer()
        return self._info(session)

    async def set_fidelity(self, tenant: TenantId, session_id: str, fidelity: Fidelity) -> SessionInfo:
        self._enter("set_fidelity")
        session = self._find(tenant, session_id)
        session.record = replace(session.record, policy=replace(session.record.policy, fidelity=fidelity))
        return self._info(session)

    async def seal(self, tenant: TenantId, session_id: str) -> SessionInfo:
        self._enter("seal")
        return self._info(self._find(tenant, session_id))

    def stats(self) -> ServerStats:
        self._enter("stats")
        return ServerStats(model="parrot", sessions=len(self.sessions))

    async def prefixes(self, tenant: TenantId, limit: int) -> Sequence[PrefixInfo]:
        self._enter("prefixes")
        return [PrefixInfo("ab" * 32, 64, 2, 1024, Tier.DEVICE)][:limit]

    async def drain(self, seconds: float) -> None:
        self._enter("drain")


@asynccontextmanager
async def serving(sessions: FakeSessions, *, port: int = 0, api_keys: Path | None = None) -> AsyncIterator[ApiServer]:
    """Run the server over ``sessions`` on loopback; its ``address`` says where. Draining stops it."""
    settings = ServerSettings(port=port, api_keys=str(api_keys or ""))
    server = ApiServer(sessions, settings, metrics=Metrics(), request_drain=lambda seconds: sessions.calls.append(f"drain {seconds}"))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextmanager
def serving_on_a_thread(sessions: FakeSessions) -> Iterator[str]:
    """Run the server on a thread of its own, for callers that block; yields its address."""
    started: queue.SimpleQueue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

    async def serve() -> None:
        done = asyncio.Event()
        async with serving(sessions) as server:
            started.put((server.address, asyncio.get_running_loop(), done))
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    address, loop, done = started.get(timeout=30)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
