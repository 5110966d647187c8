"""The replay of recorded agents: what it does, with a tiny model and a server in this process, not what it finds."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.in_process import InProcess
from support.replica import save_replica_model

from agentmem.bench import toolloop
from agentmem.bench.options import Options
from agentmem.bench.peer import Peer, as_openai
from agentmem.bench.toolloop import Sizes
from agentmem.bench.traces import Trace, TraceTurn
from agentmem.errors import Disconnected, InvalidInput
from agentmem.types import Message, ToolCall, ToolSpec

TOOL = ToolSpec("f", "d", json.dumps({"type": "object", "properties": {"x": {"enum": ["aa", "ab"]}}, "required": ["x"]}))
CALL = ToolCall("c00000000", "f", '{"x": "aa"}')
TURNS = (
    TraceTurn((Message("user", "go"),), Message("assistant", "", tool_calls=(CALL,)), "f", 128),
    TraceTurn((Message("tool", "done", "f", CALL.id),), Message("assistant", "well"), "", 8),
)
TRACE = Trace("tiny", "about", "s", (TOOL,), TURNS)


class OpenAI(BaseHTTPRequestHandler):
    """Answers every chat with two pieces and a count."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body["max_tokens"] == 1:
            self.send_error(500)
            return
        events = [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"delta": {"tool_calls": [{}]}}]}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in [*events, {"choices": [], "usage": {"completion_tokens": 7}}]]
        self._answer("".join([*lines, "data: [DONE]\n\n"]))

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Return a server that speaks the chat completions API."""
    OpenAI.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAI)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Peer("other", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_trace_is_replayed_under_every_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: Peer) -> None:
    """Each turn is timed with every drafter and every peer, HF once; calls are the recorded tool's, and all drafters say the same."""
    monkeypatch.setattr(toolloop, "ServerProcess", InProcess)
    monkeypatch.setattr(toolloop, "load_traces", lambda _names: (TRACE,))
    options = Options(str(save_replica_model(tmp_path / "model")), "fp32", 1, 1, tmp_path / "cache")
    report = await toolloop.run(options, lambda _: None, Sizes(drafters=("none", "suffix", "auto"), peers=(peer,)))

    assert ["none", "suffix", "auto", "other", "HF generate"] == [row["variant"] for row in report.rows if row["trace"] == "tiny"]
    assert ["none", "suffix", "auto"] == [row["variant"] for row in report.rows if row["trace"] == "all"]
    assert "2 of 2 turns" in report.notes[0]
    assert {"speedup", "slowest_trace", "hf_turn"} == set(report.measured)
    turns = report.settings["per_turn"]
    assert [("none", 1), ("none", 2), ("suffix", 1)] == [(turn["variant"], turn["turn"]) for turn in turns[:3]]
    assert "tool_calls" == turns[0]["finish"]
    assert turns[0]["drafted"] == 0 < turns[2]["accepted"]
    assert json.dumps(report.as_dict(), allow_nan=False)
    first, second = OpenAI.asked
    assert {"type": "function", "function": {"name": "f"}} == first["tool_choice"]
    assert ["system", "user", "assistant", "tool"] == [message["role"] for message in second["messages"]]
    assert CALL.id == second["messages"][2]["tool_calls"][0]["id"] == second["messages"][3]["tool_call_id"]


def test_the_controller_is_compared_with_nothing() -> None:
    """Without both there is no ratio."""
    with pytest.raises(InvalidInput, match="none and auto must be among them"):
        Sizes(drafters=("suffix", "auto"))


def test_a_peer_is_timed_at_its_pieces(peer: Peer) -> None:
    """The server's own count of tokens is taken."""
    reply = peer.reply([Message("user", "x")], (), "", 5)
    assert 7 == reply.tokens
    assert 0 < reply.first_token_s <= reply.last_token_s
    assert "m" == OpenAI.asked[-1]["model"]


def test_a_peer_that_fails_is_named(peer: Peer) -> None:
    """An error and an address where nobody listens say whose they are."""
    with pytest.raises(Disconnected, match="peer other answered 500"):
        peer.reply([Message("user", "x")], (), "", 1)
    with pytest.raises(Disconnected, match="cannot be reached"):
        Peer("gone", "http://127.0.0.1:9").reply([], (), "", 5)


@pytest.mark.parametrize("text", ["other", "=http://x", "other=ftp://x", "other=http://"])
def test_a_peer_is_a_name_and_a_url(text: str) -> None:
    """Anything else is refused with an example; a trailing /v1 is no part of it."""
    with pytest.raises(InvalidInput, match="NAME=URL"):
        Peer.parse(text)
    assert Peer("a", "http://h:1") == Peer.parse("a=http://h:1/v1/")


def test_messages_go_out_as_the_api_has_them() -> None:
    """Calls and the ids that answer them keep their names."""
    sent = as_openai(Message("assistant", "hm", tool_calls=(CALL,)))
    assert {"name": "f", "arguments": '{"x": "aa"}'} == sent["tool_calls"][0]["function"]
    assert {"role": "tool", "content": "y", "tool_call_id": "c"} == as_openai(Message("tool", "y", "", "c"))
