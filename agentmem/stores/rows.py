"""Records to database rows and back. Token ids are little-endian int32; nested records are JSON."""

from __future__ import annotations

import json
import sqlite3
import sys
from array import array
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.stores.records import BlockRow
from agentmem.types import (
    BlockHash,
    Fidelity,
    FidelityReport,
    Fingerprint,
    FinishReason,
    Forgotten,
    Message,
    MissReason,
    Policy,
    Prefill,
    RequestId,
    ReuseReport,
    SessionFormat,
    SessionId,
    SessionRecord,
    TenantId,
    ToolCall,
    ToolSpec,
    Turn,
    TurnState,
    Usage,
)

Row = dict[str, Any]


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def encode_tokens(token_ids: tuple[int, ...]) -> bytes:
    """Pack token ids. Raises InvalidInput for one that is negative or needs more than 31 bits."""
    try:
        packed = array("i", token_ids)
    except OverflowError as error:
        raise InvalidInput("a token id is outside 0 to 2**31 - 1") from error
    if packed and min(packed) < 0:
        raise InvalidInput(f"token id {min(packed)} is outside 0 to 2**31 - 1")
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def decode_tokens(data: bytes) -> tuple[int, ...]:
    """Unpack what ``encode_tokens`` packed."""
    packed = array("i")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return tuple(packed)


def session_row(record: SessionRecord) -> Row:
    """Return the columns of ``sessions`` for ``record``."""
    return {
        "id": record.id,
        "tenant": record.tenant,
        "fingerprint": record.fingerprint,
        "tokenizer_hash": record.tokenizer_hash,
        "format": record.format.value,
        "system": record.system,
        "tools": _json([asdict(tool) for tool in record.tools]),
        "policy": _json(asdict(record.policy)),
        "labels": _json(record.labels),
        "ttl_seconds": record.ttl_seconds,
        "pinned": int(record.pinned),
        "parent": record.parent,
        "parent_turn": record.parent_turn,
        "epoch": record.epoch,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "expires_at": record.expires_at,
    }


def session_record(row: sqlite3.Row) -> SessionRecord:
    """Return the record that ``session_row`` encoded."""
    return SessionRecord(
        id=SessionId(row["id"]),
        tenant=TenantId(row["tenant"]),
        fingerprint=Fingerprint(row["fingerprint"]),
        tokenizer_hash=row["tokenizer_hash"],
        format=SessionFormat(row["format"]),
        system=row["system"],
        tools=tuple(ToolSpec(**tool) for tool in json.loads(row["tools"])),
        policy=_policy(json.loads(row["policy"])),
        labels=json.loads(row["labels"]),
        ttl_seconds=row["ttl_seconds"],
        pinned=bool(row["pinned"]),
        parent=None if row["parent"] is None else SessionId(row["parent"]),
        parent_turn=row["parent_turn"],
        epoch=row["epoch"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
    )


def turn_row(turn: Turn) -> Row:
    """Return the columns of ``turns`` for ``turn``, its session apart. Raises InvalidInput for token ids out of range."""
    return {
        "turn": turn.index,
        "messages": _json([asdict(message) for message in turn.messages]),
        "token_ids": encode_tokens(turn.token_ids),
        "state": turn.state.value,
        "reply_start": turn.reply_start,
        "finish_reason": None if turn.finish_reason is None else turn.finish_reason.value,
        "fidelity": turn.fidelity.value,
        "request_id": turn.request_id,
        "input_digest": turn.input_digest,
        "usage": _json(asdict(turn.usage)),
        "reuse": _json(asdict(turn.reuse)),
        "created_at": turn.created_at,
        "report": None if turn.report is None else _json(asdict(turn.report)),
    }


def turn_record(row: sqlite3.Row, forgotten: tuple[Forgotten, ...] = ()) -> Turn:
    """Return the record that ``turn_row`` encoded, with what another table has of its ``forgotten`` messages."""
    return Turn(
        index=row["turn"],
        messages=tuple(_message(message) for message in json.loads(row["messages"])),
        token_ids=decode_tokens(row["token_ids"]),
        state=TurnState(row["state"]),
        reply_start=row["reply_start"],
        finish_reason=None if row["finish_reason"] is None else FinishReason(row["finish_reason"]),
        fidelity=Fidelity(row["fidelity"]),
        request_id=None if row["request_id"] is None else RequestId(row["request_id"]),
        input_digest=row["input_digest"],
        usage=Usage(**json.loads(row["usage"])),
        reuse=_reuse(json.loads(row["reuse"])),
        created_at=row["created_at"],
        report=None if row["report"] is None else FidelityReport(**json.loads(row["report"])),
        forgotten=forgotten,
    )


def forgotten_rows(turn: Turn) -> list[Row]:
    """Return the rows of ``forgotten`` for ``turn``, its session apart."""
    return [{**asdict(entry), "turn": turn.index} for entry in turn.forgotten]


def forgotten_record(row: sqlite3.Row) -> Forgotten:
    """Return the record of a row of ``forgotten``."""
    return Forgotten(row["message_index"], row["role"], row["tokens"], row["digest"], row["forgotten_at"])


def block_record(row: sqlite3.Row) -> BlockRow:
    """Return the block row as a record."""
    parent = None if row["parent"] is None else BlockHash(row["parent"])
    return BlockRow(BlockHash(row["hash"]), parent, TenantId(row["tenant"]), row["n_bytes"], row["position"])


def _policy(fields: Mapping[str, Any]) -> Policy:
    """Return the policy; fields that an older version did not write have their defaults."""
    enums = {"fidelity": Fidelity(fields["fidelity"]), "prefill": Prefill(fields.get("prefill", Prefill.EXACT))}
    return Policy(**{**fields, **enums})


def _reuse(fields: Mapping[str, Any]) -> ReuseReport:
    return ReuseReport(**{**fields, "reason": MissReason(fields["reason"])})


def _message(fields: Mapping[str, Any]) -> Message:
    return Message(**{**fields, "tool_calls": tuple(ToolCall(**call) for call in fields["tool_calls"])})
