"""What the servicers need from the layer below: the part of the session manager's contract that gRPC exposes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Protocol

from agentmem.conversing import ConverseStep
from agentmem.events import ConverseEvent, GenerationEvent
from agentmem.output import OutputSpec
from agentmem.types import Fidelity, SamplingParams, TenantId, TurnInput
from agentmem.views import (
    AppendResult,
    DeleteReport,
    ForgetTarget,
    PrefixInfo,
    RecalledSpan,
    ServerStats,
    SessionChange,
    SessionInfo,
    SessionPatch,
    SessionSpec,
    TurnInfo,
)


class SessionPort(Protocol):
    """Sessions of all tenants. Every method raises AgentMemError only; a session of another tenant is NotFound.

    Called from one event loop. The generators are closed with ``aclose`` as soon as their caller is gone.
    """

    async def create(self, tenant: TenantId, spec: SessionSpec) -> SessionInfo:
        """Create a session. Raises AlreadyExists."""
        ...

    async def get(self, tenant: TenantId, session_id: str) -> SessionInfo:
        """Return a session."""
        ...

    async def list(
        self, tenant: TenantId, *, labels: Mapping[str, str], page_size: int, page_token: str
    ) -> tuple[Sequence[SessionInfo], str]:
        """Return a page, newest first, and the token of the next page ("": none)."""
        ...

    async def update(self, tenant: TenantId, session_id: str, patch: SessionPatch) -> SessionInfo:
        """Change what ``patch`` sets."""
        ...

    async def delete(self, tenant: TenantId, session_id: str) -> DeleteReport:
        """Delete a session and the blocks that nobody else uses."""
        ...

    async def fork(
        self, tenant: TenantId, session_id: str, *, at_turn: int | None, new_id: str | None, labels: Mapping[str, str] | None
    ) -> SessionInfo:
        """Return a new session that shares the turns up to ``at_turn``."""
        ...

    async def rollback(self, tenant: TenantId, session_id: str, *, to_turn: int) -> SessionInfo:
        """Drop the turns after ``to_turn``."""
        ...

    def export(self, tenant: TenantId, session_id: str) -> AsyncGenerator[bytes]:
        """Yield the session's bytes in chunks."""
        ...

    async def import_session(self, tenant: TenantId, chunks: AsyncIterator[bytes], *, new_id: str | None) -> SessionInfo:
        """Make a session from exported bytes. Raises InvalidInput for bytes that are no session."""
        ...

    def watch(self, tenant: TenantId, session_id: str) -> AsyncGenerator[SessionChange]:
        """Yield the present state, then every change."""
        ...

    async def append(self, tenant: TenantId, session_id: str, turn_input: TurnInput, *, request_id: str | None) -> AppendResult:
        """Add input without a reply."""
        ...

    def generate(
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
        """Add input and yield the reply, which is what ``output`` says. ``deadline`` in seconds of the monotonic clock."""
        ...

    def converse(self, tenant: TenantId, steps: AsyncIterator[ConverseStep]) -> AsyncGenerator[ConverseEvent]:
        """Answer the steps of a tool loop, one after the other."""
        ...

    async def end_turn(self, tenant: TenantId, session_id: str, *, waiting_on_tool: bool, eta_seconds: float) -> SessionInfo:
        """Seal the open turn."""
        ...

    async def cancel(self, tenant: TenantId, session_id: str, request_id: str) -> bool:
        """Stop a running reply; False when there is none."""
        ...

    async def inspect(self, tenant: TenantId, session_id: str, *, attention: bool) -> tuple[SessionInfo, Sequence[TurnInfo]]:
        """Return a session, its turns and where they are; with ``attention`` also what share of attention goes to each turn."""
        ...

    async def seal(self, tenant: TenantId, session_id: str) -> SessionInfo:
        """Seal what is open and wait until all of it is durable."""
        ...

    async def recall(self, tenant: TenantId, session_id: str, text: str, k: int) -> Sequence[RecalledSpan]:
        """Return up to ``k`` spans that ``text`` attends to, the heaviest first; nothing is added to the session.

        ``text`` is not empty and ``k`` is 1 to 1000: the caller has checked.
        """
        ...

    async def forget(self, tenant: TenantId, session_id: str, messages: Sequence[ForgetTarget]) -> SessionInfo:
        """Drop messages. ``messages`` is not empty and names no turn 0; one named twice or forgotten already is no error.

        Raises InvalidInput where a turn or a message of it does not exist; then nothing is forgotten.
        """
        ...

    async def set_fidelity(self, tenant: TenantId, session_id: str, fidelity: Fidelity) -> SessionInfo:
        """Set the policy's fidelity for every reply from now on."""
        ...

    def stats(self) -> ServerStats:
        """Return the replica's numbers."""
        ...

    async def prefixes(self, tenant: TenantId, limit: int) -> Sequence[PrefixInfo]:
        """Return the prefixes that the tenant's sessions share, the most shared first."""
        ...

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish or checkpoint what runs; return when done, at the latest after ``seconds``."""
        ...
