"""What a reply may be, as a grammar; and what it turned out to be, as content and tool calls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentmem.chat import CallStream, Chat, ParsedReply
from agentmem.errors import InvalidInput, NotImplementedYet
from agentmem.output import FormatKind, OutputSpec, ToolMode
from agentmem.sessions.session import Session
from agentmem.speculation.guide import Guide
from agentmem.types import Message, RequestId, SessionId

ID_LENGTH = 9  # letters and digits: the only form of id that Mistral's templates accept


@dataclass(frozen=True, slots=True)
class Shaped:
    """``guide`` makes the state of the reply's grammar; None: anything goes. ``problems``: why it does although tools were given."""

    guide: Callable[[], Guide] | None = None
    problems: tuple[str, ...] = ()


UNSHAPED = Shaped()


def shape_of(chat: Chat, session: Session, output: OutputSpec) -> Shaped:
    """Return the grammar of the reply. Blocks for as long as compiling takes.

    Raises InvalidInput for what cannot be had: RAW sessions have no tools, a schema may not compile. Where nobody asked for a call or a
    format, tools whose schemas cannot be compiled only leave their calls unconstrained.
    """
    tools = session.record.tools
    try:
        grammar = chat.grammar(output, tools)
    except (InvalidInput, NotImplementedYet) as error:
        if output.tool_choice.mode is not ToolMode.AUTO or output.response_format.kind is not FormatKind.TEXT:
            raise
        return Shaped(problems=(f"tool calls are not constrained: {error.message}",))
    return Shaped(grammar.guide if grammar is not None else None)


def as_quoted(chat: Chat, result: str) -> list[list[int]]:
    """Return the tokens of a tool's result as a reply may repeat them: as they are, and as they stand in a JSON string."""
    quoted = json.dumps(result, ensure_ascii=False)[1:-1]
    return [chat.encode_text(text) for text in dict.fromkeys((result, quoted)) if text]


@dataclass(frozen=True, slots=True)
class CallIds:
    """The ids of a reply's calls by their index: the same whoever reads the reply, and whenever. ``known``: those the ledger has."""

    session_id: SessionId
    request_id: RequestId
    known: tuple[str, ...] = ()

    def __call__(self, index: int) -> str:
        """Return the id of call number ``index``."""
        if index < len(self.known):
            return self.known[index]
        return hashlib.sha256(f"{self.session_id}/{self.request_id}/{index}".encode()).hexdigest()[:ID_LENGTH]


def parser_of(chat: Chat, session: Session, ids: CallIds) -> Callable[[], CallStream] | None:
    """Return what makes a parser of the reply's text, one for each reader; None in RAW sessions."""
    if session.is_raw:
        return None
    return lambda: chat.stream(session.record.tools, ids)


def parsed_reply(chat: Chat, session: Session, ids: CallIds, token_ids: Sequence[int], text: str) -> ParsedReply:
    """Return the reply's message and what is wrong with its tool calls; in RAW sessions text is text."""
    if session.is_raw:
        return ParsedReply(Message("assistant", text))
    return chat.read_reply(token_ids, text, session.record.tools, ids)
