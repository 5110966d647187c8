from agentmem.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("version", "model", "fingerprint", "uptime_seconds", "sessions", "sessions_live", "running", "waiting", "kv_bytes_used", "kv_bytes_budget", "blocks", "block_bytes", "tokens_prefilled", "tokens_generated", "tokens_from_device", "tokens_from_host", "tokens_from_disk", "draining", "spills", "steps_failed", "host_bytes_used", "host_bytes_budget", "disk_bytes_used", "disk_bytes_budget", "index_bytes", "resident_bytes", "result_bytes", "blocks_evicted", "seal_queue", "seals_done", "seals_parked", "tokens_reencoded", "workers_alive", "tokens_drafted", "tokens_accepted", "guided_seconds", "guided_step_seconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_LIVE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_BUDGET_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PREFILLED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FROM_DEVICE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FROM_HOST_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FROM_DISK_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    SPILLS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FAILED_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_BUDGET_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_USED_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_BUDGET_FIELD_NUMBER: _ClassVar[int]
    INDEX_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_EVICTED_FIELD_NUMBER: _ClassVar[int]
    SEAL_QUEUE_FIELD_NUMBER: _ClassVar[int]
    SEALS_DONE_FIELD_NUMBER: _ClassVar[int]
    SEALS_PARKED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_REENCODED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_ALIVE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_DRAFTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    GUIDED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GUIDED_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    model: str
    fingerprint: str
    uptime_seconds: float
    sessions: int
    sessions_live: int
    running: int
    waiting: int
    kv_bytes_used: int
    kv_bytes_budget: int
    blocks: int
    block_bytes: int
    tokens_prefilled: int
    tokens_generated: int
    tokens_from_device: int
    tokens_from_host: int
    tokens_from_disk: int
    draining: bool
    spills: int
    steps_failed: int
    host_bytes_used: int
    host_bytes_budget: int
    disk_bytes_used: int
    disk_bytes_budget: int
    index_bytes: int
    resident_bytes: int
    result_bytes: int
    blocks_evicted: int
    seal_queue: int
    seals_done: int
    seals_parked: int
    tokens_reencoded: int
    workers_alive: int
    tokens_drafted: int
    tokens_accepted: int
    guided_seconds: float
    guided_step_seconds: float
    def __init__(self, version: _Optional[str] = ..., model: _Optional[str] = ..., fingerprint: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., sessions: _Optional[int] = ..., sessions_live: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_bytes_used: _Optional[int] = ..., kv_bytes_budget: _Optional[int] = ..., blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., tokens_prefilled: _Optional[int] = ..., tokens_generated: _Optional[int] = ..., tokens_from_device: _Optional[int] = ..., tokens_from_host: _Optional[int] = ..., tokens_from_disk: _Optional[int] = ..., draining: bool = ..., spills: _Optional[int] = ..., steps_failed: _Optional[int] = ..., host_bytes_used: _Optional[int] = ..., host_bytes_budget: _Optional[int] = ..., disk_bytes_used: _Optional[int] = ..., disk_bytes_budget: _Optional[int] = ..., index_bytes: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., result_bytes: _Optional[int] = ..., blocks_evicted: _Optional[int] = ..., seal_queue: _Optional[int] = ..., seals_done: _Optional[int] = ..., seals_parked: _Optional[int] = ..., tokens_reencoded: _Optional[int] = ..., workers_alive: _Optional[int] = ..., tokens_drafted: _Optional[int] = ..., tokens_accepted: _Optional[int] = ..., guided_seconds: _Optional[float] = ..., guided_step_seconds: _Optional[float] = ...) -> None: ...

class ListPrefixesRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListPrefixesResponse(_message.Message):
    __slots__ = ("prefixes",)
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    prefixes: _containers.RepeatedCompositeFieldContainer[Prefix]
    def __init__(self, prefixes: _Optional[_Iterable[_Union[Prefix, _Mapping]]] = ...) -> None: ...

class Prefix(_message.Message):
    __slots__ = ("hash", "tokens", "sessions", "bytes", "tier")
    HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    hash: str
    tokens: int
    sessions: int
    bytes: int
    tier: _types_pb2.Tier
    def __init__(self, hash: _Optional[str] = ..., tokens: _Optional[int] = ..., sessions: _Optional[int] = ..., bytes: _Optional[int] = ..., tier: _Optional[_Union[_types_pb2.Tier, str]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("seconds",)
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    def __init__(self, seconds: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPlacementRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetPlacementResponse(_message.Message):
    __slots__ = ("replica", "epoch")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    replica: Replica
    epoch: int
    def __init__(self, replica: _Optional[_Union[Replica, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("replica_id", "address", "local")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    address: str
    local: bool
    def __init__(self, replica_id: _Optional[str] = ..., address: _Optional[str] = ..., local: bool = ...) -> None: ...
