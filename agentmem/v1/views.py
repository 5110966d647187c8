"""agentmem.views to protobuf and back: what the session manager takes and answers. Errors as in ``convert``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from agentmem.errors import InvalidInput
from agentmem.types import Fidelity, Fingerprint, SessionId, SessionRecord, TenantId
from agentmem.v1 import admin_pb2, generation_pb2, memory_pb2, session_pb2, types_pb2
from agentmem.v1.convert import encoding, policy_from_pb, policy_to_pb, tools_from_pb, tools_to_pb, turn_from_pb, turn_to_pb
from agentmem.v1.enums import CHANGE_KIND, FIDELITY, SEAL_STATE, SESSION_FORMAT, TIER
from agentmem.views import (
    AppendResult,
    ChangeKind,
    DeleteReport,
    ForgetTarget,
    Placement,
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


def spec_to_pb(spec: SessionSpec) -> session_pb2.CreateSessionRequest:
    """Return the request that creates ``spec``."""
    with encoding("session"):
        return session_pb2.CreateSessionRequest(
            session_id=spec.session_id or "",
            format=SESSION_FORMAT[spec.format],
            system=spec.system,
            tools=tools_to_pb(spec.tools),
            policy=policy_to_pb(spec.policy),
            ttl_seconds=spec.ttl_seconds,
            labels=spec.labels,
            pinned=spec.pinned,
        )


def spec_from_pb(request: session_pb2.CreateSessionRequest) -> SessionSpec:
    """Return what a new session shall be."""
    return SessionSpec(
        session_id=request.session_id or None,
        format=SESSION_FORMAT.read(request.format, "format", SessionSpec().format),
        system=request.system,
        tools=tools_from_pb(request.tools),
        policy=policy_from_pb(request.policy),
        ttl_seconds=request.ttl_seconds,
        labels=dict(request.labels),
        pinned=request.pinned,
    )


def labels_to_pb(labels: dict[str, str] | None) -> session_pb2.Labels | None:
    """Return the wire form of a set of labels; None stays None."""
    with encoding("labels"):
        return None if labels is None else session_pb2.Labels(entries=labels)


def patch_to_pb(session_id: str, patch: SessionPatch) -> session_pb2.UpdateSessionRequest:
    """Return the request that changes ``session_id`` by ``patch``."""
    with encoding("update"):
        request = session_pb2.UpdateSessionRequest(
            session_id=session_id,
            ttl_seconds=patch.ttl_seconds,
            policy=None if patch.policy is None else policy_to_pb(patch.policy),
            labels=labels_to_pb(patch.labels),
        )
        if patch.pinned is not None:
            request.pinned = patch.pinned
        return request


def patch_from_pb(request: session_pb2.UpdateSessionRequest) -> SessionPatch:
    """Return what a request changes."""
    return SessionPatch(
        ttl_seconds=request.ttl_seconds if request.HasField("ttl_seconds") else None,
        pinned=request.pinned if request.HasField("pinned") else None,
        policy=policy_from_pb(request.policy) if request.HasField("policy") else None,
        labels=dict(request.labels.entries) if request.HasField("labels") else None,
    )


def session_to_pb(info: SessionInfo) -> types_pb2.Session:
    """Return the wire form of a session."""
    record = info.record
    return types_pb2.Session(
        session_id=record.id,
        tenant=record.tenant,
        format=SESSION_FORMAT[record.format],
        system=record.system,
        tools=tools_to_pb(record.tools),
        policy=policy_to_pb(record.policy),
        labels=record.labels,
        ttl_seconds=record.ttl_seconds,
        pinned=record.pinned,
        parent=record.parent or "",
        parent_turn=record.parent_turn,
        created_at=record.created_at,
        updated_at=record.updated_at,
        expires_at=record.expires_at,
        fingerprint=record.fingerprint,
        tokenizer_hash=record.tokenizer_hash,
        epoch=record.epoch,
        n_turns=info.n_turns,
        n_tokens=info.n_tokens,
        open_turn=info.open_turn,
        busy=info.busy,
        durable=info.durable,
        device_bytes=info.device_bytes,
        disk_bytes=info.disk_bytes,
        device_tokens=info.device_tokens,
        fidelity=FIDELITY[info.fidelity],
        resident_tokens=info.resident_tokens,
        sealed_tokens=info.sealed_tokens,
        host_bytes=info.host_bytes,
        exact=info.exact,
    )


def _record_from_pb(session: types_pb2.Session) -> SessionRecord:
    return SessionRecord(
        id=SessionId(session.session_id),
        tenant=TenantId(session.tenant),
        fingerprint=Fingerprint(session.fingerprint),
        tokenizer_hash=session.tokenizer_hash,
        format=SESSION_FORMAT.read(session.format, "session.format"),
        system=session.system,
        tools=tools_from_pb(session.tools),
        policy=policy_from_pb(session.policy),
        labels=dict(session.labels),
        ttl_seconds=session.ttl_seconds,
        pinned=session.pinned,
        parent=SessionId(session.parent) if session.parent else None,
        parent_turn=session.parent_turn if session.HasField("parent_turn") else None,
        epoch=session.epoch,
        created_at=session.created_at,
        updated_at=session.updated_at,
        expires_at=session.expires_at,
    )


def session_from_pb(session: types_pb2.Session) -> SessionInfo:
    """Return the session."""
    return SessionInfo(
        record=_record_from_pb(session),
        n_turns=session.n_turns,
        n_tokens=session.n_tokens,
        open_turn=session.open_turn,
        busy=session.busy,
        durable=session.durable,
        device_bytes=session.device_bytes,
        disk_bytes=session.disk_bytes,
        device_tokens=session.device_tokens,
        fidelity=FIDELITY.read(session.fidelity, "session.fidelity", Fidelity.EXACT),
        resident_tokens=session.resident_tokens,
        sealed_tokens=session.sealed_tokens,
        host_bytes=session.host_bytes,
        exact=session.exact,
    )


def change_to_pb(change: SessionChange) -> session_pb2.WatchSessionResponse:
    """Return the wire form of a session's change."""
    return session_pb2.WatchSessionResponse(kind=CHANGE_KIND[change.kind], turn_index=change.turn_index, session=session_to_pb(change.info))


