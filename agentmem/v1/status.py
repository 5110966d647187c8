"""agentmem's errors to ``google.rpc.Status`` and back, without grpc: both ends only move the bytes.

A server sends the bytes as trailing metadata ``grpc-status-details-bin``, beside the code and the message of the call.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from agentmem import errors
from agentmem.errors import BY_REASON, AgentMemError, status_of

DOMAIN = "agentmem"
DETAILS_KEY = "grpc-status-details-bin"

CODE_NUMBERS: dict[str, int] = dict(code_pb2.Code.items())

# What a status means that carries no details of ours: grpc itself, or a proxy, made it.
_BY_CODE: dict[str, type[AgentMemError]] = {
    "CANCELLED": errors.Cancelled,
    "INVALID_ARGUMENT": errors.InvalidInput,
    "OUT_OF_RANGE": errors.InvalidInput,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.AlreadyExists,
    "PERMISSION_DENIED": errors.Forbidden,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "RESOURCE_EXHAUSTED": errors.Overloaded,
    "FAILED_PRECONDITION": errors.InvalidInput,
    "ABORTED": errors.SessionBusy,
    "UNIMPLEMENTED": errors.NotImplementedYet,
    "UNAVAILABLE": errors.Disconnected,
}


# grpc's words for a message above the size limit; sending it again cannot help, other than with a queue that is full.
_TOO_LARGE = "message larger than max"

# Trailers above 8 KiB are refused by clients; the message travels twice, once with up to three bytes for one.
_MAX_MESSAGE_BYTES = 1000


def shortened(message: str) -> str:
    """Return ``message``, cut where it would not fit into trailing metadata."""
    raw = message.encode("utf-8", "replace")
    return raw.decode() if len(raw) <= _MAX_MESSAGE_BYTES else raw[:_MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + "..."


def status_details(error: AgentMemError) -> bytes:
    """Return a serialized ``google.rpc.Status`` with ErrorInfo, and RetryInfo where trying again may help."""
    status = status_pb2.Status(code=CODE_NUMBERS[status_of(error).grpc], message=shortened(error.message))
    metadata = {key: shortened(value) for key, value in error.metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def error_from_status(code: str, message: str, details: bytes | None) -> AgentMemError:
    """Return the error that a server meant by a status.

    ``code`` is the name of the gRPC code, ``details`` the bytes of ``grpc-status-details-bin`` if there were any. A reason
    that this version has no class for, and a status that agentmem did not make, become the nearest class of the code.
    """
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in _parse(details).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    ours = info.domain == DOMAIN
    too_large = code == "RESOURCE_EXHAUSTED" and _TOO_LARGE in message
    fallback = errors.InvalidInput if too_large else _BY_CODE.get(code, errors.InternalError)
    kind = BY_REASON.get(info.reason, fallback) if ours else fallback
    return kind(message, reason=info.reason if ours else None, retry_after=retry_after, metadata=dict(info.metadata) if ours else None)


def _parse(details: bytes | None) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(details or b"")
    except DecodeError:  # a proxy's bytes; the code and the message still say what happened
        return status_pb2.Status()
