"""The records that layers hand to each other. Frozen, slotted, free of torch, grpc and protobuf."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from agentmem.errors import InvalidInput

TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)
RequestId = NewType("RequestId", str)
Fingerprint = NewType("Fingerprint", str)
BlockHash = NewType("BlockHash", bytes)  # 32 bytes of blake3

ROLES = ("system", "user", "assistant", "tool")


class Fidelity(StrEnum):
    """What a forward pass attends to (DESIGN 2)."""

    AUTO = "auto"
    EXACT = "exact"
    RECALL = "recall"
    COMPACT = "compact"


class Prefill(StrEnum):
    """What prompt tokens attend to in a RECALL or COMPACT session: everything, or what generated tokens see (token by token)."""

    EXACT = "exact"
    VIEW = "view"


class SessionFormat(StrEnum):
    """CHAT renders messages with the model's template; RAW takes text or token ids as they are."""

    CHAT = "chat"
    RAW = "raw"


class FinishReason(StrEnum):
    """Why a reply ended."""

    STOP = "stop"  # the model's end token, or one of the request's stop tokens
    STOP_STRING = "stop_string"
    LENGTH = "length"  # max_tokens
    CONTEXT_FULL = "context_full"  # the model's trained length or the memory reserved
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class MissReason(StrEnum):
    """Why the first token that had to be computed was not read from somewhere."""

    NONE = "none"  # nothing had to be computed but the tokens of this call
    NEW = "new"  # never seen before
    EVICTED = "evicted"
    MISSING = "missing"  # promised by the metadata, not on disk
    CORRUPT = "corrupt"
    HISTORY_CHANGED = "history_changed"
    TEMPLATE_CHANGED = "template_changed"
    MODEL_CHANGED = "model_changed"
    PARTIAL_BLOCK = "partial_block"  # the tail of the history does not fill a block, so it was not archived
    QUANTISED = "quantised"  # the archive holds it at lower precision, and the call asked for exact
    FORGOTTEN = "forgotten"  # an earlier message was forgotten, so what came after is computed again


class Tier(StrEnum):
    """Where the K and V of a token were read from."""

    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    PEER = "peer"


class TurnState(StrEnum):
    """OPEN turns take more messages; SEALED turns have ended."""

    OPEN = "open"
    SEALED = "sealed"


class Tail(StrEnum):
    """How a session's token ids end, which decides what the template must add before the next message."""

    EMPTY = "empty"  # no tokens yet
    CLOSED = "closed"  # after a message that the template closed
    REPLY = "reply"  # after generated tokens, with or without the model's end token


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the assistant made. ``arguments`` is a JSON text, kept as it was written."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may call. ``parameters`` is a JSON schema as text."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. ``tool_call_id`` names the call that a tool message answers."""

    role: str
    content: str
    name: str = ""
    tool_call_id: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        """Raise InvalidInput for an unknown role or text that UTF-8 cannot hold."""
        if self.role not in ROLES:
            raise InvalidInput(f"message role {self.role!r} is not one of {', '.join(ROLES)}")
        try:
            self.content.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"message content holds a lone surrogate at character {error.start}") from error


@dataclass(frozen=True, slots=True)
class TurnInput:
    """What a call adds to a session: messages (CHAT), or text or token ids (RAW). All empty adds nothing.

    ``full_history``: ``messages`` is the whole conversation; it is matched against the ledger and only what is new is added.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""
    token_ids: tuple[int, ...] = ()
    full_history: bool = False


