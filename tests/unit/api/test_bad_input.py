"""Bad input for every RPC, sent over a real connection: INVALID_ARGUMENT that names the field and what is allowed."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from google.protobuf.message import Message as ProtoMessage
from support.api import Api, refusal

from agentmem.api.server import SERVICES
from agentmem.errors import InvalidInput
from agentmem.v1 import admin_pb2, generation_pb2, memory_pb2, session_pb2

ALL = (session_pb2, generation_pb2, memory_pb2, admin_pb2)
METHODS = {
    f"{service.name}.{method.name}": method
    for module in ALL
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
STEPPED = {"GenerationService.Converse"}  # its steps are looked at one by one: test_generation.py
NOTHING_REQUIRED = {
    "SessionService.CreateSession", "SessionService.ListSessions", "SessionService.ImportSession",
    "AdminService.GetStats", "AdminService.ListPrefixes", "AdminService.Drain", "AdminService.GetPlacement",
}  # fmt: skip
STUBS = {"SessionService": "session", "GenerationService": "generation", "MemoryService": "memory", "AdminService": "admin"}

PRINTABLE = "allowed: 1 to 128 printable ASCII characters without spaces"
MANY_LABELS = {str(i): "" for i in range(65)}
TOOL = {"name": "f", "parameters": "{}"}


class Bad(NamedTuple):
    """A request that can't work, and what the error must say."""

    method: str
    fields: dict[str, Any]
    says: str


def with_id(method: str, says: str, **fields: Any) -> Bad:
    return Bad(method, {"session_id": "s", **fields}, says)


GENERATE = "GenerationService.Generate"
APPEND = "GenerationService.Append"
CREATE = "SessionService.CreateSession"
LIST = "SessionService.ListSessions"
UPDATE = "SessionService.UpdateSession"
FORK = "SessionService.ForkSession"
RECALL = "MemoryService.Recall"
FORGET = "MemoryService.Forget"
POLICIES = (
    ({"keep": 0}, "policy.keep is 0.0; allowed: above 0, up to 1"),
    ({"keep": 1.01}, "policy.keep is 1.01; allowed: above 0, up to 1"),
    ({"keep": float("nan")}, "policy.keep is nan; allowed: above 0, up to 1"),
    ({"recall_tokens": 0}, "policy.recall_tokens is 0; allowed: 1 to 65536"),
    ({"recall_tokens": 65_537}, "policy.recall_tokens is 65537; allowed: 1 to 65536"),
    ({"bits": 100}, "policy.bits is 100; allowed: 64 to 1024, a multiple of 64"),
    ({"bits": 0}, "policy.bits is 0; allowed: 64 to 1024, a multiple of 64"),
    ({"stride": 0}, "policy.stride is 0; allowed: 1 to 64 steps"),
    ({"dense_layers": -1}, "policy.dense_layers is -1; allowed: 0 to 1024"),
    ({"objective": 1.5}, "policy.objective is 1.5; allowed: 0 (budgets stay) to 1"),
    ({"prefill": 9}, "policy.prefill is 9, which is none of: PREFILL_EXACT, PREFILL_VIEW"),
)
NEEDS_ID = sorted(METHODS.keys() - NOTHING_REQUIRED - STEPPED)

