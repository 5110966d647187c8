"""What a new session shall be, checked, and as the records that the ledger takes."""

from __future__ import annotations

import secrets

from agentmem.compression.compressor import compressors
from agentmem.errors import InvalidInput
from agentmem.memory.recall import recallers
from agentmem.sessions.table import ModelIdentity
from agentmem.speculation import check_drafter
from agentmem.types import Policy, SessionFormat, SessionId, SessionRecord, TenantId
from agentmem.views import SessionSpec


def check_policy(policy: Policy) -> None:
    """Raise InvalidInput, naming the known ones, when the policy names a compressor, recall method or drafter that there is not."""
    compressors.get(policy.compressor)
    recallers.get(policy.recall)
    check_drafter(policy.drafter)


def check_spec(spec: SessionSpec) -> None:
    """Raise InvalidInput for a policy that cannot be served or a RAW session that would need the chat template."""
    check_policy(spec.policy)
    if spec.format is SessionFormat.RAW and (spec.system or spec.tools):
        raise InvalidInput("a RAW session has no system prompt and no tools: they are rendered by the chat template")


def new_record(tenant: TenantId, spec: SessionSpec, model: ModelIdentity, now: float) -> SessionRecord:
    """Return the record of a session that is made at ``now``, seconds since the epoch; one without a name gets one."""
    return SessionRecord(
        id=SessionId(spec.session_id or f"s-{secrets.token_hex(8)}"),
        tenant=tenant,
        fingerprint=model.fingerprint,
        tokenizer_hash=model.tokenizer_hash,
        format=spec.format,
        system=spec.system,
        tools=spec.tools,
        policy=spec.policy,
        labels=dict(spec.labels),
        ttl_seconds=spec.ttl_seconds,
        pinned=spec.pinned,
        created_at=now,
        updated_at=now,
        expires_at=now + spec.ttl_seconds if spec.ttl_seconds else 0.0,
    )
