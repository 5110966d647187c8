"""Records survive the way into the database and back."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import session

from agentmem.errors import InvalidInput
from agentmem.stores.rows import decode_tokens, encode_tokens, session_record, session_row, turn_record, turn_row
from agentmem.types import (
    Fidelity,
    FidelityReport,
    FinishReason,
    Message,
    MissReason,
    Policy,
    Prefill,
    RequestId,
    ReuseReport,
    SessionId,
    SessionRecord,
    ToolCall,
    ToolSpec,
    Turn,
    TurnState,
    Usage,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
MESSAGES = st.builds(Message, st.sampled_from(["user", "assistant", "tool"]), TEXT, TEXT, TEXT, CALLS)
REPORTS = st.builds(
    FidelityReport,
    tokens=st.integers(0, 1000),
    mean_kl=st.floats(0, 100),
    worst_position=st.none() | st.integers(0, 10**6),
    next_keep=st.floats(0.01, 1),
    reencoded=st.booleans(),
    reference=TEXT,
)
POLICIES = st.builds(
    Policy,
    fidelity=st.sampled_from(Fidelity),
    compressor=TEXT,
    keep=st.floats(0.01, 1),
    recall=TEXT,
    recall_tokens=st.integers(1, 1000),
    dense_layers=st.integers(0, 9),
    prefill=st.sampled_from(Prefill),
    reencode=st.booleans(),
)
TURNS = st.builds(
    Turn,
    index=st.integers(0, 1000),
    messages=st.lists(MESSAGES, max_size=3).map(tuple),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=20).map(tuple),
    state=st.sampled_from(TurnState),
    reply_start=st.none() | st.integers(0, 20),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    fidelity=st.sampled_from(Fidelity),
    request_id=st.none() | TEXT.map(RequestId),
    input_digest=TEXT,
    usage=st.builds(Usage, st.integers(0, 100), total_seconds=st.floats(0, 1e9)),
    reuse=st.builds(ReuseReport, disk=st.integers(0, 100), reason=st.sampled_from(MissReason), detail=TEXT),
    created_at=st.floats(0, 1e12),
    report=st.none() | REPORTS,
)
SESSIONS = st.builds(
    session,
    TEXT,
    system=TEXT,
    policy=POLICIES,
    tools=st.lists(st.builds(ToolSpec, TEXT, TEXT, TEXT), max_size=2).map(tuple),
    labels=st.dictionaries(TEXT, TEXT, max_size=3),
    pinned=st.booleans(),
    ttl_seconds=st.floats(0, 1e9),
    parent=st.none() | TEXT.map(SessionId),
    parent_turn=st.none() | st.integers(0, 9),
)


def through_sqlite(columns: dict[str, object]) -> sqlite3.Row:
    """Return ``columns`` as a row that SQLite has held."""
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    names = ", ".join(f":{name} AS {name}" for name in columns)
    found: sqlite3.Row = connection.execute(f"SELECT {names}", columns).fetchone()
    connection.close()
    return found


@given(TURNS)
def test_turn_round_trip(turn: Turn) -> None:
    """Every field of a turn comes back as it was."""
    assert turn == turn_record(through_sqlite(turn_row(turn)))


@given(SESSIONS)
def test_session_round_trip(record: SessionRecord) -> None:
    """Every field of a session comes back as it was."""
    assert record == session_record(through_sqlite(session_row(record)))


def test_policy_of_an_older_row() -> None:
    """A row that knows no more than the fidelity gets the defaults of the other fields."""
    columns = {**session_row(session()), "policy": '{"fidelity":"exact"}'}
    assert Policy(Fidelity.EXACT) == session_record(through_sqlite(columns)).policy


def test_tokens_are_little_endian_int32() -> None:
    """The stored bytes are the same on every machine."""
    assert bytes.fromhex("01000000ffffff7f") == encode_tokens((1, 2**31 - 1))
    assert (1, 2**31 - 1) == decode_tokens(bytes.fromhex("01000000ffffff7f"))


def test_tokens_on_a_big_endian_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a big-endian machine the bytes are swapped both ways."""
    monkeypatch.setattr("sys.byteorder", "big")
    assert (1, 258) == decode_tokens(encode_tokens((1, 258)))


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**70])
def test_token_out_of_range_is_refused(token_id: int) -> None:
    """A token id that int32 cannot hold, or a negative one, is refused with the range."""
    with pytest.raises(InvalidInput, match=r"outside 0 to 2\*\*31 - 1"):
        encode_tokens((token_id,))
