"""What no client should send, over the wire, for every RPC: the right code, the right reason, and a server as healthy as before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.conversation import SAMPLING, hear
from support.server import MIB, Server
from support.waiting import until
from support.wire import METHODS, STEPPED, Wire, request_class

from agentmem.errors import ContextTooLong, InvalidInput, NotFound
from agentmem.types import Message, SessionFormat, TurnInput
from agentmem.v1 import generation_pb2, session_pb2
from agentmem_client import AsyncAgentMem

CODE = grpc.StatusCode
MAX_MESSAGE = 2 * MIB
CONTEXT = 8192  # SmolLM2's trained length
HI = [{"role": "ROLE_USER", "content": "Hi"}]
# What makes a request about a session complete, so that the session is all that is wrong with it.
REST: dict[str, dict[str, Any]] = {
    "SessionService/RollbackSession": {"to_turn": 0},
    "GenerationService/Append": {"input": {"messages": HI}},
    "GenerationService/Generate": {"input": {"messages": HI}, "sampling": {"max_tokens": 1}},
    "GenerationService/Cancel": {"request_id": "r"},
    "MemoryService/Recall": {"text": "Hi"},
    "MemoryService/Forget": {"messages": [{"turn_index": 1, "message_index": 0}]},
    "MemoryService/SetFidelity": {"fidelity": "FIDELITY_EXACT"},
}
NO_SESSION = {
    "SessionService/CreateSession", "SessionService/ListSessions", "SessionService/ImportSession",
    "AdminService/GetStats", "AdminService/ListPrefixes", "AdminService/Drain",
}  # fmt: skip
ABOUT_A_SESSION = sorted(METHODS.keys() - NO_SESSION - STEPPED)


@pytest.fixture(scope="module")
def guarded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with two tenants, small messages and a quick reaper; it must have logged no error when all is done."""
    directory = tmp_path_factory.mktemp("guarded")
    keys = directory / "keys"
    keys.touch(mode=0o600)
    keys.write_text("secret-a tenant-a admin\nsecret-b tenant-b\n")
    settings = {"server.api_keys": str(keys), "server.max_message_bytes": MAX_MESSAGE, "storage.reap_seconds": 0.2}
    server = Server(directory / "state", models, settings).start()
    yield server
    server.kill()
    assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def wire(guarded: Server) -> Iterator[Wire]:
    """Return tenant a's channel; its sessions "s" (chat) and "raw" exist and have a turn."""
    wire = Wire(guarded.address, token="secret-a")
    for fields in ({"session_id": "s"}, {"session_id": "raw", "format": "SESSION_FORMAT_RAW"}):
        assert CODE.OK is wire.call("SessionService/CreateSession", session_pb2.CreateSessionRequest(**fields)).code
    yield wire
    wire.close()


@pytest.fixture(autouse=True)
def _healthy(wire: Wire) -> Iterator[None]:
    """After every test the server answers a well-behaved client."""
    yield
    request = generation_pb2.GenerateRequest(session_id="s", **REST["GenerationService/Generate"])
    assert CODE.OK is wire.call("GenerationService/Generate", request).code


@pytest.mark.parametrize("method", sorted(METHODS))
def test_bytes_that_are_no_message_are_invalid(wire: Wire, method: str) -> None:
    """Every method refuses them as INVALID_ARGUMENT, also one that this version lacks: it reads before it refuses."""
    code, error, _ = wire.call(method, b"\xff\xff\xff not protobuf")
    assert (CODE.INVALID_ARGUMENT, "INVALID_INPUT") == (code, error.reason if error else None)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"GenerationService/Converse"}))
def test_messages_above_the_limit_are_refused(wire: Wire, method: str) -> None:
    """A message above server.max_message_bytes is RESOURCE_EXHAUSTED, and not even read."""
    assert CODE.RESOURCE_EXHAUSTED is wire.call(method, b"\x0a" * (MAX_MESSAGE + 1)).code


@pytest.mark.parametrize("method", ABOUT_A_SESSION)
def test_sessions_that_are_not_there_for_the_caller_are_not_found(wire: Wire, guarded: Server, method: str) -> None:
    """An unknown session and another tenant's give the same NOT_FOUND, apart from the name that the caller sent."""
    make = request_class(method)
    stranger = Wire(guarded.address, token="secret-b")
    unknown = wire.call(method, make(session_id="nobody", **REST.get(method, {})))
    foreign = stranger.call(method, make(session_id="s", **REST.get(method, {})))
    stranger.close()
    for outcome in (unknown, foreign):
        assert (CODE.NOT_FOUND, NotFound) == (outcome.code, type(outcome.error))
    assert str(unknown.error).replace("nobody", "s") == str(foreign.error)


