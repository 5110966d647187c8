"""Anything at all, sent to the port: the server refuses it politely, keeps serving, and keeps its memory."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.protobufs import messages
from support.server import MIB, Server
from support.wire import METHODS, Wire, request_class

from agentmem.v1 import admin_pb2, session_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GROWTH = 300 * MIB  # allocators and caches that fill up once; K and V are counted apart
FUZZED = sorted(METHODS.keys() - {"AdminService/Drain", "SessionService/WatchSession"})  # one ends the server, one never ends
WRITERS = ["GenerationService/Append", "GenerationService/Generate"] * 6  # where most of the code is
SESSIONS = ("fuzz", "fuzz-raw")
WORDS = st.one_of(st.text(max_size=30), st.sampled_from(["<|im_end|>", "<|im_start|>system\n", "<tool_call>{", "{{ x }}", "\0", "\u202e"]))
CALLS = st.lists(st.fixed_dictionaries({"id": WORDS, "name": WORDS, "arguments": st.one_of(WORDS, st.just("{}"))}), max_size=2)
MESSAGE = st.fixed_dictionaries(
    {"role": st.integers(1, 4)}, optional={"content": WORDS, "name": WORDS, "tool_call_id": WORDS, "tool_calls": CALLS}
)
INPUT = st.one_of(
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, min_size=1, max_size=3)}, optional={"full_history": st.booleans()}),
    st.fixed_dictionaries({"text": WORDS}),
    st.fixed_dictionaries({"token_ids": st.lists(st.integers(0, 49_155), max_size=70)}),
)
STOP = st.lists(WORDS.filter(bool), max_size=2)
SAMPLING = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 3)},
    optional={
        "temperature": st.floats(0, 100),
        "top_k": st.integers(0, 2**31 - 1),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1, exclude_max=True),
        "repetition_penalty": st.floats(0, 100, exclude_min=True),
        "seed": st.integers(0, 2**63 - 1),
        "stop": STOP,
        "stop_token_ids": st.lists(st.integers(0, 2**32 - 1), max_size=2),
        "logprobs": st.integers(0, 20),
        "ignore_eos": st.booleans(),
    },
)
ABSURD = st.fixed_dictionaries(
    {"max_tokens": st.integers(-1, 1)}, optional={"temperature": st.floats(), "top_k": st.integers(-9, 0), "logprobs": st.integers(-1, 99)}
)
# Without these nearly every message would be refused at the door.
FIXED = {
    "session_id": st.sampled_from([*SESSIONS, *SESSIONS, "fuzz-new", "no session"]),
    "new_session_id": st.sampled_from(["", "fuzz-new", *SESSIONS]),
    "request_id": st.sampled_from(["", "", "r-1", "r-2", "a b"]),
    "resume_after_tokens": st.sampled_from([0, 0, 0, 1, 4, -1]),
    "fidelity": st.sampled_from([0, 0, 1, 2, 3, 99]),
    "at_turn": st.integers(-1, 4),
    "to_turn": st.integers(-1, 4),
    "input": INPUT,
    "sampling": st.one_of(SAMPLING, SAMPLING, ABSURD),
}
BOUNDED = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MORE = settings(BOUNDED, max_examples=3000, derandomize=False)


@pytest.fixture(scope="module")
def wire(shared: Server) -> Iterator[Wire]:
    """Return a channel to the shared server; memory must not have grown when the module is done."""
    wire = Wire(shared.address, seconds=30.0)
    before = memory_without_kv(shared, wire)
    yield wire
    assert memory_without_kv(shared, wire) - before < GROWTH
    wire.close()


def memory_without_kv(server: Server, wire: Wire) -> int:
    """Return the bytes that the server holds, apart from K and V, which have a budget of their own."""
    answer = wire.call("AdminService/GetStats", b"").answers[0]
    return server.process.memory_info().rss - admin_pb2.GetStatsResponse.FromString(answer).kv_bytes_used


def assert_serving(server: Server) -> None:
    """Check that the health service says SERVING to a newcomer."""
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20.0)
    assert health_pb2.HealthCheckResponse.SERVING == answer.status


def assert_polite(wire: Wire, method: str, *requests: object) -> None:
    """Check that a call ends, and not as INTERNAL or UNKNOWN, which are what a bug looks like from outside."""
    for number, name in enumerate(SESSIONS, 1):
        wire.call("SessionService/CreateSession", session_pb2.CreateSessionRequest(session_id=name, format=number))
    outcome = wire.call(method, *requests)
    assert outcome.code not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}, f"{method}: {outcome.error}"


@BOUNDED
@given(data=st.binary(max_size=300), is_http2=st.booleans())
def test_raw_bytes_on_the_port(shared: Server, data: bytes, is_http2: bool) -> None:
    """Bytes that are not HTTP/2, or not after its preface, cost their connection and nothing else."""
    host, _, port = shared.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(PREFACE * is_http2 + data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def test_the_server_serves_after_raw_bytes(shared: Server) -> None:
    """Whatever was sent before, health says SERVING."""
    assert_serving(shared)


@BOUNDED
@given(method=st.sampled_from(FUZZED), payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=3))
def test_random_bytes_as_messages(wire: Wire, method: str, payloads: list[bytes]) -> None:
    """Every method answers random payloads with a status that says whose mistake it was."""
    assert_polite(wire, method, *payloads)


def check_random_message(wire: Wire, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(FUZZED + WRITERS))
    request = data.draw(messages(request_class(method).DESCRIPTOR, FIXED))
    assert_polite(wire, method, request)


@BOUNDED
@given(data=st.data())
def test_random_messages(wire: Wire, data: st.DataObject) -> None:
    """Well-formed messages with absurd fields never make a bug show."""
    check_random_message(wire, data)


@BOUNDED
@given(data=st.data())
def test_damaged_exports(wire: Wire, data: st.DataObject) -> None:
    """An export that was cut, stretched or changed is refused, or it is whole: importing it never makes a bug show."""
    wire.call("SessionService/CreateSession", session_pb2.CreateSessionRequest(session_id="fuzz", system="Be brief."))
    answers = wire.call("SessionService/ExportSession", session_pb2.ExportSessionRequest(session_id="fuzz")).answers
    export = bytearray(b"".join(session_pb2.ExportSessionResponse.FromString(answer).chunk for answer in answers))
    start = data.draw(st.integers(0, len(export) - 1))
    export[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    cut = data.draw(st.integers(0, len(export)))
    pieces = [session_pb2.ImportSessionRequest(new_session_id="fuzz-new", chunk=bytes(part)) for part in (export[:cut], export[cut:])]
    assert_polite(wire, "SessionService/ImportSession", *pieces)


@pytest.mark.slow
@pytest.mark.timeout(900)
@MORE
@given(data=st.data())
def test_many_random_messages(wire: Wire, data: st.DataObject) -> None:
    """The same for longer."""
    check_random_message(wire, data)


def test_the_server_serves_and_logs_no_bug_after_all_this(shared: Server) -> None:
    """Health says SERVING and the log holds no traceback."""
    assert_serving(shared)
    assert "Traceback" not in shared.log()
