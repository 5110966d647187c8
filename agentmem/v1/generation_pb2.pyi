from agentmem.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendRequest(_message.Message):
    __slots__ = ("session_id", "input", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    input: _types_pb2.TurnInput
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., input: _Optional[_Union[_types_pb2.TurnInput, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("turn_index", "input_tokens", "context_tokens", "durable")
    TURN_INDEX_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    turn_index: int
    input_tokens: int
    context_tokens: int
    durable: bool
    def __init__(self, turn_index: _Optional[int] = ..., input_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ..., durable: bool = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("session_id", "input", "sampling", "request_id", "resume_after_tokens", "fidelity", "tool_choice", "response_format")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    input: _types_pb2.TurnInput
    sampling: _types_pb2.SamplingParams
    request_id: str
    resume_after_tokens: int
    fidelity: _types_pb2.Fidelity
    tool_choice: _types_pb2.ToolChoice
    response_format: _types_pb2.ResponseFormat
    def __init__(self, session_id: _Optional[str] = ..., input: _Optional[_Union[_types_pb2.TurnInput, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., request_id: _Optional[str] = ..., resume_after_tokens: _Optional[int] = ..., fidelity: _Optional[_Union[_types_pb2.Fidelity, str]] = ..., tool_choice: _Optional[_Union[_types_pb2.ToolChoice, _Mapping]] = ..., response_format: _Optional[_Union[_types_pb2.ResponseFormat, _Mapping]] = ...) -> None: ...

class GenerationEvent(_message.Message):
    __slots__ = ("started", "progress", "tokens", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: StartEvent
    progress: ProgressEvent
    tokens: TokenEvent
    finished: FinishEvent
    def __init__(self, started: _Optional[_Union[StartEvent, _Mapping]] = ..., progress: _Optional[_Union[ProgressEvent, _Mapping]] = ..., tokens: _Optional[_Union[TokenEvent, _Mapping]] = ..., finished: _Optional[_Union[FinishEvent, _Mapping]] = ...) -> None: ...

class StartEvent(_message.Message):
    __slots__ = ("session_id", "request_id", "turn_index", "reuse", "fidelity", "input_tokens", "context_tokens")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TURN_INDEX_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    turn_index: int
    reuse: _types_pb2.ReuseReport
    fidelity: _types_pb2.Fidelity
    input_tokens: int
    context_tokens: int
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ..., turn_index: _Optional[int] = ..., reuse: _Optional[_Union[_types_pb2.ReuseReport, _Mapping]] = ..., fidelity: _Optional[_Union[_types_pb2.Fidelity, str]] = ..., input_tokens: _Optional[int] = ..., context_tokens: _Optional[int] = ...) -> None: ...

class ProgressEvent(_message.Message):
    __slots__ = ("prefilled", "total", "restoring")
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    RESTORING_FIELD_NUMBER: _ClassVar[int]
    prefilled: int
    total: int
    restoring: bool
    def __init__(self, prefilled: _Optional[int] = ..., total: _Optional[int] = ..., restoring: bool = ...) -> None: ...

class TokenEvent(_message.Message):
    __slots__ = ("index", "token_ids", "text", "logprobs", "top_logprobs", "content", "tool_calls")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenLogprob]
    top_logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopLogprobs]
    content: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[_types_pb2.CallDelta]
    def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_types_pb2.TokenLogprob, _Mapping]]] = ..., top_logprobs: _Optional[_Iterable[_Union[_types_pb2.TopLogprobs, _Mapping]]] = ..., content: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[_types_pb2.CallDelta, _Mapping]]] = ...) -> None: ...

class FinishEvent(_message.Message):
    __slots__ = ("turn_index", "finish_reason", "message", "text", "usage", "reuse", "fidelity", "durable", "detail", "partial", "problems")
    TURN_INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    turn_index: int
    finish_reason: _types_pb2.FinishReason
    message: _types_pb2.Message
    text: str
    usage: _types_pb2.Usage
    reuse: _types_pb2.ReuseReport
    fidelity: _types_pb2.Fidelity
    durable: bool
    detail: str
    partial: bool
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, turn_index: _Optional[int] = ..., finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., message: _Optional[_Union[_types_pb2.Message, _Mapping]] = ..., text: _Optional[str] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ..., reuse: _Optional[_Union[_types_pb2.ReuseReport, _Mapping]] = ..., fidelity: _Optional[_Union[_types_pb2.Fidelity, str]] = ..., durable: bool = ..., detail: _Optional[str] = ..., partial: bool = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("session_id", "input", "sampling", "request_id", "piece", "tool_choice", "response_format", "fidelity", "waiting", "resume_after_tokens")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    FIDELITY_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    input: _types_pb2.TurnInput
    sampling: _types_pb2.SamplingParams
    request_id: str
    piece: ResultPiece
    tool_choice: _types_pb2.ToolChoice
    response_format: _types_pb2.ResponseFormat
    fidelity: _types_pb2.Fidelity
    waiting: Waiting
    resume_after_tokens: int
    def __init__(self, session_id: _Optional[str] = ..., input: _Optional[_Union[_types_pb2.TurnInput, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., request_id: _Optional[str] = ..., piece: _Optional[_Union[ResultPiece, _Mapping]] = ..., tool_choice: _Optional[_Union[_types_pb2.ToolChoice, _Mapping]] = ..., response_format: _Optional[_Union[_types_pb2.ResponseFormat, _Mapping]] = ..., fidelity: _Optional[_Union[_types_pb2.Fidelity, str]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., resume_after_tokens: _Optional[int] = ...) -> None: ...

class ResultPiece(_message.Message):
    __slots__ = ("tool_call_id", "name", "text", "last", "more", "offset")
    TOOL_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    tool_call_id: str
    name: str
    text: str
    last: bool
    more: bool
    offset: int
    def __init__(self, tool_call_id: _Optional[str] = ..., name: _Optional[str] = ..., text: _Optional[str] = ..., last: bool = ..., more: bool = ..., offset: _Optional[int] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("eta_seconds",)
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    eta_seconds: float
    def __init__(self, eta_seconds: _Optional[float] = ...) -> None: ...

class ConverseEvent(_message.Message):
    __slots__ = ("generation", "accepted")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationEvent
    accepted: PieceAccepted
    def __init__(self, generation: _Optional[_Union[GenerationEvent, _Mapping]] = ..., accepted: _Optional[_Union[PieceAccepted, _Mapping]] = ...) -> None: ...

class PieceAccepted(_message.Message):
    __slots__ = ("request_id", "received", "prefilled")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    received: int
    prefilled: int
    def __init__(self, request_id: _Optional[str] = ..., received: _Optional[int] = ..., prefilled: _Optional[int] = ...) -> None: ...

class EndTurnRequest(_message.Message):
    __slots__ = ("session_id", "waiting_on_tool", "eta_seconds")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    WAITING_ON_TOOL_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    waiting_on_tool: bool
    eta_seconds: float
    def __init__(self, session_id: _Optional[str] = ..., waiting_on_tool: bool = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class EndTurnResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: _types_pb2.Session
    def __init__(self, session: _Optional[_Union[_types_pb2.Session, _Mapping]] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("session_id", "request_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    request_id: str
    def __init__(self, session_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: bool = ...) -> None: ...
