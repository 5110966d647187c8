from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from support.replica import OTHER, TENANT, VOCAB, Replica, chunks_of, gather_bytes, greedy, tiny_model, user

from agentmem.errors import AgentMemError, InvalidInput, ModelMismatch
from agentmem.sessions import transfer
from agentmem.types import (
    Fidelity,
    Fingerprint,
    FinishReason,
    Message,
    MissReason,
    Policy,
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

RECORD = SessionRecord(
    SessionId("a"),
    TenantId("t"),
    Fingerprint("f"),
    "tok",
    SessionFormat.CHAT,
    "system",
    (ToolSpec("n", "d", "{}"),),
    Policy(Fidelity.EXACT),
    {"k": "v"},
    5.0,
    pinned=True,
    parent=SessionId("p"),
    parent_turn=1,
)
TURNS = [
    Turn(0, token_ids=(1, 2), state=TurnState.SEALED),
    Turn(
        1,
        (Message("user", "hé\n"), Message("assistant", "", tool_calls=(ToolCall("i", "n", "{}"),))),
        (3, 4, 5),
        TurnState.SEALED,
        1,
        FinishReason.STOP,
        usage=Usage(1, 2, 3, 0.5),
        reuse=ReuseReport(1, computed=2, reason=MissReason.NEW),
    ),
    Turn(2, (Message("tool", "x", tool_call_id="i"),), (6,)),
]
DATA = b"".join(transfer.dump(RECORD, TURNS))


def load(data: bytes) -> tuple[SessionRecord, list[Turn]]:
    return transfer.load(data, "tok", 10)


def sealed(lines: list[Any]) -> bytes:
    """Return lines of JSON with the right checksum: what anybody can make."""
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return body + json.dumps({"blake3": blake3(body).hexdigest()}).encode() + b"\n"


def forged(change: Callable[[dict[str, Any], list[dict[str, Any]]], object]) -> bytes:
    """Return an export in which ``change`` has altered the record or the turns, checksum included."""
    record, turns = json.loads(json.dumps(asdict(RECORD))), json.loads(json.dumps([asdict(turn) for turn in TURNS]))
    change(record, turns)
    return sealed([{"format": transfer.FORMAT, "version": transfer.VERSION, "turns": len(turns), "session": record}, *turns])


def test_every_field_survives() -> None:
    """What was dumped is loaded, field by field."""
    assert (RECORD, TURNS) == load(DATA)
    assert (RECORD, TURNS) == load(forged(lambda *_: None))


def test_large_sessions_come_in_chunks() -> None:
    """No chunk is larger than promised, and together they are the session."""
    turns = [Turn(0, token_ids=(9,) * 300_000)]
    chunks = list(transfer.dump(RECORD, turns))
    assert len(chunks) > 1
    assert max(map(len, chunks)) == transfer.CHUNK_BYTES
    assert (RECORD, turns) == load(b"".join(chunks))


@given(st.integers(0, len(DATA) - 2))
def test_truncated(length: int) -> None:
    """A session that is cut anywhere before its last brace is refused."""
    with pytest.raises(InvalidInput):
        load(DATA[:length])


@given(st.integers(0, len(DATA) - 2), st.integers(1, 255))
def test_damaged(position: int, flip: int) -> None:
    """A changed byte is found, wherever it is."""
    data = bytearray(DATA)
    data[position] ^= flip
    with pytest.raises((InvalidInput, ModelMismatch)):
        load(bytes(data))


@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(InvalidInput):
        load(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(JSON, min_size=2, max_size=4))
def test_random_json_with_a_right_checksum(lines: list[Any]) -> None:
    """A checksum is no credential: what is inside is checked."""
    with pytest.raises(InvalidInput):
        load(sealed(lines))


@given(st.sampled_from(["session", "turn", "message"]), st.data(), JSON)
def test_fields_of_other_types(where: str, data: st.DataObject, value: Any) -> None:
    """Any field with any value is refused, or loaded as its own type: nothing else breaks."""

    def change(record: dict[str, Any], turns: list[dict[str, Any]]) -> None:
        target = {"session": record, "turn": turns[1], "message": turns[1]["messages"][0]}[where]
        target[data.draw(st.sampled_from(sorted(target)))] = value

    try:
        record, turns = load(forged(change))
    except AgentMemError:
        return
    assert (record, turns) == load(b"".join(transfer.dump(record, turns)))


@pytest.mark.parametrize(
    "change",
    [
        lambda _, turns: turns.reverse(),
        lambda _, turns: turns[2].update(index=7),
        lambda _, turns: turns[1].update(token_ids=[3, 10]),
        lambda _, turns: turns[1].update(token_ids=[3, -1]),
        lambda _, turns: turns[1].update(reply_start=3),
        lambda _, turns: turns[1].update(reply_start=-1),
        lambda _, turns: turns[0].update(reply_start=0),
        lambda _, turns: turns[1].update(messages=[]),
        lambda _, turns: turns[1].update(messages=turns[1]["messages"][:1]),
        lambda _, turns: turns[1]["messages"][0].update(content=5),
        lambda _, turns: turns[1]["messages"][0].update(content="\ud800"),
        lambda _, turns: turns[1]["messages"][0].update(role="boss"),
        lambda _, turns: turns[1]["usage"].update(steps="many"),
        lambda record, _: record.update(labels=["k"]),
        lambda record, _: record.update(system="\ud800"),
        lambda record, _: record.update(ttl_seconds=float("nan")),
        lambda record, _: record.update(ttl_seconds=-1.0),
        lambda record, _: record.update(ttl_seconds="1"),
        lambda record, _: record.update(pinned=1),
        lambda record, _: record.update(unknown=1),
        lambda record, _: record.update(id=""),
        lambda record, _: record.update(id="x" * 200),
        lambda record, _: record.pop("id"),
    ],
)
def test_forged_sessions_are_refused(change: Callable[..., object]) -> None:
    """Turns out of order, unknown tokens, impossible replies and values of another type are InvalidInput."""
    with pytest.raises(InvalidInput):
        load(forged(change))


def test_deep_json_is_refused() -> None:
    """JSON that nests deeper than the parser goes is refused like any other."""
    body = b"[" * 200_000 + b"\n{}\n"
    with pytest.raises(InvalidInput):
        load(body + json.dumps({"blake3": blake3(body).hexdigest()}).encode())


def test_another_version_or_tokenizer() -> None:
    """Another format is named; a foreign tokenizer is a ModelMismatch."""
    header, *rest = [json.loads(line) for line in DATA.splitlines()][:-1]
    with pytest.raises(InvalidInput, match="version 2"):
        load(sealed([{**header, "version": 2}, *rest]))
    with pytest.raises(ModelMismatch, match="tokenizer"):
        transfer.load(DATA, "other", 10)


async def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import stops reading at the limit."""
    monkeypatch.setattr(transfer, "MAX_BYTES", 1000)
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 100
            yield b"x" * 100

    with pytest.raises(InvalidInput, match="1000 bytes"):
        await transfer.collect(endless())
    assert read <= 1100


async def test_an_imported_session_goes_on_exactly(replica: Replica) -> None:
    """Another tenant's import has the same turns, is durable, replays known requests, and its next reply is exact."""
    await replica.create(system="s" * 40, labels={"k": "v"}, ttl_seconds=100.0)
    await replica.ask("a", "one", request_id="r")
    await replica.manager.append(TENANT, "a", user("two"), request_id=None)
    data = await gather_bytes(replica.manager.export(TENANT, "a"))
    info = await replica.manager.import_session(OTHER, chunks_of(data), new_id=None)

    assert replica.tokens() == replica.tokens(tenant=OTHER)
    assert ("a", OTHER, {"k": "v"}, True) == (info.record.id, info.record.tenant, info.record.labels, info.open_turn)
    assert info.record.expires_at > info.record.updated_at
    mine, theirs = await replica.ask("a", "three"), await replica.ask("a", "three", tenant=OTHER)
    assert mine.token_ids == theirs.token_ids == greedy(tuple(replica.tokens()[: -len(mine.token_ids)]), 8)
    assert (0, MissReason.NEW) == (theirs.start.reuse.device, theirs.start.reuse.reason)
    again = await replica.ask("a", "one", request_id="r", tenant=OTHER)
    assert replica.session().turns[1].token_ids[replica.session().turns[1].reply_start :] == again.token_ids
    await replica.restart()
    assert info.record.created_at == (await replica.manager.get(OTHER, "a")).record.created_at


async def test_import_refuses_what_this_server_cannot_serve(replica: Replica) -> None:
    """A policy without code is refused, as at creation; so is a foreign tokenizer. Nothing is left behind."""
    tokenizer = tiny_model().parts.tokenizer
    foreign = b"".join(transfer.dump(RECORD, TURNS))
    unserved = b"".join(transfer.dump(replace(RECORD, tokenizer_hash=tokenizer, policy=Policy(recall="nonsense")), TURNS))
    beyond = b"".join(transfer.dump(replace(RECORD, tokenizer_hash=tokenizer), [Turn(0, token_ids=(VOCAB,))]))
    for data in (foreign, unserved, beyond):
        with pytest.raises(AgentMemError):
            await replica.manager.import_session(TENANT, chunks_of(data), new_id=None)
    assert 0 == replica.manager.stats().sessions
