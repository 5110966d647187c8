"""What the session manager takes and answers. Shared by sessions, the API and the clients; free of torch, grpc and protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentmem.types import Policy, SessionFormat, SessionRecord, Tier, ToolSpec, Turn


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What a new session shall be. ``session_id`` None: the server makes one up. ``ttl_seconds`` 0: never expires."""

    session_id: str | None = None
    format: SessionFormat = SessionFormat.CHAT
    system: str = ""
    tools: tuple[ToolSpec, ...] = ()
    policy: Policy = field(default_factory=Policy)
    ttl_seconds: float = 0.0
    labels: dict[str, str] = field(default_factory=dict)
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class SessionPatch:
    """What to change in a session; None leaves it as it is."""

    ttl_seconds: float | None = None
    pinned: bool | None = None
    policy: Policy | None = None
    labels: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session and how it stands now. ``durable``: everything acknowledged survives a crash."""

    record: SessionRecord
    n_turns: int = 0  # the prelude included
    n_tokens: int = 0
    open_turn: bool = False
    busy: bool = False
    durable: bool = True
    device_bytes: int = 0
    disk_bytes: int = 0  # blocks shared with other sessions included
    device_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TurnInfo:
    """A turn and where its K and V are. ``n_tokens`` counts also where ``turn.token_ids`` were left out of an answer."""

    turn: Turn
    n_tokens: int = 0
    n_blocks: int = 0
    blocks_on_disk: int = 0
    disk_bytes: int = 0
    durable: bool = True


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What a deletion removed. ``blocks_shared`` stay because other sessions use them."""

    turns: int
    blocks_erased: int
    bytes_erased: int
    blocks_shared: int


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What an append did. ``context_tokens``: tokens in the session afterwards."""

    turn_index: int
    input_tokens: int
    context_tokens: int
    durable: bool


class ChangeKind(StrEnum):
    """What happened to a watched session."""

    SNAPSHOT = "snapshot"  # nothing yet: the state when the watch began
    UPDATED = "updated"  # policy, labels, time to live, pin
    APPENDED = "appended"
    GENERATING = "generating"
    GENERATED = "generated"
    SEALED = "sealed"
    DURABLE = "durable"
    ROLLED_BACK = "rolled_back"
    SPILLED = "spilled"
    DELETED = "deleted"  # the last change
    EXPIRED = "expired"  # the last change


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change of a watched session. ``kind`` is a ChangeKind; another word reaches clients as UNSPECIFIED."""

    kind: str
    turn_index: int | None
    info: SessionInfo


@dataclass(frozen=True, slots=True)
class PrefixInfo:
    """A prefix that sessions of one tenant share. ``tokens`` count from the session's start; ``tier`` is the fastest that holds it."""

    hash_hex: str
    tokens: int
    sessions: int
    bytes: int
    tier: Tier


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A replica's numbers. Token counters count from the start of the process."""

    version: str = ""
    model: str = ""
    fingerprint: str = ""
    uptime_seconds: float = 0.0
    sessions: int = 0  # in the ledger
    sessions_live: int = 0  # with K and V on the device
    running: int = 0
    waiting: int = 0
    kv_bytes_used: int = 0
    kv_bytes_budget: int = 0
    blocks: int = 0
    block_bytes: int = 0
    tokens_prefilled: int = 0
    tokens_generated: int = 0
    tokens_from_device: int = 0
    tokens_from_host: int = 0
    tokens_from_disk: int = 0
    spills: int = 0  # idle branches that gave their memory to one that runs
    steps_failed: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """Which replica serves a session. ``epoch`` 0 where no session was named."""

    replica_id: str
    address: str
    local: bool
    epoch: int = 0
