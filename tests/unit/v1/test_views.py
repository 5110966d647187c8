from __future__ import annotations

import pytest

from agentmem.errors import InvalidInput
from agentmem.types import Fidelity, Fingerprint, Policy, SessionFormat, SessionId, SessionRecord, TenantId, Tier, ToolSpec, Turn
from agentmem.v1 import memory_pb2, session_pb2, types_pb2, views
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

RECORD = SessionRecord(
    id=SessionId("s"),
    tenant=TenantId("t"),
    fingerprint=Fingerprint("f"),
    tokenizer_hash="h",
    format=SessionFormat.RAW,
    system="sys",
    tools=(ToolSpec("n", "d", "{}"),),
    policy=Policy(Fidelity.EXACT, compressor="knorm", keep=0.5),
    labels={"a": "b"},
    ttl_seconds=1.5,
    pinned=True,
    parent=SessionId("p"),
    parent_turn=0,
    epoch=7,
    created_at=1.0,
    updated_at=2.0,
    expires_at=3.0,
)
INFO = SessionInfo(
    RECORD,
    1,
    2,
    open_turn=True,
    busy=True,
    durable=False,
    device_bytes=3,
    disk_bytes=4,
    device_tokens=5,
    fidelity=Fidelity.RECALL,
    resident_tokens=6,
    sealed_tokens=7,
    host_bytes=8,
    exact=False,
)
BARE = SessionInfo(SessionRecord(SessionId("s"), TenantId("t"), Fingerprint("f"), "h"))
SPEC = SessionSpec("s", SessionFormat.RAW, "x", (ToolSpec("n", "d", "p"),), Policy(Fidelity.COMPACT), 2.5, {"a": "b"}, pinned=True)


@pytest.mark.parametrize("info", [INFO, BARE])
def test_sessions(info: SessionInfo) -> None:
    """A session survives the wire, with everything set and with nothing set."""
    assert info == views.session_from_pb(types_pb2.Session.FromString(views.session_to_pb(info).SerializeToString()))


@pytest.mark.parametrize("spec", [SPEC, SessionSpec()])
def test_specs(spec: SessionSpec) -> None:
    """What a new session shall be survives the wire."""
    assert spec == views.spec_from_pb(views.spec_to_pb(spec))


@pytest.mark.parametrize(
    "patch",
    [SessionPatch(), SessionPatch(0.0, pinned=False, policy=Policy(), labels={}), SessionPatch(1.0, pinned=True, labels={"a": "b"})],
)
def test_patches(patch: SessionPatch) -> None:
    """None and zero stay apart."""
    request = session_pb2.UpdateSessionRequest.FromString(views.patch_to_pb("s", patch).SerializeToString())
    assert ("s", patch) == (request.session_id, views.patch_from_pb(request))


@pytest.mark.parametrize("turn_index", [None, 0, 3])
@pytest.mark.parametrize("kind", ChangeKind)
def test_changes(kind: ChangeKind, turn_index: int | None) -> None:
    """Every kind of change survives the wire."""
    change = SessionChange(kind, turn_index, INFO)
    assert change == views.change_from_pb(views.change_to_pb(change))


def test_a_kind_of_change_that_only_the_other_side_knows() -> None:
    """An unknown kind is a change nevertheless: something was updated."""
    message = views.change_to_pb(SessionChange("dreamt", None, INFO))
    assert session_pb2.CHANGE_KIND_UNSPECIFIED == message.kind
    assert ChangeKind.UPDATED == views.change_from_pb(message).kind
    message.MergeFromString(b"\x08\x63")  # kind 99
    assert ChangeKind.UPDATED == views.change_from_pb(message).kind


def test_reports() -> None:
    """The smaller answers survive the wire."""
    report, result = DeleteReport(1, 2, 3, 4), AppendResult(1, 2, 3, durable=True)
    prefix, place = PrefixInfo("ab", 1, 2, 3, Tier.HOST), Placement("r", "h:1", local=True, epoch=5)
    turn = TurnInfo(Turn(1, token_ids=(1, 2)), 2, 3, 4, 5, False, 6, 0.25, 7, 8, None, SealState.PARKED, 9)  # noqa: FBT003 -- in order
    stats = ServerStats("v", "m", "f", 0.5, *range(1, 16), True, *range(16, 31), 0.25, 1.5)  # noqa: FBT003 -- in order
    span = RecalledSpan(1, 2, 3, "text", 0.5)
    assert report == views.delete_report_from_pb(views.delete_report_to_pb(report))
    assert result == views.append_result_from_pb(views.append_result_to_pb(result))
    assert prefix == views.prefix_from_pb(views.prefix_to_pb(prefix))
    assert place == views.placement_from_pb(views.placement_to_pb(place))
    assert turn == views.turn_info_from_pb(views.turn_info_to_pb(turn, messages=True, token_ids=True))
    assert stats == views.stats_from_pb(views.stats_to_pb(stats))
    assert span == views.span_from_pb(views.span_to_pb(span))


@pytest.mark.parametrize("attention", [None, 0.0, 0.5])
def test_no_attention_is_not_zero_attention(attention: float | None) -> None:
    """A turn that gets none and a turn that nobody asked about stay apart."""
    turn = TurnInfo(Turn(1), attention=attention)
    wire = memory_pb2.TurnInspection.FromString(views.turn_info_to_pb(turn, messages=True, token_ids=True).SerializeToString())
    assert turn == views.turn_info_from_pb(wire)


@pytest.mark.parametrize("state", SealState)
def test_seal_states(state: SealState) -> None:
    """Every state survives the wire."""
    assert state is views.turn_info_from_pb(views.turn_info_to_pb(TurnInfo(Turn(1), sealed=state), messages=True, token_ids=True)).sealed


def test_forgetting() -> None:
    """The messages survive the wire in order, the first of a turn too; what fits no number is refused before anything is sent."""
    targets = (ForgetTarget(1, 0), ForgetTarget(2, 3), ForgetTarget(1, 0))
    request = memory_pb2.ForgetRequest.FromString(views.forget_to_pb("s", targets).SerializeToString())
    assert ("s", targets) == (request.session_id, views.forget_from_pb(request))
    with pytest.raises(InvalidInput, match="messages holds a value that cannot be sent"):
        views.forget_to_pb("s", [ForgetTarget(2**31, 0)])


@pytest.mark.parametrize("labels", [{"a": "\ud800"}, {"\ud800": "a"}])
def test_labels_that_the_wire_cannot_carry(labels: dict[str, str]) -> None:
    """Lone surrogates are refused before anything is sent."""
    with pytest.raises(InvalidInput, match="labels holds a lone surrogate"):
        views.labels_to_pb(labels)
    with pytest.raises(InvalidInput, match="labels holds a lone surrogate"):
        views.patch_to_pb("s", SessionPatch(labels=labels))
    with pytest.raises(InvalidInput, match="session holds a lone surrogate"):
        views.spec_to_pb(SessionSpec(labels=labels))