def change_from_pb(change: session_pb2.WatchSessionResponse) -> SessionChange:
    """Return the change; a kind that only a newer server knows is UPDATED."""
    known = change.kind in session_pb2.ChangeKind.values()
    return SessionChange(
        kind=CHANGE_KIND.read(change.kind if known else 0, "kind", ChangeKind.UPDATED),
        turn_index=change.turn_index if change.HasField("turn_index") else None,
        info=session_from_pb(change.session),
    )


def delete_report_to_pb(report: DeleteReport) -> session_pb2.DeleteSessionResponse:
    """Return the wire form of what a deletion removed."""
    return session_pb2.DeleteSessionResponse(**asdict(report))


def delete_report_from_pb(response: session_pb2.DeleteSessionResponse) -> DeleteReport:
    """Return what a deletion removed."""
    return DeleteReport(response.turns, response.blocks_erased, response.bytes_erased, response.blocks_shared)


def append_result_to_pb(result: AppendResult) -> generation_pb2.AppendResponse:
    """Return the wire form of what an append did."""
    return generation_pb2.AppendResponse(**asdict(result))


def append_result_from_pb(response: generation_pb2.AppendResponse) -> AppendResult:
    """Return what an append did."""
    return AppendResult(response.turn_index, response.input_tokens, response.context_tokens, response.durable)


