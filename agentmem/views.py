"""What the session manager takes and answers. Shared by sessions, the API and the clients; free of torch, grpc and protobuf."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from agentmem.types import Fidelity, Policy, SessionFormat, SessionRecord, Tier, ToolSpec, Turn


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
    """A session and how it stands now. ``durable``: everything acknowledged survives a crash.

    ``fidelity``: what the next reply would run with, AUTO resolved. ``resident_tokens``: mean over layers and KV heads of the sealed tokens
    that stay on the device under RECALL and COMPACT. ``exact``: False while tokens made under an approximate view wait for their re-encode,
    or what came after a forgotten message does.
    """

    record: SessionRecord
    n_turns: int = 0  # the prelude included
    n_tokens: int = 0
    open_turn: bool = False
    busy: bool = False
    durable: bool = True
    device_bytes: int = 0
    disk_bytes: int = 0  # blocks shared with other sessions included
    device_tokens: int = 0
    fidelity: Fidelity = Fidelity.EXACT
    resident_tokens: int = 0
    sealed_tokens: int = 0  # compressed and indexed, counted from the session's start
    host_bytes: int = 0
    exact: bool = True


class SealState(StrEnum):
    """How far the background work on a turn's tokens has come."""

    OPEN = "open"  # nothing to do yet: the turn is open, or its tokens lie in the recent window
    QUEUED = "queued"  # waits for its re-encode or a seal job
    SEALED = "sealed"  # re-encoded where needed, compressed and indexed
    PARKED = "parked"  # its seal job failed too often and is left alone; the turn is served without it


@dataclass(frozen=True, slots=True)
class TurnInfo:
    """A turn and where its K and V are. ``n_tokens`` counts also where ``turn.token_ids`` were left out of an answer.

    ``kept``: share of its tokens that stays resident. ``attention``: share of the session's attention that goes to this turn, 0 to 1,
    None where it was not asked for or measured. ``forgotten``: number of its messages that were forgotten.
    """

    turn: Turn
    n_tokens: int = 0
    n_blocks: int = 0
    blocks_on_disk: int = 0
    disk_bytes: int = 0
    durable: bool = True
    resident_tokens: int = 0
    kept: float = 1.0
    host_bytes: int = 0
    device_bytes: int = 0
    attention: float | None = None
    sealed: SealState = SealState.OPEN
    forgotten: int = 0


@dataclass(frozen=True, slots=True)
class RecalledSpan:
    """Consecutive tokens that a recalled text attends to. ``first_token`` counts from the session's start; ``weight`` is 0 to 1."""

    turn_index: int
    first_token: int
    n_tokens: int
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class ForgetTarget:
    """A message to forget: ``message_index`` counts the messages of turn ``turn_index`` from 0. Turn 0, the prelude, stays."""

    turn_index: int
    message_index: int


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
    host_bytes_used: int = 0
    host_bytes_budget: int = 0
    disk_bytes_used: int = 0  # blocks and the results of seal jobs
    disk_bytes_budget: int = 0
    index_bytes: int = 0  # host memory of the recall indexes
    resident_bytes: int = 0  # device memory of what stays of sealed turns
    result_bytes: int = 0  # files of seal jobs, part of disk_bytes_used
    blocks_evicted: int = 0  # from disk, to keep its budget
    seal_queue: int = 0  # turns that wait for their re-encode or a seal job
    seals_done: int = 0
    seals_parked: int = 0  # seal jobs that failed too often and are left alone
    tokens_reencoded: int = 0
    workers_alive: int = 0  # worker processes that were heard from in time
    tokens_drafted: int = 0  # verified ahead, guessed or forced by a grammar
    tokens_accepted: int = 0  # those of them that became output
    guided_seconds: float = 0.0  # that grammars took on the engine thread: asked what may come, and masking logits
    guided_step_seconds: float = 0.0  # of the steps with a reply under a grammar, all that they did


@dataclass(frozen=True, slots=True)
class Placement:
    """Which replica serves a session. ``epoch`` 0 where no session was named."""

    replica_id: str
    address: str
    local: bool
    epoch: int = 0
