"""One reply of any OpenAI-compatible server, timed at the client as our own are."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from agentmem.errors import Disconnected, InvalidInput
from agentmem.types import Message, ToolSpec

TIMEOUT = 600.0  # seconds between two pieces of a reply


@dataclass(frozen=True, slots=True)
class Peer:
    """A server under ``url`` (up to and without ``/v1``), called ``name`` in the table."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Return the peer that ``NAME=URL`` names. Raises InvalidInput."""
        name, equals, url = text.partition("=")
        if not (name and equals and urlsplit(url).scheme in {"http", "https"} and urlsplit(url).hostname):
            raise InvalidInput(f"--peer {text!r} is not NAME=URL with a URL like http://127.0.0.1:8000")
        return cls(name, url.rstrip("/").removesuffix("/v1"))

    def reply(self, messages: Sequence[Message], tools: Sequence[ToolSpec], tool: str, max_tokens: int) -> PeerReply:
        """Ask for a greedy reply that calls ``tool``, or none where it is "", and read it to its end. Blocks.

        Raises Disconnected when the server cannot be reached or answers with an error.
        """
        body: dict[str, Any] = {
            "model": self._model(),
            "messages": [as_openai(message) for message in messages],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if tools and tool:
            body["tools"] = [_tool(spec) for spec in tools]
            body["tool_choice"] = {"type": "function", "function": {"name": tool}}
        return self._stream(body)

    def _model(self) -> str:
        with self._request("GET", "/v1/models", None) as answer:
            models = json.load(answer).get("data", [])
        return str(models[0]["id"]) if models else ""

    def _request(self, method: str, path: str, body: object) -> http.client.HTTPResponse:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=TIMEOUT)
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, parts.path + path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
        except OSError as error:
            raise Disconnected(f"peer {self.name} at {self.url} cannot be reached: {error}") from error
        if answer.status != http.client.OK:
            raise Disconnected(f"peer {self.name} answered {answer.status}: {answer.read(500).decode(errors='replace')}")
        return answer

    def _stream(self, body: object) -> PeerReply:
        began = time.perf_counter()
        first = last = 0.0
        pieces = tokens = 0
        with self._request("POST", "/v1/chat/completions", body) as answer:
            for line in answer:
                data = line.decode().strip().removeprefix("data:").strip()
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                tokens = int((event.get("usage") or {}).get("completion_tokens", tokens))
                deltas = [choice.get("delta", {}) for choice in event.get("choices") or ()]
                if any(delta.get("content") or delta.get("tool_calls") for delta in deltas):
                    last = time.perf_counter() - began
                    first = first or last
                    pieces += 1
        return PeerReply(first, last, tokens or pieces)


@dataclass(frozen=True, slots=True)
class PeerReply:
    """Seconds from the request to the first and the last piece, and the tokens: the server's count, else one for each piece."""

    first_token_s: float
    last_token_s: float
    tokens: int


def as_openai(message: Message) -> dict[str, Any]:
    """Return ``message`` as the chat completions API has it."""
    entry: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.tool_calls]
        entry["tool_calls"] = [{"id": name, "type": "function", "function": function} for name, function in calls]
    return entry


def _tool(spec: ToolSpec) -> dict[str, Any]:
    parameters = json.loads(spec.parameters or "{}")
    return {"type": "function", "function": {"name": spec.name, "description": spec.description, "parameters": parameters}}