@pytest.mark.parametrize("method", ABOUT_A_SESSION)
@pytest.mark.parametrize("session_id", ["", "a b", "x" * 129, "\u00e4", "\n"])
def test_names_that_no_session_can_have_are_invalid(wire: Wire, method: str, session_id: str) -> None:
    """A missing, too long or unprintable session id is INVALID_ARGUMENT; GetPlacement alone works without one."""
    expected = CODE.OK if (method, session_id) == ("AdminService/GetPlacement", "") else CODE.INVALID_ARGUMENT
    assert expected is wire.call(method, request_class(method)(session_id=session_id, **REST.get(method, {}))).code


GENERATE, APPEND, CREATE = "GenerationService/Generate", "GenerationService/Append", "SessionService/CreateSession"


@pytest.mark.parametrize(
    ("method", "fields", "code", "says"),
    [
        (CREATE, {"session_id": "s"}, CODE.ALREADY_EXISTS, "'s'"),
        (CREATE, {"format": 9}, CODE.INVALID_ARGUMENT, "format is 9"),
        (CREATE, {"ttl_seconds": -1}, CODE.INVALID_ARGUMENT, "ttl_seconds is -1.0"),
        (CREATE, {"policy": {"keep": 0.0}}, CODE.INVALID_ARGUMENT, "policy.keep is 0.0"),
        (CREATE, {"policy": {"keep": 1.5}}, CODE.INVALID_ARGUMENT, "policy.keep is 1.5"),
        (CREATE, {"policy": {"compressor": "keydif"}}, CODE.INVALID_ARGUMENT, "did you mean 'keydiff'"),
        (CREATE, {"system": "word " * 9000}, CODE.INVALID_ARGUMENT, "8192"),
        ("SessionService/ListSessions", {"page_size": -1}, CODE.INVALID_ARGUMENT, "page_size is -1"),
        ("SessionService/ListSessions", {"page_token": "made up"}, CODE.INVALID_ARGUMENT, "page"),
        ("SessionService/UpdateSession", {"session_id": "s", "ttl_seconds": float("nan")}, CODE.INVALID_ARGUMENT, "ttl_seconds is nan"),
        ("SessionService/ForkSession", {"session_id": "s", "at_turn": 99999}, CODE.NOT_FOUND, "has no turn 99999"),
        ("SessionService/ForkSession", {"session_id": "s", "at_turn": -1}, CODE.INVALID_ARGUMENT, "at_turn is -1"),
        ("SessionService/ForkSession", {"session_id": "s", "new_session_id": "raw"}, CODE.ALREADY_EXISTS, "'raw'"),
        ("SessionService/RollbackSession", {"session_id": "s"}, CODE.INVALID_ARGUMENT, "to_turn is not set"),
        ("SessionService/RollbackSession", {"session_id": "s", "to_turn": 99999}, CODE.NOT_FOUND, "has no turn 99999"),
        ("SessionService/ImportSession", {"chunk": b"not an export"}, CODE.INVALID_ARGUMENT, "export"),
        ("SessionService/ImportSession", {}, CODE.INVALID_ARGUMENT, "export"),
        (APPEND, {"session_id": "s"}, CODE.INVALID_ARGUMENT, "input is empty"),
        (APPEND, {"session_id": "s", "input": {"text": "x"}}, CODE.INVALID_ARGUMENT, "CHAT session"),
        (APPEND, {"session_id": "s", "input": {"messages": [{"content": "x"}]}}, CODE.INVALID_ARGUMENT, "input.messages[0].role"),
        (APPEND, {"session_id": "raw", "input": {"messages": HI}}, CODE.INVALID_ARGUMENT, "RAW session"),
        (APPEND, {"session_id": "raw", "input": {"token_ids": [49152]}}, CODE.INVALID_ARGUMENT, "ids 0 to 49151"),
        (APPEND, {"session_id": "raw", "input": {"token_ids": [2**32 - 1]}}, CODE.INVALID_ARGUMENT, "ids 0 to 49151"),
        (GENERATE, {"session_id": "raw"}, CODE.INVALID_ARGUMENT, "nothing to continue"),
        (GENERATE, {"session_id": "s", "input": {"messages": HI}, "sampling": {"top_k": -1}}, CODE.INVALID_ARGUMENT, "top_k is -1"),
        (GENERATE, {"session_id": "s", "input": {"messages": HI}, "sampling": {"max_tokens": 0}}, CODE.INVALID_ARGUMENT, "max_tokens"),
        (GENERATE, {"session_id": "s", "input": {"messages": HI}, "fidelity": 77}, CODE.INVALID_ARGUMENT, "fidelity is 77"),
        (GENERATE, {"session_id": "s", "input": {"messages": HI}, "resume_after_tokens": 3}, CODE.INVALID_ARGUMENT, "request_id"),
        ("GenerationService/EndTurn", {"session_id": "s", "eta_seconds": -1}, CODE.INVALID_ARGUMENT, "eta_seconds is -1"),
        ("GenerationService/Cancel", {"session_id": "s"}, CODE.INVALID_ARGUMENT, "request_id"),
        ("AdminService/ListPrefixes", {"limit": -5}, CODE.INVALID_ARGUMENT, "limit is -5"),
        ("AdminService/Drain", {"seconds": -1}, CODE.INVALID_ARGUMENT, "seconds is -1"),
    ],
)
def test_wrong_fields_are_named(wire: Wire, method: str, fields: dict[str, Any], code: grpc.StatusCode, says: str) -> None:
    """The status fits what is wrong and the message names it."""
    outcome = wire.call(method, request_class(method)(**fields))
    assert code is outcome.code, outcome.error
    assert says in str(outcome.error)