def turn_info_to_pb(info: TurnInfo, *, messages: bool, token_ids: bool) -> memory_pb2.TurnInspection:
    """Return the wire form of a turn and its places, with or without its messages and token ids."""
    return memory_pb2.TurnInspection(
        turn=turn_to_pb(info.turn, messages=messages, token_ids=token_ids),
        n_tokens=info.n_tokens,
        n_blocks=info.n_blocks,
        blocks_on_disk=info.blocks_on_disk,
        disk_bytes=info.disk_bytes,
        durable=info.durable,
        resident_tokens=info.resident_tokens,
        kept=info.kept,
        host_bytes=info.host_bytes,
        device_bytes=info.device_bytes,
        attention=info.attention,
        sealed=SEAL_STATE[info.sealed],
        forgotten=info.forgotten,
    )


def turn_info_from_pb(turn: memory_pb2.TurnInspection) -> TurnInfo:
    """Return the turn and its places."""
    return TurnInfo(
        turn_from_pb(turn.turn),
        turn.n_tokens,
        turn.n_blocks,
        turn.blocks_on_disk,
        turn.disk_bytes,
        turn.durable,
        turn.resident_tokens,
        turn.kept,
        turn.host_bytes,
        turn.device_bytes,
        turn.attention if turn.HasField("attention") else None,
        SEAL_STATE.read(turn.sealed, "turn.sealed", SealState.OPEN),
        turn.forgotten,
    )


def span_to_pb(span: RecalledSpan) -> memory_pb2.RecalledSpan:
    """Return the wire form of a recalled span."""
    return memory_pb2.RecalledSpan(**asdict(span))


def span_from_pb(span: memory_pb2.RecalledSpan) -> RecalledSpan:
    """Return the recalled span."""
    return RecalledSpan(span.turn_index, span.first_token, span.n_tokens, span.text, span.weight)


def forget_to_pb(session_id: str, targets: Iterable[ForgetTarget]) -> memory_pb2.ForgetRequest:
    """Return the request that forgets ``targets``."""
    with encoding("messages"):
        return memory_pb2.ForgetRequest(session_id=session_id, messages=[memory_pb2.ForgetTarget(**asdict(target)) for target in targets])


def forget_from_pb(request: memory_pb2.ForgetRequest) -> tuple[ForgetTarget, ...]:
    """Return what to forget. Raises InvalidInput for a target that names no message."""
    for i, target in enumerate(request.messages):
        if not target.HasField("message_index"):
            raise InvalidInput(f"messages[{i}].message_index is not set; allowed: which of the turn's messages, 0 or more")
    return tuple(ForgetTarget(target.turn_index, target.message_index) for target in request.messages)


def prefix_to_pb(prefix: PrefixInfo) -> admin_pb2.Prefix:
    """Return the wire form of a shared prefix."""
    return admin_pb2.Prefix(
        hash=prefix.hash_hex, tokens=prefix.tokens, sessions=prefix.sessions, bytes=prefix.bytes, tier=TIER[prefix.tier]
    )


def prefix_from_pb(prefix: admin_pb2.Prefix) -> PrefixInfo:
    """Return the shared prefix."""
    return PrefixInfo(prefix.hash, prefix.tokens, prefix.sessions, prefix.bytes, TIER.read(prefix.tier, "prefix.tier"))


def stats_to_pb(stats: ServerStats) -> admin_pb2.GetStatsResponse:
    """Return the wire form of a replica's numbers."""
    return admin_pb2.GetStatsResponse(**asdict(stats))


def stats_from_pb(stats: admin_pb2.GetStatsResponse) -> ServerStats:
    """Return a replica's numbers."""
    return ServerStats(**{name: getattr(stats, name) for name in ServerStats.__dataclass_fields__})


def placement_to_pb(placement: Placement) -> admin_pb2.GetPlacementResponse:
    """Return the wire form of a placement."""
    replica = admin_pb2.Replica(replica_id=placement.replica_id, address=placement.address, local=placement.local)
    return admin_pb2.GetPlacementResponse(replica=replica, epoch=placement.epoch)


def placement_from_pb(response: admin_pb2.GetPlacementResponse) -> Placement:
    """Return the placement."""
    replica = response.replica
    return Placement(replica.replica_id, replica.address, replica.local, response.epoch)
