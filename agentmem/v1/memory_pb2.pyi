from agentmem.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SealState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEAL_STATE_UNSPECIFIED: _ClassVar[SealState]
    SEAL_STATE_OPEN: _ClassVar[SealState]
    SEAL_STATE_QUEUED: _ClassVar[SealState]
    SEAL_STATE_SEALED: _ClassVar[SealState]
    SEAL_STATE_PARKED: _ClassVar[SealState]
SEAL_STATE_UNSPECIFIED: SealState
SEAL_STATE_OPEN: SealState
SEAL_STATE_QUEUED: SealState
SEAL_STATE_SEALED: SealState
SEAL_STATE_PARKED: SealState

class RecallRequest(_message.Message):
    __slots__ = ("session_id", "text", "k")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    text: str
    k: int
    def __init__(self, session_id: _Optional[str] = ..., text: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class RecallResponse(_message.Message):
    __slots__ = ("spans",)
    SPANS_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[RecalledSpan]
    def __init__(self, spans: _Optional[_Iterable[_Union[RecalledSpan, _Mapping]]] = ...) -> None: ...

class RecalledSpan(_message.Message):
    __slots__ = ("turn_index", "first_token", "n_tokens", "text", "weight")
    TURN_INDEX_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    turn_index: int
    first_token: int
    n_tokens: int
    text: str
    weight: float
    def __init__(self, turn_index: _Optional[int] = ..., first_token: _Optional[int] = ..., n_tokens: _Optional[int] = ..., text: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("session_id", "include_messages", "include_token_ids", "include_attention")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    include_messages: bool
    include_token_ids: bool
    include_attention: bool
    def __init__(self, session_id: _Optional[str] = ..., include_messages: bool = ..., include_token_ids: bool = ..., include_attention: bool = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("session", "turns")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    turns: _containers.RepeatedCompositeFieldContainer[TurnInspection]
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ..., turns: _Optional[_Iterable[_Union[TurnInspection, _Mapping]]] = ...) -> None: ...

class TurnInspection(_message.Message):
    __slots__ = ("turn", "n_tokens", "n_blocks", "blocks_on_disk", "disk_bytes", "durable", "resident_tokens", "kept", "host_bytes", "device_bytes", "attention", "sealed", "forgotten")
    TURN_FIELD_NUMBER: _ClassVar[int]
    N_TOKENS_FIELD_NUMBER: _ClassVar[int]
    N_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_ON_DISK_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    turn: _types_pb2.Turn
    n_tokens: int
    n_blocks: int
    blocks_on_disk: int
    disk_bytes: int
    durable: bool
    resident_tokens: int
    kept: float
    host_bytes: int
    device_bytes: int
    attention: float
    sealed: SealState
    forgotten: int
    def __init__(self, turn: _Optional[_Union[_types_pb2.Turn, _Mapping]] = ..., n_tokens: _Optional[int] = ..., n_blocks: _Optional[int] = ..., blocks_on_disk: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., durable: bool = ..., resident_tokens: _Optional[int] = ..., kept: _Optional[float] = ..., host_bytes: _Optional[int] = ..., device_bytes: _Optional[int] = ..., attention: _Optional[float] = ..., sealed: _Optional[_Union[SealState, str]] = ..., forgotten: _Optional[int] = ...) -> None: ...

class ForgetTarget(_message.Message):
    __slots__ = ("turn_index", "message_index")
    TURN_INDEX_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    turn_index: int
    message_index: int
    def __init__(self, turn_index: _Optional[int] = ..., message_index: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("session_id", "messages")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    messages: _containers.RepeatedCompositeFieldContainer[ForgetTarget]
    def __init__(self, session_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ForgetTarget, _Mapping]]] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...

class SealRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class SealResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...

class SetFidelityRequest(_message.Message):
    __slots__ = ("session_id", "fidelity")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    fidelity: _types_pb2.Fidelity
    def __init__(self, session_id: _Optional[str] = ..., fidelity: _Optional[_Union[_types_pb2.Fidelity, str]] = ...) -> None: ...

class SetFidelityResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...
