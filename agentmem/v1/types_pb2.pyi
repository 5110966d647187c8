from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Fidelity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIDELITY_UNSPECIFIED: _ClassVar[Fidelity]
    FIDELITY_AUTO: _ClassVar[Fidelity]
    FIDELITY_EXACT: _ClassVar[Fidelity]
    FIDELITY_RECALL: _ClassVar[Fidelity]
    FIDELITY_COMPACT: _ClassVar[Fidelity]

class SessionFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_FORMAT_UNSPECIFIED: _ClassVar[SessionFormat]
    SESSION_FORMAT_CHAT: _ClassVar[SessionFormat]
    SESSION_FORMAT_RAW: _ClassVar[SessionFormat]

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SYSTEM: _ClassVar[Role]
    ROLE_USER: _ClassVar[Role]
    ROLE_ASSISTANT: _ClassVar[Role]
    ROLE_TOOL: _ClassVar[Role]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_STOP_STRING: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CONTEXT_FULL: _ClassVar[FinishReason]
    FINISH_REASON_TOOL_CALLS: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_DEADLINE: _ClassVar[FinishReason]

class MissReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISS_REASON_UNSPECIFIED: _ClassVar[MissReason]
    MISS_REASON_NONE: _ClassVar[MissReason]
    MISS_REASON_NEW: _ClassVar[MissReason]
    MISS_REASON_EVICTED: _ClassVar[MissReason]
    MISS_REASON_MISSING: _ClassVar[MissReason]
    MISS_REASON_CORRUPT: _ClassVar[MissReason]
    MISS_REASON_HISTORY_CHANGED: _ClassVar[MissReason]
    MISS_REASON_TEMPLATE_CHANGED: _ClassVar[MissReason]
    MISS_REASON_MODEL_CHANGED: _ClassVar[MissReason]
    MISS_REASON_PARTIAL_BLOCK: _ClassVar[MissReason]
    MISS_REASON_QUANTISED: _ClassVar[MissReason]
    MISS_REASON_FORGOTTEN: _ClassVar[MissReason]

class Prefill(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREFILL_UNSPECIFIED: _ClassVar[Prefill]
    PREFILL_EXACT: _ClassVar[Prefill]
    PREFILL_VIEW: _ClassVar[Prefill]

class Tier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_UNSPECIFIED: _ClassVar[Tier]
    TIER_DEVICE: _ClassVar[Tier]
    TIER_HOST: _ClassVar[Tier]
    TIER_DISK: _ClassVar[Tier]
    TIER_PEER: _ClassVar[Tier]

class TurnState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TURN_STATE_UNSPECIFIED: _ClassVar[TurnState]
    TURN_STATE_OPEN: _ClassVar[TurnState]
    TURN_STATE_SEALED: _ClassVar[TurnState]

class ToolMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOOL_MODE_UNSPECIFIED: _ClassVar[ToolMode]
    TOOL_MODE_AUTO: _ClassVar[ToolMode]
    TOOL_MODE_NONE: _ClassVar[ToolMode]
    TOOL_MODE_REQUIRED: _ClassVar[ToolMode]
    TOOL_MODE_NAMED: _ClassVar[ToolMode]

class FormatKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FORMAT_KIND_UNSPECIFIED: _ClassVar[FormatKind]
    FORMAT_KIND_TEXT: _ClassVar[FormatKind]
    FORMAT_KIND_JSON_OBJECT: _ClassVar[FormatKind]
    FORMAT_KIND_JSON_SCHEMA: _ClassVar[FormatKind]
    FORMAT_KIND_REGEX: _ClassVar[FormatKind]
    FORMAT_KIND_LARK: _ClassVar[FormatKind]
FIDELITY_UNSPECIFIED: Fidelity
FIDELITY_AUTO: Fidelity
FIDELITY_EXACT: Fidelity
FIDELITY_RECALL: Fidelity
FIDELITY_COMPACT: Fidelity
SESSION_FORMAT_UNSPECIFIED: SessionFormat
SESSION_FORMAT_CHAT: SessionFormat
SESSION_FORMAT_RAW: SessionFormat
ROLE_UNSPECIFIED: Role
ROLE_SYSTEM: Role
ROLE_USER: Role
ROLE_ASSISTANT: Role
ROLE_TOOL: Role
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_STOP_STRING: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CONTEXT_FULL: FinishReason
FINISH_REASON_TOOL_CALLS: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_DEADLINE: FinishReason
MISS_REASON_UNSPECIFIED: MissReason
MISS_REASON_NONE: MissReason
MISS_REASON_NEW: MissReason
MISS_REASON_EVICTED: MissReason
MISS_REASON_MISSING: MissReason
MISS_REASON_CORRUPT: MissReason
MISS_REASON_HISTORY_CHANGED: MissReason
MISS_REASON_TEMPLATE_CHANGED: MissReason
MISS_REASON_MODEL_CHANGED: MissReason
MISS_REASON_PARTIAL_BLOCK: MissReason
MISS_REASON_QUANTISED: MissReason
MISS_REASON_FORGOTTEN: MissReason
PREFILL_UNSPECIFIED: Prefill
PREFILL_EXACT: Prefill
PREFILL_VIEW: Prefill
TIER_UNSPECIFIED: Tier
TIER_DEVICE: Tier
TIER_HOST: Tier
TIER_DISK: Tier
TIER_PEER: Tier
TURN_STATE_UNSPECIFIED: TurnState
TURN_STATE_OPEN: TurnState
TURN_STATE_SEALED: TurnState
TOOL_MODE_UNSPECIFIED: ToolMode
TOOL_MODE_AUTO: ToolMode
TOOL_MODE_NONE: ToolMode
TOOL_MODE_REQUIRED: ToolMode
TOOL_MODE_NAMED: ToolMode
FORMAT_KIND_UNSPECIFIED: FormatKind
FORMAT_KIND_TEXT: FormatKind
FORMAT_KIND_JSON_OBJECT: FormatKind
FORMAT_KIND_JSON_SCHEMA: FormatKind
FORMAT_KIND_REGEX: FormatKind
FORMAT_KIND_LARK: FormatKind

class ToolCall(_message.Message):
    __slots__ = ("id", "name", "arguments")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    arguments: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class ToolSpec(_message.Message):
    __slots__ = ("name", "description", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "content", "name", "tool_call_id", "tool_calls")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    content: str
    name: str
    tool_call_id: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCall]
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., content: _Optional[str] = ..., name: _Optional[str] = ..., tool_call_id: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCall, _Mapping]]] = ...) -> None: ...

