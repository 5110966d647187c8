from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent, GenerationEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.types import (
    ROLES,
    Fidelity,
    FidelityReport,
    FinishReason,
    Message,
    MissReason,
    Policy,
    Prefill,
    RequestId,
    ReuseReport,
    SamplingParams,
    SessionId,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    Turn,
    TurnInput,
    TurnState,
    Usage,
)
from agentmem.v1 import convert, generation_pb2, types_pb2

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
COUNT = st.integers(0, 2**31 - 1)
TOKEN = st.integers(0, 2**32 - 1)
TOKENS = st.lists(TOKEN, max_size=5).map(tuple)
SECONDS = st.floats(0, 1e9)
CALLS = st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=2).map(tuple)
MESSAGES = st.builds(Message, st.sampled_from(ROLES), TEXT, TEXT, TEXT, CALLS)
FIDELITIES = st.sampled_from(Fidelity)
REUSES = st.builds(ReuseReport, COUNT, COUNT, COUNT, COUNT, COUNT, st.sampled_from(MissReason), TEXT)
SHARES = st.floats(0, 1)
USAGES = st.builds(Usage, COUNT, COUNT, COUNT, SECONDS, SECONDS, SECONDS, COUNT, SHARES)
REPORTS = st.builds(
    FidelityReport,
    COUNT, SHARES, SECONDS, SECONDS, st.none() | COUNT, SHARES, SHARES, COUNT, SHARES, COUNT, st.booleans(), TEXT,
)  # fmt: skip
POLICIES = st.builds(
    Policy,
    fidelity=FIDELITIES,
    compressor=TEXT,
    keep=st.floats(0, 1, exclude_min=True),
    recall=TEXT,
    recall_tokens=st.integers(1, 65_536),
    bits=st.sampled_from([64, 256, 1024]),
    stride=st.integers(1, 64),
    dense_layers=st.integers(0, 1024),
    prefill=st.sampled_from(Prefill),
    reencode=st.booleans(),
    objective=SHARES,
)
LOGPROBS = st.lists(st.builds(TokenLogprob, TOKEN, st.floats(-100, 0)), max_size=3).map(tuple)
REQUEST_IDS = TEXT.filter(bool).map(RequestId)
TURNS = st.builds(
    Turn,
    index=COUNT,
    messages=st.lists(MESSAGES, max_size=2).map(tuple),
    token_ids=TOKENS,
    state=st.sampled_from(TurnState),
    reply_start=st.none() | COUNT,
    finish_reason=st.none() | st.sampled_from(FinishReason),
    fidelity=FIDELITIES,
    request_id=st.none() | REQUEST_IDS,
    usage=USAGES,
    reuse=REUSES,
    created_at=SECONDS,
    report=st.none() | REPORTS,
)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_k=COUNT,
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1, exclude_max=True),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    seed=st.none() | st.integers(0, 2**63 - 1),
    max_tokens=st.integers(1, 1_000_000),
    stop=st.lists(TEXT.filter(bool), max_size=3).map(tuple),
    stop_token_ids=TOKENS,
    logprobs=st.none() | st.integers(0, 20),
    ignore_eos=st.booleans(),
)
EVENTS: st.SearchStrategy[GenerationEvent] = st.one_of(
    st.builds(StartEvent, TEXT.map(SessionId), REQUEST_IDS, COUNT, REUSES, FIDELITIES, COUNT, COUNT),
    st.builds(ProgressEvent, COUNT, COUNT, st.booleans()),
    st.builds(TokenEvent, COUNT, TOKENS, TEXT, LOGPROBS, st.lists(LOGPROBS, max_size=2).map(tuple)),
    st.builds(
        FinishEvent,
        turn_index=COUNT,
        finish_reason=st.sampled_from(FinishReason),
        message=st.none() | MESSAGES,
        text=TEXT,
        usage=USAGES,
        reuse=REUSES,
        fidelity=FIDELITIES,
        durable=st.booleans(),
        detail=TEXT,
    ),
)


@given(MESSAGES)
def test_messages(message: Message) -> None:
    """A message survives the wire."""
    assert message == convert.message_from_pb(convert.message_to_pb(message))


@given(TURNS)
def test_turns(turn: Turn) -> None:
    """A turn survives the wire; zero and None stay apart."""
    assert turn == convert.turn_from_pb(types_pb2.Turn.FromString(convert.turn_to_pb(turn).SerializeToString()))


