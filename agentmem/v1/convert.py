"""agentmem's own records to protobuf and back. Used by the API and by the clients; each pair of functions is each other's inverse.

``*_from_pb`` raises InvalidInput naming the field for an enum value without a name and for what a record's own check refuses.
``*_to_pb`` raises InvalidInput for text that UTF-8 cannot hold and for numbers that the wire cannot carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent, GenerationEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.output import CallDelta
from agentmem.types import (
    FidelityReport,
    Message,
    Policy,
    RequestId,
    ReuseReport,
    SamplingParams,
    SessionId,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    Turn,
    TurnInput,
    Usage,
)
from agentmem.v1 import generation_pb2, types_pb2
from agentmem.v1.enums import FIDELITY, FINISH_REASON, MISS_REASON, PREFILL, ROLE, TURN_STATE

_OPTIONAL_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens", "logprobs")
_OPTIONAL_POLICY = (
    "compressor",
    "keep",
    "recall",
    "recall_tokens",
    "bits",
    "stride",
    "dense_layers",
    "reencode",
    "objective",
    "drafter",
    "draft_tokens",
)
_REUSE_COUNTS = ("device", "host", "disk", "peer", "computed")
_USAGE_FIELDS = (
    "input_tokens",
    "context_tokens",
    "output_tokens",
    "queue_seconds",
    "first_token_seconds",
    "total_seconds",
    "steps",
    "drafted",
    "accepted",
)


@contextmanager
def encoding(what: str) -> Iterator[None]:
    """Turn protobuf's refusal of a value into InvalidInput that names ``what`` was being encoded."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} holds a lone surrogate at character {error.start}, which UTF-8 cannot carry") from error
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{what} holds a value that cannot be sent: {error}") from error


def message_to_pb(message: Message) -> types_pb2.Message:
    """Return the wire form of a chat message."""
    with encoding("message"):
        return types_pb2.Message(
            role=ROLE[message.role],
            content=message.content,
            name=message.name,
            tool_call_id=message.tool_call_id,
            tool_calls=[types_pb2.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in message.tool_calls],
        )


def message_from_pb(message: types_pb2.Message, field: str = "message") -> Message:
    """Return the chat message; ``field`` is its place in the request, for errors."""
    return Message(
        role=ROLE.read(message.role, f"{field}.role"),
        content=message.content,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
    )