class ToolChoice(_message.Message):
    __slots__ = ("mode", "name", "parallel")
    MODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    mode: ToolMode
    name: str
    parallel: bool
    def __init__(self, mode: _Optional[_Union[ToolMode, str]] = ..., name: _Optional[str] = ..., parallel: bool = ...) -> None: ...

class ResponseFormat(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: FormatKind
    text: str
    def __init__(self, kind: _Optional[_Union[FormatKind, str]] = ..., text: _Optional[str] = ...) -> None: ...

class CallDelta(_message.Message):
    __slots__ = ("index", "id", "name", "arguments")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments: _Optional[str] = ...) -> None: ...

class TurnInput(_message.Message):
    __slots__ = ("messages", "text", "token_ids", "full_history")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FULL_HISTORY_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    full_history: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., full_history: bool = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens", "stop", "stop_token_ids", "logprobs", "ignore_eos")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: int
    ignore_eos: bool
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[int] = ..., ignore_eos: bool = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("fidelity", "compressor", "keep", "recall", "recall_tokens", "bits", "stride", "dense_layers", "prefill", "reencode", "objective", "drafter", "draft_tokens")
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    COMPRESSOR_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    RECALL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    DENSE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    REENCODE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    fidelity: Fidelity
    compressor: str
    keep: float
    recall: str
    recall_tokens: int
    bits: int
    stride: int
    dense_layers: int
    prefill: Prefill
    reencode: bool
    objective: float
    drafter: str
    draft_tokens: int
    def __init__(self, fidelity: _Optional[_Union[Fidelity, str]] = ..., compressor: _Optional[str] = ..., keep: _Optional[float] = ..., recall: _Optional[str] = ..., recall_tokens: _Optional[int] = ..., bits: _Optional[int] = ..., stride: _Optional[int] = ..., dense_layers: _Optional[int] = ..., prefill: _Optional[_Union[Prefill, str]] = ..., reencode: bool = ..., objective: _Optional[float] = ..., drafter: _Optional[str] = ..., draft_tokens: _Optional[int] = ...) -> None: ...

class FidelityReport(_message.Message):
    __slots__ = ("tokens", "top1_agreement", "mean_kl", "max_kl", "worst_position", "attended", "keep", "recall_tokens", "next_keep", "next_recall_tokens", "reencoded", "reference")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_KL_FIELD_NUMBER: _ClassVar[int]
    MAX_KL_FIELD_NUMBER: _ClassVar[int]
    WORST_POSITION_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    RECALL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_KEEP_FIELD_NUMBER: _ClassVar[int]
    NEXT_RECALL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REENCODED_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    top1_agreement: float
    mean_kl: float
    max_kl: float
    worst_position: int
    attended: float
    keep: float
    recall_tokens: int
    next_keep: float
    next_recall_tokens: int
    reencoded: bool
    reference: str
    def __init__(self, tokens: _Optional[int] = ..., top1_agreement: _Optional[float] = ..., mean_kl: _Optional[float] = ..., max_kl: _Optional[float] = ..., worst_position: _Optional[int] = ..., attended: _Optional[float] = ..., keep: _Optional[float] = ..., recall_tokens: _Optional[int] = ..., next_keep: _Optional[float] = ..., next_recall_tokens: _Optional[int] = ..., reencoded: bool = ..., reference: _Optional[str] = ...) -> None: ...

