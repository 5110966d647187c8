"""Client of the agentmem service: async and sync over one implementation.

    async with AsyncAgentMem("127.0.0.1:7070") as client, client.session("notes", system="Be brief.") as session:
        async for event in session.generate("Hello"):
            ...

Answers are the records of ``agentmem.types`` and ``agentmem.views``, failures the tree of ``agentmem.errors``.
"""

from agentmem.events import FinishEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.types import Fidelity, Message, Policy, SamplingParams, ToolSpec, TurnInput
from agentmem.views import ForgetTarget
from agentmem_client.client import AsyncAgentMem
from agentmem_client.loop import ToolLoop
from agentmem_client.retry import RetryPolicy
from agentmem_client.session import AsyncSession
from agentmem_client.sync import AgentMem, Session, SyncToolLoop

__all__ = [
    "AgentMem",
    "AsyncAgentMem",
    "AsyncSession",
    "Fidelity",
    "FinishEvent",
    "ForgetTarget",
    "Message",
    "Policy",
    "ProgressEvent",
    "RetryPolicy",
    "SamplingParams",
    "Session",
    "StartEvent",
    "SyncToolLoop",
    "TokenEvent",
    "ToolLoop",
    "ToolSpec",
    "TurnInput",
]
