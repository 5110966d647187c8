"""Every method of every service, called with any bytes, without the client's good manners."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from agentmem.errors import AgentMemError
from agentmem.v1 import admin_pb2, generation_pb2, memory_pb2, session_pb2
from agentmem.v1.status import DETAILS_KEY, error_from_status

METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in (session_pb2, generation_pb2, memory_pb2, admin_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
STEPPED = {"GenerationService/Converse"}  # takes steps for as long as there are some


class Outcome(NamedTuple):
    """How a call ended: the status, the error that the client would raise, and the bytes of the answers."""

    code: grpc.StatusCode
    error: AgentMemError | None
    answers: list[bytes]


class Wire:
    """A channel without a client. ``token`` is sent as bearer token where there is one."""

    def __init__(self, address: str, *, token: str = "", seconds: float = 20.0) -> None:
        self.seconds = seconds
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def call(self, method: str, *requests: Message | bytes, seconds: float | None = None) -> Outcome:
        """Call ``Service/Method`` with one request, or several where it takes a stream, and read all answers."""
        descriptor = METHODS[method]
        kind = ("stream" if descriptor.client_streaming else "unary") + "_" + ("stream" if descriptor.server_streaming else "unary")
        make: Any = getattr(self._channel, kind)
        given = [request if isinstance(request, bytes) else request.SerializeToString() for request in requests]
        argument: Any = iter(given) if descriptor.client_streaming else given[0]
        answers: list[bytes] = []
        try:
            answer: Iterable[bytes] | bytes = make(f"/agentmem.v1.{method}")(
                argument, timeout=seconds or self.seconds, metadata=self._metadata
            )
            answers.extend([answer] if isinstance(answer, bytes) else answer)
        except grpc.RpcError as failure:
            details = dict(failure.trailing_metadata() or ()).get(DETAILS_KEY)
            return Outcome(failure.code(), error_from_status(failure.code().name, failure.details() or "", details), answers)
        return Outcome(grpc.StatusCode.OK, None, answers)


def request_class(method: str) -> type[Message]:
    """Return the class of a method's request."""
    name = METHODS[method].input_type.name
    return next(getattr(module, name) for module in (session_pb2, generation_pb2, memory_pb2, admin_pb2) if hasattr(module, name))