class ReuseReport(_message.Message):
    __slots__ = ("device", "host", "disk", "peer", "computed", "reason", "detail")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    device: int
    host: int
    disk: int
    peer: int
    computed: int
    reason: MissReason
    detail: str
    def __init__(self, device: _Optional[int] = ..., host: _Optional[int] = ..., disk: _Optional[int] = ..., peer: _Optional[int] = ..., computed: _Optional[int] = ..., reason: _Optional[_Union[MissReason, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("input_tokens", "context_tokens", "output_tokens", "queue_seconds", "first_token_seconds", "total_seconds", "steps", "attended", "drafted", "accepted")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ATTENDED_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    context_tokens: int
    output_tokens: int
    queue_seconds: float
    first_token_seconds: float
    total_seconds: float
    steps: int
    attended: float
    drafted: int
    accepted: int
    def __init__(self, input_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., first_token_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., steps: _Optional[int] = ..., attended: _Optional[float] = ..., drafted: _Optional[int] = ..., accepted: _Optional[int] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("token_id", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class TopLogprobs(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("index", "messages", "token_ids", "state", "reply_start", "finish_reason", "fidelity", "request_id", "usage", "reuse", "created_at", "report")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPLY_START_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    index: int
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    state: TurnState
    reply_start: int
    finish_reason: FinishReason
    fidelity: Fidelity
    request_id: str
    usage: Usage
    reuse: ReuseReport
    created_at: float
    report: FidelityReport
    def __init__(self, index: _Optional[int] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., state: _Optional[_Union[TurnState, str]] = ..., reply_start: _Optional[int] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., request_id: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., reuse: _Optional[_Union[ReuseReport, _Mapping]] = ..., created_at: _Optional[float] = ..., report: _Optional[_Union[FidelityReport, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "tenant", "format", "system", "tools", "policy", "labels", "ttl_seconds", "pinned", "parent", "parent_turn", "created_at", "updated_at", "expires_at", "fingerprint", "tokenizer_hash", "epoch", "n_turns", "n_tokens", "open_turn", "busy", "durable", "device_bytes", "disk_bytes", "device_tokens", "fidelity", "resident_tokens", "sealed_tokens", "host_bytes", "exact")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PARENT_TURN_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_HASH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    N_TURNS_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OPEN_TURN_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEALED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    tenant: str
    format: SessionFormat
    system: str
    tools: _containers.RepeatedCompositeFieldContainer[ToolSpec]
    policy: Policy
    labels: _containers.ScalarMap[str, str]
    ttl_seconds: float
    pinned: bool
    parent: str
    parent_turn: int
    created_at: float
    updated_at: float
    expires_at: float
    fingerprint: str
    tokenizer_hash: str
    epoch: int
    n_turns: int
    n_tokens: int
    open_turn: bool
    busy: bool
    durable: bool
    device_bytes: int
    disk_bytes: int
    device_tokens: int
    fidelity: Fidelity
    resident_tokens: int
    sealed_tokens: int
    host_bytes: int
    exact: bool
    def __init__(self, session_id: _Optional[str] = ..., tenant: _Optional[str] = ..., format: _Optional[_Union[SessionFormat, str]] = ..., system: _Optional[str] = ..., tools: _Optional[_Iterable[_Union[ToolSpec, _Mapping]]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., ttl_seconds: _Optional[float] = ..., pinned: bool = ..., parent: _Optional[str] = ..., parent_turn: _Optional[int] = ..., created_at: _Optional[float] = ..., updated_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., fingerprint: _Optional[str] = ..., tokenizer_hash: _Optional[str] = ..., epoch: _Optional[int] = ..., n_turns: _Optional[int] = ..., n_tokens: _Optional[int] = ..., open_turn: bool = ..., busy: bool = ..., durable: bool = ..., device_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., device_tokens: _Optional[int] = ..., fidelity: _Optional[_Union[Fidelity, str]] = ..., resident_tokens: _Optional[int] = ..., sealed_tokens: _Optional[int] = ..., host_bytes: _Optional[int] = ..., exact: bool = ...) -> None: ...
