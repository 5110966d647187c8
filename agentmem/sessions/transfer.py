"""A session as bytes: one JSON line of header, one for each turn, one with the checksum of all before.

Only the ledger travels. K and V can be computed from it (invariant 1), and bytes from outside cannot be trusted to be
the K and V of their tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from blake3 import blake3

from agentmem.errors import InvalidInput, ModelMismatch
from agentmem.types import SessionRecord, Turn

FORMAT = "agentmem-session"
VERSION = 1
CHUNK_BYTES = 256 * 1024
MAX_BYTES = 256 * 1024 * 1024
MAX_ID = 128  # characters, as for a session that is created


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
        record, turns = _typed(SessionRecord, header["session"]), [_typed(Turn, row) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(f"the data is no exported session: {type(error).__name__}: {error}") from error
    if record.tokenizer_hash != tokenizer_hash:
        raise ModelMismatch("the session was made with another tokenizer, so its token ids mean something else here")
    _check(record, turns, vocab_size)
    return record, turns


def _check(record: SessionRecord, turns: Sequence[Turn], vocab_size: int) -> None:
    """Raise InvalidInput for a ledger that no server could have written; whoever can compute a checksum can send one."""
    known = range(vocab_size)
    sound = (
        [turn.index for turn in turns] == list(range(len(turns)))
        and all(token in known for turn in turns for token in turn.token_ids)
        and turns[0].reply_start is None
        and all(_reply_is_sound(turn) for turn in turns)
        and record.ttl_seconds >= 0
        and 0 < len(record.id) <= MAX_ID
    )
    if not sound:
        raise InvalidInput("the exported session is damaged: its turns are out of order, or its ids, replies or times are impossible")


def _reply_is_sound(turn: Turn) -> bool:
    if turn.reply_start is None:
        return True
    return 0 <= turn.reply_start < len(turn.token_ids) and bool(turn.messages) and turn.messages[-1].role == "assistant"


def _typed(kind: Any, value: Any) -> Any:  # noqa: ANN401 - JSON in, a record out; the caller knows which
    """Return ``value``, parsed JSON, as a ``kind``: a dataclass, an enum, a tuple, a dict or a plain type. Raises ValueError, TypeError."""
    kind = getattr(kind, "__supertype__", kind)
    inner = get_args(kind)
    if NoneType in inner:
        return None if value is None else _typed(next(each for each in inner if each is not NoneType), value)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_typed(inner[0], item) for item in value)
    if get_origin(kind) is dict and isinstance(value, dict):
        return {_typed(inner[0], key): _typed(inner[1], item) for key, item in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        return kind(**{name: _typed(hints[name], item) for name, item in value.items()})  # type: ignore[operator]  # a class
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError(f"{value!r:.40} is not a {getattr(kind, '__name__', kind)}")
    if kind is str:
        value.encode()  # a lone surrogate fits no ledger
    return value