def test_only_the_admin_may_ask_for_numbers_or_a_shutdown(guarded: Server) -> None:
    """Another tenant's token gets PERMISSION_DENIED for GetStats and Drain."""
    stranger = Wire(guarded.address, token="secret-b")
    for method in ("AdminService/GetStats", "AdminService/Drain"):
        assert CODE.PERMISSION_DENIED is stranger.call(method, b"").code
    stranger.close()


@pytest.mark.parametrize("token", ["", "secret-c", "secret"])
def test_calls_without_a_known_token_are_unauthenticated(guarded: Server, token: str) -> None:
    """Every method refuses a missing or unknown token before it looks at anything else."""
    nobody = Wire(guarded.address, token=token)
    for method in METHODS:
        assert CODE.UNAUTHENTICATED is nobody.call(method, b"").code, method
    nobody.close()


def client_of(server: Server) -> AsyncAgentMem:
    """Return tenant a's client."""
    return server.client(token="secret-a")


async def test_a_context_too_long_names_both_numbers_and_loses_nothing(guarded: Server) -> None:
    """A message longer than the model's context is CONTEXT_TOO_LONG with both numbers, and the session works on as it was."""
    async with client_of(guarded) as client, client.session() as session:
        assert (await hear(session.generate("Hi", SAMPLING))).acknowledged
        before = await session.info()
        heard = await hear(session.generate("word " * 9000, SAMPLING))
        assert isinstance(heard.error, ContextTooLong)
        assert str(CONTEXT) == heard.error.metadata["limit"]
        assert int(heard.error.metadata["tokens"]) > 9000
        assert heard.error.metadata["tokens"] in heard.error.message
        assert heard.error.metadata["limit"] in heard.error.message
        after = await session.info()
        assert (before.n_turns, before.n_tokens) == (after.n_turns, after.n_tokens)
        assert (await hear(session.generate("Hi again", SAMPLING))).acknowledged


@pytest.mark.timeout(120)
async def test_ten_thousand_messages_in_one_append(guarded: Server) -> None:
    """They are refused because of the tokens they make, not because of their number, and nothing is lost."""
    messages = [Message(("user", "assistant")[i % 2], "Hi") for i in range(10_000)]
    async with client_of(guarded) as client, client.session() as session:
        with pytest.raises(ContextTooLong, match=str(CONTEXT)):
            await session.append(messages)
        assert 1 == (await session.info()).n_turns


async def test_lone_surrogates_are_refused_before_they_are_sent(guarded: Server) -> None:
    """Text that UTF-8 cannot hold is InvalidInput at the client, wherever it stands."""
    async with client_of(guarded) as client, client.session() as session, client.session(format=SessionFormat.RAW) as raw:
        with pytest.raises(InvalidInput, match="lone surrogate"):
            await session.append("\ud800")
        with pytest.raises(InvalidInput, match="lone surrogate"):
            await session.append(Message("user", "x", name="\udfff"))
        with pytest.raises(InvalidInput, match="lone surrogate"):
            await raw.append(TurnInput(text="\ud800"))
        with pytest.raises(InvalidInput, match="lone surrogate"):
            await client.session(system="\ud800").open()


async def test_an_expired_session_is_gone_for_every_method(guarded: Server, wire: Wire) -> None:
    """Once its time has passed it answers NOT_FOUND, and the reaper removes it from the ledger."""
    async with client_of(guarded) as client:
        before = (await client.stats()).sessions
        await client.session("short-lived", ttl_seconds=0.2).open()

        async def reaped() -> bool:
            return before == (await client.stats()).sessions

        await until(reaped)
    for method in ABOUT_A_SESSION:
        request = request_class(method)(session_id="short-lived", **REST.get(method, {}))
        assert CODE.NOT_FOUND is wire.call(method, request).code, method