def _check(name: str, ok: bool, value: object, allowed: str) -> None:
    if not ok:
        raise InvalidInput(f"{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. ``temperature`` 0 is greedy; the seed makes a sampled reply repeatable.

    ``logprobs``: None for none, n for the chosen token and the n likeliest (0 to 20), of the model's own distribution.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidInput naming the field, its value and what is allowed."""
        finite = all(map(math.isfinite, (self.temperature, self.top_p, self.min_p, self.repetition_penalty)))
        _check("sampling", finite, "not finite", "finite numbers")
        _check("temperature", 0.0 <= self.temperature <= 100.0, self.temperature, "0 (greedy) to 100")
        _check("top_k", self.top_k >= 0, self.top_k, "0 (off) or more")
        _check("top_p", 0.0 < self.top_p <= 1.0, self.top_p, "above 0, up to 1 (off)")
        _check("min_p", 0.0 <= self.min_p < 1.0, self.min_p, "0 (off) to below 1")
        _check("repetition_penalty", 0.0 < self.repetition_penalty <= 100.0, self.repetition_penalty, "above 0 to 100; 1 is off")
        _check("seed", self.seed is None or 0 <= self.seed < 2**63, self.seed, "0 to 2**63 - 1")
        _check("max_tokens", 1 <= self.max_tokens <= 1_000_000, self.max_tokens, "1 to 1000000")
        stops_fit = len(self.stop) <= 16 and all(0 < len(s) <= 1000 for s in self.stop)
        _check("stop", stops_fit, self.stop, "up to 16 strings of 1 to 1000 characters")
        _check("stop_token_ids", len(self.stop_token_ids) <= 256, len(self.stop_token_ids), "up to 256 ids")
        _check("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, self.logprobs, "none, or 0 to 20")


@dataclass(frozen=True, slots=True)
class Policy:
    """How a session's memory is kept.

    ``compressor`` chooses the share ``keep`` of sealed tokens that stays resident, per layer and KV head. ``recall`` names the method that
    fetches up to ``recall_tokens`` archived tokens for each KV head in each step; it searches at least every ``stride`` steps, in all
    layers but the first ``dense_layers``, which attend to everything; ``bits`` is the length of a key's hash code. ``objective``: least
    top-1 agreement of a turn; below it ``keep`` and ``recall_tokens`` grow for the next turn. 0: they stay as they are.

    ``drafter`` proposes up to ``draft_tokens`` tokens a step for verification, ``auto``: whichever pays, if any. It never changes a reply.
    """

    fidelity: Fidelity = Fidelity.AUTO
    compressor: str = "keydiff"
    keep: float = 0.1
    recall: str = "lsh"
    recall_tokens: int = 256
    bits: int = 256
    stride: int = 8
    dense_layers: int = 0
    prefill: Prefill = Prefill.EXACT
    reencode: bool = True
    objective: float = 0.95
    drafter: str = "auto"
    draft_tokens: int = 16

    def __post_init__(self) -> None:
        """Raise InvalidInput naming the field, its value and what is allowed. Names of methods are checked by their registries."""
        _check("policy.keep", 0.0 < self.keep <= 1.0, self.keep, "above 0, up to 1 (everything stays)")
        _check("policy.recall_tokens", 1 <= self.recall_tokens <= 65_536, self.recall_tokens, "1 to 65536; recall 'none' turns it off")
        _check("policy.bits", self.bits % 64 == 0 and 64 <= self.bits <= 1024, self.bits, "64 to 1024, a multiple of 64")
        _check("policy.stride", 1 <= self.stride <= 64, self.stride, "1 to 64 steps")
        _check("policy.dense_layers", 0 <= self.dense_layers <= 1024, self.dense_layers, "0 to 1024")
        _check("policy.draft_tokens", 1 <= self.draft_tokens <= 64, self.draft_tokens, "1 to 64; drafter 'none' turns it off")
        _check("policy.objective", 0.0 <= self.objective <= 1.0, self.objective, "0 (budgets stay) to 1")


@dataclass(frozen=True, slots=True)
class FidelityReport:
    """How close a sealed turn's reply came to what the full cache would have said, from the exact re-encode (DESIGN 7).

    ``tokens``: generated tokens compared; those of exact steps are equal by construction and left out. KL is KL(exact || decoded) in nats;
    ``worst_position`` the session position of the token that was predicted worst. ``attended``: mean share of the context that a decode
    step attended to. ``keep`` and ``recall_tokens`` are the budgets the turn ran with, ``next_*`` those of the next. ``reference`` is what
    "exact" means: ``full cache``, or the quantised archive that had to stand in for it.
    """

    tokens: int = 0
    top1_agreement: float = 1.0
    mean_kl: float = 0.0
    max_kl: float = 0.0
    worst_position: int | None = None
    attended: float = 1.0
    keep: float = 1.0
    recall_tokens: int = 0
    next_keep: float = 1.0
    next_recall_tokens: int = 0
    reencoded: bool = True
    reference: str = "full cache"


@dataclass(frozen=True, slots=True)
class ReuseReport:
    """Where the context's tokens came from. ``detail`` explains ``reason``, e.g. ``message 7``. Counts are tokens."""

    device: int = 0
    host: int = 0
    disk: int = 0
    peer: int = 0
    computed: int = 0
    reason: MissReason = MissReason.NONE
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. Times in seconds from the moment the server accepted the call; tokens as counts.

    ``input_tokens`` are the tokens this call added before the reply, ``context_tokens`` all that the reply attended to first.
    """

    input_tokens: int = 0
    context_tokens: int = 0
    output_tokens: int = 0
    queue_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    steps: int = 0
    attended: float = 1.0  # mean share of the context's tokens that a decode step attended to
    drafted: int = 0  # tokens that were proposed for verification
    accepted: int = 0  # those of them that became part of the reply


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token, natural logarithm."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What stays of a message that was forgotten: that it was there, never what it said.

    ``tokens``: how many it had. ``digest`` tells whether a message that comes again is the same; under a secret of the server, so that
    nobody can find out by trying. ``forgotten_at`` in seconds since the epoch.
    """

    message_index: int
    role: str
    tokens: int
    digest: str
    forgotten_at: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One ledger row. ``messages`` are in order, the assistant's reply last (in RAW sessions alone); ``token_ids`` only this turn's.

    A message that was ``forgotten`` keeps its place, empty, so that the indexes of the others stay.

    Turn 0 is the prelude: the system prompt and the tools. ``finish_reason`` is None while nothing was generated.
    ``input_digest`` identifies what a request asked for, so that its ``request_id`` cannot be reused for something else.
    """

    index: int
    messages: tuple[Message, ...] = ()
    token_ids: tuple[int, ...] = ()
    state: TurnState = TurnState.OPEN
    reply_start: int | None = None  # offset in token_ids of the first generated token
    finish_reason: FinishReason | None = None
    fidelity: Fidelity = Fidelity.EXACT
    request_id: RequestId | None = None
    input_digest: str = ""
    usage: Usage = field(default_factory=Usage)
    reuse: ReuseReport = field(default_factory=ReuseReport)
    created_at: float = 0.0  # seconds since the epoch
    report: FidelityReport | None = None  # None until the turn is sealed
    forgotten: tuple[Forgotten, ...] = ()  # in order of message_index

    @property
    def remembered(self) -> tuple[Message, ...]:
        """The messages that were not forgotten."""
        gone = {entry.message_index for entry in self.forgotten}
        return tuple(message for index, message in enumerate(self.messages) if index not in gone)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What the ledger knows of a session, its turns apart. Times in seconds since the epoch; ``ttl_seconds`` 0: never."""

    id: SessionId
    tenant: TenantId
    fingerprint: Fingerprint  # whole model identity
    tokenizer_hash: str  # what the token ids mean
    format: SessionFormat = SessionFormat.CHAT
    system: str = ""
    tools: tuple[ToolSpec, ...] = ()
    policy: Policy = field(default_factory=Policy)
    labels: dict[str, str] = field(default_factory=dict)
    ttl_seconds: float = 0.0
    pinned: bool = False
    parent: SessionId | None = None
    parent_turn: int | None = None
    epoch: int = 1
    created_at: float = 0.0
    updated_at: float = 0.0
    expires_at: float = 0.0  # 0: never
