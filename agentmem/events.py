"""What a reply tells while it is made: the events of one stream, in order."""

from __future__ import annotations

from dataclasses import dataclass

from agentmem.output import CallDelta
from agentmem.types import Fidelity, FinishReason, Message, RequestId, ReuseReport, SessionId, TokenLogprob, Usage


@dataclass(frozen=True, slots=True)
class StartEvent:
    """First event of a reply: what was reused, before the first token."""

    session_id: SessionId
    request_id: RequestId
    turn_index: int
    reuse: ReuseReport
    fidelity: Fidelity
    input_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """How far a long prefill or restore has come, in tokens. ``restoring``: blocks are read back, not computed."""

    prefilled: int
    total: int
    restoring: bool = False


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens of the reply. ``index`` counts the reply's tokens from 0; ``text`` may be empty while UTF-8 is incomplete.

    In CHAT sessions ``content`` is what the text adds to the message's content, ``tool_calls`` what it adds to its calls; neither comes
    before it is certain which of them it is.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()  # one per token id, when asked for
    top_logprobs: tuple[tuple[TokenLogprob, ...], ...] = ()
    content: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """Last event of a reply. ``durable``: the turn survives a crash; False: still being written, see ``detail``.

    ``partial``: the reply ended inside its last tool call. ``problems``: what is wrong with its tool calls, for people to read.
    """

    turn_index: int
    finish_reason: FinishReason
    message: Message | None  # None in RAW sessions
    text: str
    usage: Usage
    reuse: ReuseReport
    fidelity: Fidelity
    durable: bool
    detail: str = ""
    partial: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PieceEvent:
    """A piece of a tool's result has arrived: ``received`` characters of the request so far, ``prefilled`` tokens of them computed."""

    request_id: RequestId
    received: int
    prefilled: int


GenerationEvent = StartEvent | ProgressEvent | TokenEvent | FinishEvent
ConverseEvent = GenerationEvent | PieceEvent