CASES = [
    *(Bad(method, {}, f"session_id is ''; {PRINTABLE}") for method in NEEDS_ID),
    *(Bad(method, {"session_id": "a b"}, f"session_id is 'a b'; {PRINTABLE}") for method in NEEDS_ID),
    *(Bad(method, {"session_id": "x" * 129}, "session_id is 'xxx") for method in NEEDS_ID),
    Bad(CREATE, {"session_id": "ä"}, PRINTABLE),
    Bad(CREATE, {"format": 7}, "format is 7, which is none of: SESSION_FORMAT_CHAT, SESSION_FORMAT_RAW"),
    Bad(CREATE, {"policy": {"fidelity": 77}}, "policy.fidelity is 77, which is none of: FIDELITY_AUTO"),
    Bad(CREATE, {"ttl_seconds": -1}, "ttl_seconds is -1.0; allowed: 0 or more seconds"),
    Bad(CREATE, {"ttl_seconds": float("nan")}, "ttl_seconds is nan; allowed: 0 or more seconds"),
    Bad(CREATE, {"ttl_seconds": float("inf")}, "ttl_seconds is inf; allowed: 0 or more seconds"),
    Bad(CREATE, {"labels": MANY_LABELS}, "labels has 65 entries; allowed: at most 64"),
    Bad(CREATE, {"labels": {"": "x"}}, "labels key is ''; allowed: 1 to 256 characters"),
    Bad(CREATE, {"labels": {"k" * 257: "x"}}, "allowed: 1 to 256 characters"),
    Bad(CREATE, {"labels": {"k": "v" * 257}}, "allowed: up to 256 characters"),
    Bad(CREATE, {"tools": [TOOL] * 513}, "tools has 513 entries; allowed: at most 512"),
    Bad(CREATE, {"tools": [TOOL, TOOL]}, "tools[1].name is 'f'; allowed: a name that no other tool has"),
    Bad(CREATE, {"tools": [{"name": ""}]}, "tools[0].name is ''; allowed: a name that no other tool has"),
    Bad(CREATE, {"tools": [{"name": "f", "parameters": "[]"}]}, "tools[0].parameters is '[]'; allowed: a JSON schema"),
    Bad(CREATE, {"tools": [{"name": "f", "parameters": "{"}]}, "tools[0].parameters is '{'; allowed: a JSON schema"),
    Bad(CREATE, {"format": 2, "system": "x"}, "system is set in a RAW session"),
    Bad(CREATE, {"format": 2, "tools": [TOOL]}, "tools is set in a RAW session"),
    Bad(LIST, {"page_size": -1}, "page_size is -1; allowed: 0 to 1000"),
    Bad(LIST, {"page_size": 1001}, "page_size is 1001; allowed: 0 to 1000"),
    Bad(LIST, {"page_token": "x" * 1025}, "allowed: a next_page_token of an earlier page, or empty"),
    Bad(LIST, {"labels": MANY_LABELS}, "labels has 65 entries; allowed: at most 64"),
    with_id(UPDATE, "ttl_seconds is -1.0; allowed: 0 or more seconds", ttl_seconds=-1),
    with_id(UPDATE, "labels has 65 entries; allowed: at most 64", labels={"entries": MANY_LABELS}),
    with_id(UPDATE, "policy.fidelity is 9", policy={"fidelity": 9}),
    with_id(FORK, "at_turn is -1; allowed: 0 or more", at_turn=-1),
    with_id(FORK, f"new_session_id is 'a\\n'; {PRINTABLE}", new_session_id="a\n"),
    with_id(FORK, "labels has 65 entries; allowed: at most 64", labels={"entries": MANY_LABELS}),
    with_id("SessionService.RollbackSession", "to_turn is not set; allowed: the last turn to keep, 0 or more"),
    with_id("SessionService.RollbackSession", "to_turn is -2; allowed: 0 or more", to_turn=-2),
    Bad("SessionService.ImportSession", {"new_session_id": " "}, f"new_session_id is ' '; {PRINTABLE}"),
    with_id(APPEND, "input is empty; allowed: messages, text or token_ids"),
    with_id(APPEND, f"request_id is 'a b'; {PRINTABLE}", input={"text": "x"}, request_id="a b"),
    with_id(APPEND, "input has text and token_ids; allowed: one of", input={"text": "x", "token_ids": [1]}),
    with_id(APPEND, "input.messages has 20001 entries; allowed: at most 20000", input={"messages": [{"role": 2}] * 20_001}),
    with_id(APPEND, "input.messages[0].role is 0, which is none of: ROLE_ASSISTANT", input={"messages": [{"content": "x"}]}),
    with_id(GENERATE, "input.messages[1].role is 9, which is none of", input={"messages": [{"role": 2}, {"role": 9}]}),
    with_id(GENERATE, "input.full_history is set without input.messages", input={"full_history": True}),
    with_id(GENERATE, "input has messages and text; allowed: one of", input={"messages": [{"role": 2}], "text": "x"}),
    with_id(GENERATE, "fidelity is 99, which is none of: FIDELITY_AUTO", fidelity=99),
    with_id(GENERATE, "resume_after_tokens is -1; allowed: 0 or more", resume_after_tokens=-1, request_id="r"),
    with_id(GENERATE, "temperature is -1.0; allowed: 0 (greedy) to 100", sampling={"temperature": -1}),
    with_id(GENERATE, "sampling is 'not finite'; allowed: finite numbers", sampling={"top_p": float("nan")}),
    with_id(GENERATE, "top_k is -1; allowed: 0 (off) or more", sampling={"top_k": -1}),
    with_id(GENERATE, "top_p is 0.0; allowed: above 0", sampling={"top_p": 0}),
    with_id(GENERATE, "seed is -1; allowed: 0 to", sampling={"seed": -1}),
    with_id(GENERATE, "max_tokens is 0; allowed: 1 to 1000000", sampling={"max_tokens": 0}),
    with_id(GENERATE, "logprobs is 21; allowed: none, or 0 to 20", sampling={"logprobs": 21}),
    with_id(GENERATE, "stop is ('äää", sampling={"stop": ["ä" * 1000] * 17}),  # longer than trailers may be
    *(Bad(CREATE, {"policy": policy}, says) for policy, says in POLICIES),
    *(with_id(UPDATE, says, policy=policy) for policy, says in POLICIES),
    with_id(RECALL, "text is ''; allowed: a text that is not empty", k=5),
    with_id(RECALL, "k is 0; allowed: 1 to 1000", text="x", k=0),
    with_id(RECALL, "k is -1; allowed: 1 to 1000", text="x", k=-1),
    with_id(RECALL, "k is 1001; allowed: 1 to 1000", text="x", k=1001),
    with_id(FORGET, "messages has 0 entries; allowed: 1 to 20000"),
    with_id(FORGET, "messages has 20001 entries; allowed: 1 to 20000", messages=[{"turn_index": 1, "message_index": 0}] * 20_001),
    with_id(FORGET, "messages[0].turn_index is 0; allowed: 1 or more; turn 0", messages=[{"message_index": 1}]),
    with_id(FORGET, "messages[0].message_index is not set; allowed: which of the turn's messages", messages=[{"turn_index": 1}]),
    with_id(
        FORGET, "messages[1].message_index is -1; allowed: 0 or more", messages=[{"turn_index": 1, "message_index": i} for i in (0, -1)]
    ),
    with_id("MemoryService.SetFidelity", "fidelity is 0, which is none of: FIDELITY_AUTO"),
    with_id("MemoryService.SetFidelity", "fidelity is 9, which is none of: FIDELITY_AUTO", fidelity=9),
    with_id("GenerationService.EndTurn", "eta_seconds is -1.0; allowed: 0 or more seconds", eta_seconds=-1),
    with_id("GenerationService.Cancel", f"request_id is ''; {PRINTABLE}"),
    Bad("AdminService.ListPrefixes", {"limit": -5}, "limit is -5; allowed: 0 to 1000"),
    Bad("AdminService.Drain", {"seconds": -1}, "seconds is -1.0; allowed: 0 to 3600 seconds"),
    Bad("AdminService.Drain", {"seconds": float("nan")}, "seconds is nan; allowed: 0 to 3600 seconds"),
    Bad("AdminService.GetPlacement", {"session_id": "a b"}, f"session_id is 'a b'; {PRINTABLE}"),
]