@given(PARAMS)
def test_sampling(params: SamplingParams) -> None:
    """Sampling parameters survive the wire; zero and None stay apart."""
    assert params == convert.sampling_from_pb(types_pb2.SamplingParams.FromString(convert.sampling_to_pb(params).SerializeToString()))


@given(EVENTS)
def test_events(event: GenerationEvent) -> None:
    """Every kind of event survives the wire."""
    assert event == convert.event_from_pb(generation_pb2.GenerationEvent.FromString(convert.event_to_pb(event).SerializeToString()))


@given(st.builds(TurnInput, st.lists(MESSAGES, max_size=3).map(tuple), TEXT, TOKENS, st.booleans()))
def test_turn_inputs(turn_input: TurnInput) -> None:
    """What a call adds survives the wire."""
    assert turn_input == convert.turn_input_from_pb(convert.turn_input_to_pb(turn_input))


@given(st.builds(ToolSpec, TEXT, TEXT, TEXT))
def test_tools(tool: ToolSpec) -> None:
    """A tool definition survives the wire."""
    assert (tool,) == convert.tools_from_pb(convert.tools_to_pb([tool]))


@given(POLICIES)
def test_policies(policy: Policy) -> None:
    """A policy survives the wire."""
    assert policy == convert.policy_from_pb(types_pb2.Policy.FromString(convert.policy_to_pb(policy).SerializeToString()))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dense_layers": 2}, Policy(dense_layers=2)),
        ({"objective": 0.0}, Policy(objective=0.0)),
        ({"reencode": False}, Policy(reencode=False)),
    ],
)
def test_a_policy_may_set_one_field(fields: dict[str, Any], expected: Policy) -> None:
    """What a policy leaves out has its default; a zero that is set stays zero."""
    assert expected == convert.policy_from_pb(types_pb2.Policy(**fields))


def test_a_name_that_the_wire_cannot_carry() -> None:
    """A lone surrogate in a method's name is refused before anything is sent."""
    with pytest.raises(InvalidInput, match="policy holds a lone surrogate"):
        convert.policy_to_pb(Policy(compressor="\ud800"))


def test_what_is_unset_has_its_default() -> None:
    """Empty messages mean the defaults of the records."""
    assert SamplingParams() == convert.sampling_from_pb(types_pb2.SamplingParams())
    assert Policy() == convert.policy_from_pb(types_pb2.Policy())
    assert ReuseReport() == convert.reuse_from_pb(types_pb2.ReuseReport())
    assert Usage() == convert.usage_from_pb(types_pb2.Usage())


def test_an_event_of_a_newer_server_is_skipped() -> None:
    """A kind of event that this version has no name for is None, not an error."""
    assert None is convert.event_from_pb(generation_pb2.GenerationEvent.FromString(b"\xfa\x01\x00"))


def test_a_turn_without_what_is_long() -> None:
    """Messages and token ids can be left out."""
    turn = Turn(1, (Message("user", "x"),), (1, 2))
    assert Turn(1) == convert.turn_from_pb(convert.turn_to_pb(turn, messages=False, token_ids=False))


@pytest.mark.parametrize(
    ("turn_input", "says"),
    [
        (TurnInput(text="a\ud800"), "input holds a lone surrogate at character 1, which UTF-8 cannot carry"),
        (TurnInput(token_ids=(-1,)), "input holds a value that cannot be sent: Value out of range: -1"),
        (TurnInput(token_ids=(2**32,)), "input holds a value that cannot be sent: Value out of range"),
        (TurnInput(text=5), "input holds a value that cannot be sent: bad argument type"),  # type: ignore[arg-type]
        (TurnInput((Message("tool", "", tool_call_id="\udfff"),)), "message holds a lone surrogate at character 0"),
    ],
)
def test_what_the_wire_cannot_carry(turn_input: TurnInput, says: str) -> None:
    """The caller gets agentmem's own error, naming what was wrong, before anything is sent."""
    with pytest.raises(InvalidInput) as caught:
        convert.turn_input_to_pb(turn_input)
    assert says in str(caught.value)


def test_conversion_loads_neither_torch_nor_grpc() -> None:
    """Records can be converted where only protobuf is installed."""
    code = "import sys, agentmem.v1.convert, agentmem.v1.views, agentmem.v1.status; print({'torch', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "set()\n" == done.stdout
