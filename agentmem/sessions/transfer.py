"""A session as bytes: one JSON line of header, one for each turn, one with the checksum of all before.

Only the ledger travels. K and V can be computed from it (invariant 1), and bytes from outside cannot be trusted to be
the K and V of their tokens.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from blake3 import blake3

from agentmem.errors import InvalidInput, ModelMismatch
from agentmem.types import (
    Fidelity,
    FinishReason,
    Message,
    MissReason,
    Policy,
    ReuseReport,
    SessionFormat,
    SessionId,
    SessionRecord,
    ToolCall,
    ToolSpec,
    Turn,
    TurnState,
    Usage,
)

FORMAT = "agentmem-session"
VERSION = 1
CHUNK_BYTES = 256 * 1024
MAX_BYTES = 256 * 1024 * 1024


def dump(record: SessionRecord, turns: Sequence[Turn]) -> Iterator[bytes]:
    """Yield a session in chunks of at most CHUNK_BYTES."""
    header = {"format": FORMAT, "version": VERSION, "turns": len(turns), "session": asdict(record)}
    lines = [_line(header), *(_line(asdict(turn)) for turn in turns)]
    body = b"".join(lines)
    data = body + _line({"blake3": blake3(body).hexdigest()})
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    """Join chunks. Raises InvalidInput above MAX_BYTES."""
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > MAX_BYTES:
            raise InvalidInput(f"the session is larger than the {MAX_BYTES} bytes that can be imported")
    return bytes(data)


def load(data: bytes, tokenizer_hash: str, vocab_size: int) -> tuple[SessionRecord, list[Turn]]:
    """Return what ``dump`` wrote. Raises InvalidInput for anything else, ModelMismatch when token ids mean something else here."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 3:
        raise InvalidInput("the data is no exported session: it has fewer than three lines")
    body = data[: len(data) - len(lines[-1])]
    try:
        header, *rows, trailer = [json.loads(line) for line in lines]
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise InvalidInput(f"the data is {header['format']!r} version {header['version']}; {FORMAT!r} {VERSION} can be imported")
        if trailer["blake3"] != blake3(body).hexdigest() or header["turns"] != len(rows):
            raise InvalidInput("the exported session is damaged: its checksum or its number of turns does not agree")
        record, turns = _record(header["session"]), [_turn(row) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"the data is no exported session: {type(error).__name__}: {error}") from error
    if record.tokenizer_hash != tokenizer_hash:
        raise ModelMismatch("the session was made with another tokenizer, so its token ids mean something else here")
    worst = max((token for turn in turns for token in turn.token_ids), default=0)
    if [turn.index for turn in turns] != list(range(len(turns))) or not 0 <= worst < vocab_size:
        raise InvalidInput("the exported session is damaged: its turns are out of order or hold unknown token ids")
    return record, turns


def _record(row: dict[str, Any]) -> SessionRecord:
    return replace(
        SessionRecord(**row),
        id=SessionId(row["id"]),
        format=SessionFormat(row["format"]),
        tools=tuple(ToolSpec(**tool) for tool in row["tools"]),
        policy=Policy(fidelity=Fidelity(row["policy"]["fidelity"])),
    )


def _turn(row: dict[str, Any]) -> Turn:
    return replace(
        Turn(**row),
        messages=tuple(_message(message) for message in row["messages"]),
        token_ids=tuple(int(token) for token in row["token_ids"]),
        state=TurnState(row["state"]),
        finish_reason=FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
        fidelity=Fidelity(row["fidelity"]),
        usage=Usage(**row["usage"]),
        reuse=replace(ReuseReport(**row["reuse"]), reason=MissReason(row["reuse"]["reason"])),
    )


def _message(row: dict[str, Any]) -> Message:
    return Message(**{**row, "tool_calls": tuple(ToolCall(**call) for call in row["tool_calls"])})