def request_of(method: str, fields: dict[str, Any]) -> ProtoMessage:
    kind = METHODS[method].input_type._concrete_class
    made: ProtoMessage = kind(**fields)
    return made


def send(api: Api, method: str, request: Any) -> Any:
    service, _, name = method.partition(".")
    call = getattr(getattr(api, STUBS[service]), name)
    return call(iter([request])) if METHODS[method].client_streaming else call(request)


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.method}-{case.says[:40]}") for case in CASES])
async def test_bad_input_is_refused(api: Api, case: Bad) -> None:
    """INVALID_ARGUMENT names the field and what is allowed; the manager never sees the call."""
    error = await refusal(send(api, case.method, request_of(case.method, case.fields)))
    assert InvalidInput is type(error)
    assert case.says in str(error)
    assert not [name for name, _, _ in api.sessions.calls if name != "import"]


def test_every_method_has_a_bad_input() -> None:
    """A new RPC must join the table; GetStats has no field that could be wrong."""
    assert METHODS.keys() - STEPPED - {"AdminService.GetStats"} == {case.method for case in CASES}
    assert {service.rpartition(".")[2] for service in SERVICES} == STUBS.keys()


def has_text_first(method: str) -> bool:
    first = METHODS[method].input_type.fields_by_number.get(1)
    return first is not None and first.type == first.TYPE_STRING


READ = sorted(METHODS)
BROKEN = [(method, raw) for raw in (b"\xff", b"\x0a\x7f") for method in READ]
NOT_UTF8 = [(method, b"\x0a\x02\xff\xfe") for method in READ if has_text_first(method)]


@pytest.mark.parametrize(("method", "raw"), BROKEN + NOT_UTF8)
async def test_bytes_that_are_no_message(api: Api, method: str, raw: bytes) -> None:
    """Text that is not UTF-8 and broken encoding are the caller's mistake, not an internal error."""
    descriptor = METHODS[method]
    kind = ("stream" if descriptor.client_streaming else "unary") + "_" + ("stream" if descriptor.server_streaming else "unary")
    call = getattr(api.channel, kind)(f"/{descriptor.containing_service.full_name}/{descriptor.name}")
    error = await refusal(call(iter([raw])) if descriptor.client_streaming else call(raw))
    assert InvalidInput is type(error)
    assert f"the {len(raw)} bytes sent are not the request's message, or hold text that is not UTF-8" in str(error)


async def test_ten_thousand_messages_are_passed_on(api: Api) -> None:
    """A long conversation is the manager's to judge, not a malformed request."""
    request = request_of(APPEND, {"session_id": "s", "input": {"messages": [{"role": 2, "content": "x"}] * 10_000}})
    await send(api, APPEND, request)
    [(_, args, _)] = api.sessions.calls
    assert 10_000 == len(args[2].messages)
