"""The error tree and the one table that maps it to gRPC and HTTP.

    AgentMemError
    |-- InvalidInput            INVALID_ARGUMENT     what was sent is wrong; says what is allowed
    |   |-- ContextTooLong      INVALID_ARGUMENT     names the tokens asked for and the limit
    |   |-- TemplateNotAppendable  FAILED_PRECONDITION  the chat template cannot be appended to
    |   `-- UnsupportedModel    FAILED_PRECONDITION  the attention seam cannot serve this architecture
    |-- NotFound                NOT_FOUND            also what another tenant's session answers
    |-- AlreadyExists           ALREADY_EXISTS
    |-- SessionBusy             ABORTED              another writer holds the session
    |-- StaleOwner              ABORTED              a newer epoch owns the session
    |-- ModelMismatch           FAILED_PRECONDITION  the session belongs to another model
    |-- Overloaded              RESOURCE_EXHAUSTED   carries retry_after
    |-- Draining                UNAVAILABLE          carries retry_after
    |-- Cancelled               CANCELLED
    |-- DeadlineExceeded        DEADLINE_EXCEEDED
    |-- Unauthenticated         UNAUTHENTICATED
    |-- Forbidden               PERMISSION_DENIED    the token is known but lacks the role that the call needs
    |-- NotImplementedYet       UNIMPLEMENTED        names the capability that is missing
    |-- StorageFailed           UNAVAILABLE          the disk or database refused a write
    |-- SealFailed              UNAVAILABLE          a seal job was given up; names the job, its attempts and the last error
    |-- Disconnected            UNAVAILABLE          client side: the server could not be reached
    |-- ConfigError             FAILED_PRECONDITION  a setting is unknown or has a wrong value
    `-- InternalError           INTERNAL             a bug; carries the request id

Servers raise these, interceptors turn them into rich statuses by ``STATUS``, clients turn statuses back by ``BY_REASON``.
This module imports neither grpc nor anything else of agentmem.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class AgentMemError(Exception):
    """Base of every error agentmem raises on purpose.

    ``reason`` is the UPPER_SNAKE word of ``google.rpc.ErrorInfo``; ``metadata`` its string map; ``retry_after`` seconds
    after which the same call may succeed, or None when trying again cannot help.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


class InvalidInput(AgentMemError):
    """The caller sent something that can never work; the message names the field and what is allowed."""

    default_reason = "INVALID_INPUT"


class ContextTooLong(InvalidInput):
    """The context would outgrow the model or the memory; the message names both numbers."""

    default_reason = "CONTEXT_TOO_LONG"


class TemplateNotAppendable(InvalidInput):
    """The chat template gives no stable place after which new messages could be appended."""

    default_reason = "TEMPLATE_NOT_APPENDABLE"


class UnsupportedModel(InvalidInput):
    """The model's architecture needs something that the attention seam does not do; the message names it."""

    default_reason = "UNSUPPORTED_MODEL"


class NotFound(AgentMemError):
    """No such session, turn or request for this tenant."""

    default_reason = "NOT_FOUND"


class AlreadyExists(AgentMemError):
    """The id that was asked for is taken."""

    default_reason = "ALREADY_EXISTS"


class SessionBusy(AgentMemError):
    """A session has one writer at a time; another call is writing."""

    default_reason = "SESSION_BUSY"


class StaleOwner(AgentMemError):
    """A write carried an epoch older than the session's."""

    default_reason = "STALE_OWNER"


class ModelMismatch(AgentMemError):
    """The session was made with a model whose tokens mean something else."""

    default_reason = "MODEL_MISMATCH"


class Overloaded(AgentMemError):
    """A queue, a budget or a quota is full; ``retry_after`` says when to come back."""

    default_reason = "OVERLOADED"


class Draining(AgentMemError):
    """The server is shutting down and takes no new work."""

    default_reason = "DRAINING"


class Cancelled(AgentMemError):
    """The caller, or another call of the same tenant, cancelled this one."""

    default_reason = "CANCELLED"


class DeadlineExceeded(AgentMemError):
    """The call's deadline passed."""

    default_reason = "DEADLINE_EXCEEDED"


class Unauthenticated(AgentMemError):
    """The bearer token is missing or unknown."""

    default_reason = "UNAUTHENTICATED"


class Forbidden(AgentMemError):
    """The bearer token is known, but the call needs a role that it does not have."""

    default_reason = "FORBIDDEN"


class NotImplementedYet(AgentMemError):
    """The API names this capability, this version does not have it; the message says which."""

    default_reason = "UNIMPLEMENTED"


class StorageFailed(AgentMemError):
    """The disk or the database refused a write or a read that the call depends on."""

    default_reason = "STORAGE_FAILED"


class SealFailed(AgentMemError):
    """A seal job has no result; the message names the job, its attempts and the last error.

    SEAL_PARKED: it failed as often as it may, and waits for an operator. SEAL_INPUT_LOST: blocks or queries that it reads are
    not there; it may be asked for again once they are.
    """

    default_reason = "SEAL_PARKED"


class Disconnected(AgentMemError):
    """The server could not be reached, or the connection broke."""

    default_reason = "DISCONNECTED"


class ConfigError(AgentMemError):
    """A setting is unknown or its value is not allowed; the message names the nearest known one."""

    default_reason = "CONFIG_ERROR"


class InternalError(AgentMemError):
    """A bug in agentmem."""

    default_reason = "INTERNAL"


class Status(NamedTuple):
    """What an error looks like outside: the name of a ``grpc.StatusCode`` and an HTTP status."""

    grpc: str
    http: int


STATUS: dict[type[AgentMemError], Status] = {
    InvalidInput: Status("INVALID_ARGUMENT", 400),
    ContextTooLong: Status("INVALID_ARGUMENT", 400),
    TemplateNotAppendable: Status("FAILED_PRECONDITION", 422),
    UnsupportedModel: Status("FAILED_PRECONDITION", 422),
    NotFound: Status("NOT_FOUND", 404),
    AlreadyExists: Status("ALREADY_EXISTS", 409),
    SessionBusy: Status("ABORTED", 409),
    StaleOwner: Status("ABORTED", 409),
    ModelMismatch: Status("FAILED_PRECONDITION", 409),
    Overloaded: Status("RESOURCE_EXHAUSTED", 429),
    Draining: Status("UNAVAILABLE", 503),
    Cancelled: Status("CANCELLED", 499),
    DeadlineExceeded: Status("DEADLINE_EXCEEDED", 504),
    Unauthenticated: Status("UNAUTHENTICATED", 401),
    Forbidden: Status("PERMISSION_DENIED", 403),
    NotImplementedYet: Status("UNIMPLEMENTED", 501),
    StorageFailed: Status("UNAVAILABLE", 503),
    SealFailed: Status("UNAVAILABLE", 503),
    Disconnected: Status("UNAVAILABLE", 503),
    ConfigError: Status("FAILED_PRECONDITION", 500),
    InternalError: Status("INTERNAL", 500),
}

BY_REASON: dict[str, type[AgentMemError]] = {cls.default_reason: cls for cls in STATUS}


def status_of(error: AgentMemError) -> Status:
    """Return the outside status of ``error``, by the nearest class in the table."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return STATUS[InternalError]