def tools_to_pb(tools: Sequence[ToolSpec]) -> list[types_pb2.ToolSpec]:
    """Return the wire form of tool definitions."""
    with encoding("tools"):
        return [types_pb2.ToolSpec(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in tools]


def tools_from_pb(tools: Sequence[types_pb2.ToolSpec]) -> tuple[ToolSpec, ...]:
    """Return the tool definitions."""
    return tuple(ToolSpec(tool.name, tool.description, tool.parameters) for tool in tools)


def turn_input_to_pb(turn_input: TurnInput) -> types_pb2.TurnInput:
    """Return the wire form of what a call adds."""
    with encoding("input"):
        return types_pb2.TurnInput(
            messages=[message_to_pb(message) for message in turn_input.messages],
            text=turn_input.text,
            token_ids=turn_input.token_ids,
            full_history=turn_input.full_history,
        )


def turn_input_from_pb(turn_input: types_pb2.TurnInput) -> TurnInput:
    """Return what a call adds."""
    return TurnInput(
        messages=tuple(message_from_pb(message, f"input.messages[{i}]") for i, message in enumerate(turn_input.messages)),
        text=turn_input.text,
        token_ids=tuple(turn_input.token_ids),
        full_history=turn_input.full_history,
    )


def sampling_to_pb(params: SamplingParams) -> types_pb2.SamplingParams:
    """Return the wire form of sampling parameters; what is None stays unset."""
    given = {name: value for name in _OPTIONAL_SAMPLING if (value := getattr(params, name)) is not None}
    with encoding("sampling"):
        return types_pb2.SamplingParams(**given, stop=params.stop, stop_token_ids=params.stop_token_ids, ignore_eos=params.ignore_eos)


def sampling_from_pb(params: types_pb2.SamplingParams) -> SamplingParams:
    """Return the sampling parameters; what is unset has its default."""
    given: dict[str, Any] = {name: getattr(params, name) for name in _OPTIONAL_SAMPLING if params.HasField(name)}
    return SamplingParams(**given, stop=tuple(params.stop), stop_token_ids=tuple(params.stop_token_ids), ignore_eos=params.ignore_eos)


def policy_to_pb(policy: Policy) -> types_pb2.Policy:
    """Return the wire form of a memory policy."""
    given: dict[str, Any] = {name: getattr(policy, name) for name in _OPTIONAL_POLICY}
    with encoding("policy"):
        return types_pb2.Policy(**given, fidelity=FIDELITY[policy.fidelity], prefill=PREFILL[policy.prefill])


def policy_from_pb(policy: types_pb2.Policy) -> Policy:
    """Return the memory policy; what is unset has its default."""
    given: dict[str, Any] = {name: getattr(policy, name) for name in _OPTIONAL_POLICY if policy.HasField(name)}
    default = Policy()
    return Policy(
        **given,
        fidelity=FIDELITY.read(policy.fidelity, "policy.fidelity", default.fidelity),
        prefill=PREFILL.read(policy.prefill, "policy.prefill", default.prefill),
    )


def report_to_pb(report: FidelityReport) -> types_pb2.FidelityReport:
    """Return the wire form of a fidelity report."""
    return types_pb2.FidelityReport(**asdict(report))


def report_from_pb(report: types_pb2.FidelityReport) -> FidelityReport:
    """Return the fidelity report."""
    values = {name: getattr(report, name) for name in FidelityReport.__dataclass_fields__}
    return FidelityReport(**values | {"worst_position": report.worst_position if report.HasField("worst_position") else None})


def reuse_to_pb(reuse: ReuseReport) -> types_pb2.ReuseReport:
    """Return the wire form of a reuse report."""
    counts = {name: getattr(reuse, name) for name in _REUSE_COUNTS}
    return types_pb2.ReuseReport(**counts, reason=MISS_REASON[reuse.reason], detail=reuse.detail)


def reuse_from_pb(reuse: types_pb2.ReuseReport) -> ReuseReport:
    """Return the reuse report."""
    counts: dict[str, int] = {name: getattr(reuse, name) for name in _REUSE_COUNTS}
    return ReuseReport(**counts, reason=MISS_REASON.read(reuse.reason, "reuse.reason", ReuseReport().reason), detail=reuse.detail)


def usage_to_pb(usage: Usage) -> types_pb2.Usage:
    """Return the wire form of what a call cost."""
    return types_pb2.Usage(**asdict(usage))


def usage_from_pb(usage: types_pb2.Usage) -> Usage:
    """Return what a call cost."""
    attended = usage.attended if usage.HasField("attended") else Usage().attended
    return Usage(**{name: getattr(usage, name) for name in _USAGE_FIELDS}, attended=attended)


def turn_to_pb(turn: Turn, *, messages: bool = True, token_ids: bool = True) -> types_pb2.Turn:
    """Return the wire form of a ledger turn, with or without its messages and token ids. ``input_digest`` is not sent."""
    return types_pb2.Turn(
        index=turn.index,
        messages=[message_to_pb(message) for message in turn.messages] if messages else [],
        token_ids=turn.token_ids if token_ids else [],
        state=TURN_STATE[turn.state],
        reply_start=turn.reply_start,
        finish_reason=FINISH_REASON[turn.finish_reason],
        fidelity=FIDELITY[turn.fidelity],
        request_id=turn.request_id or "",
        usage=usage_to_pb(turn.usage),
        reuse=reuse_to_pb(turn.reuse),
        created_at=turn.created_at,
        report=None if turn.report is None else report_to_pb(turn.report),
    )


def turn_from_pb(turn: types_pb2.Turn) -> Turn:
    """Return the ledger turn, its ``input_digest`` empty."""
    return Turn(
        index=turn.index,
        messages=tuple(message_from_pb(message, f"turn.messages[{i}]") for i, message in enumerate(turn.messages)),
        token_ids=tuple(turn.token_ids),
        state=TURN_STATE.read(turn.state, "turn.state"),
        reply_start=turn.reply_start if turn.HasField("reply_start") else None,
        finish_reason=FINISH_REASON.read(turn.finish_reason, "turn.finish_reason") if turn.finish_reason else None,
        fidelity=FIDELITY.read(turn.fidelity, "turn.fidelity"),
        request_id=RequestId(turn.request_id) if turn.request_id else None,
        usage=usage_from_pb(turn.usage),
        reuse=reuse_from_pb(turn.reuse),
        created_at=turn.created_at,
        report=report_from_pb(turn.report) if turn.HasField("report") else None,
    )


def _logprobs_to_pb(logprobs: Sequence[TokenLogprob]) -> list[types_pb2.TokenLogprob]:
    return [types_pb2.TokenLogprob(token_id=item.token_id, logprob=item.logprob) for item in logprobs]


def _logprobs_from_pb(logprobs: Sequence[types_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(item.token_id, item.logprob) for item in logprobs)


def _start_to_pb(event: StartEvent) -> generation_pb2.StartEvent:
    return generation_pb2.StartEvent(
        session_id=event.session_id,
        request_id=event.request_id,
        turn_index=event.turn_index,
        reuse=reuse_to_pb(event.reuse),
        fidelity=FIDELITY[event.fidelity],
        input_tokens=event.input_tokens,
        context_tokens=event.context_tokens,
    )


def _start_from_pb(event: generation_pb2.StartEvent) -> StartEvent:
    return StartEvent(
        session_id=SessionId(event.session_id),
        request_id=RequestId(event.request_id),
        turn_index=event.turn_index,
        reuse=reuse_from_pb(event.reuse),
        fidelity=FIDELITY.read(event.fidelity, "started.fidelity"),
        input_tokens=event.input_tokens,
        context_tokens=event.context_tokens,
    )


def _tokens_to_pb(event: TokenEvent) -> generation_pb2.TokenEvent:
    return generation_pb2.TokenEvent(
        index=event.index,
        token_ids=event.token_ids,
        text=event.text,
        logprobs=_logprobs_to_pb(event.logprobs),
        top_logprobs=[types_pb2.TopLogprobs(tokens=_logprobs_to_pb(top)) for top in event.top_logprobs],
        content=event.content,
        tool_calls=[types_pb2.CallDelta(**asdict(delta)) for delta in event.tool_calls],
    )


def _tokens_from_pb(event: generation_pb2.TokenEvent) -> TokenEvent:
    return TokenEvent(
        index=event.index,
        token_ids=tuple(event.token_ids),
        text=event.text,
        logprobs=_logprobs_from_pb(event.logprobs),
        top_logprobs=tuple(_logprobs_from_pb(top.tokens) for top in event.top_logprobs),
        content=event.content,
        tool_calls=tuple(CallDelta(delta.index, delta.id, delta.name, delta.arguments) for delta in event.tool_calls),
    )


def _finish_to_pb(event: FinishEvent) -> generation_pb2.FinishEvent:
    return generation_pb2.FinishEvent(
        turn_index=event.turn_index,
        finish_reason=FINISH_REASON[event.finish_reason],
        message=None if event.message is None else message_to_pb(event.message),
        text=event.text,
        usage=usage_to_pb(event.usage),
        reuse=reuse_to_pb(event.reuse),
        fidelity=FIDELITY[event.fidelity],
        durable=event.durable,
        detail=event.detail,
        partial=event.partial,
        problems=event.problems,
    )


def _finish_from_pb(event: generation_pb2.FinishEvent) -> FinishEvent:
    return FinishEvent(
        turn_index=event.turn_index,
        finish_reason=FINISH_REASON.read(event.finish_reason, "finished.finish_reason"),
        message=message_from_pb(event.message, "finished.message") if event.HasField("message") else None,
        text=event.text,
        usage=usage_from_pb(event.usage),
        reuse=reuse_from_pb(event.reuse),
        fidelity=FIDELITY.read(event.fidelity, "finished.fidelity"),
        durable=event.durable,
        detail=event.detail,
        partial=event.partial,
        problems=tuple(event.problems),
    )


def event_to_pb(event: GenerationEvent) -> generation_pb2.GenerationEvent:
    """Return the wire form of one event of a reply."""
    match event:
        case StartEvent():
            return generation_pb2.GenerationEvent(started=_start_to_pb(event))
        case ProgressEvent():
            progress = generation_pb2.ProgressEvent(prefilled=event.prefilled, total=event.total, restoring=event.restoring)
            return generation_pb2.GenerationEvent(progress=progress)
        case TokenEvent():
            return generation_pb2.GenerationEvent(tokens=_tokens_to_pb(event))
        case FinishEvent():
            return generation_pb2.GenerationEvent(finished=_finish_to_pb(event))


def event_from_pb(event: generation_pb2.GenerationEvent) -> GenerationEvent | None:
    """Return the event, or None for a kind that a newer server sent."""
    match event.WhichOneof("event"):
        case "started":
            return _start_from_pb(event.started)
        case "progress":
            return ProgressEvent(event.progress.prefilled, event.progress.total, event.progress.restoring)
        case "tokens":
            return _tokens_from_pb(event.tokens)
        case "finished":
            return _finish_from_pb(event.finished)
        case _:
            return None
