"""The call that the running code works for: who asked, under which id, until when."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc.aio

from agentmem.errors import Forbidden
from agentmem.types import TenantId

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

NOBODY = TenantId("")


@dataclass(slots=True)
class Call:
    """One running gRPC call. The stages fill in what they find out. ``deadline``: seconds of the monotonic clock, None for never."""

    method: str  # "/agentmem.v1.SessionService/GetSession"
    request_id: str
    tenant: TenantId = NOBODY
    admin: bool = False
    deadline: float | None = None


current_call: ContextVar[Call] = ContextVar("current_call")


def tenant() -> TenantId:
    """Return the tenant of the running call."""
    return current_call.get().tenant


def require_admin() -> None:
    """Raise Forbidden unless the running call's token has the admin role."""
    call = current_call.get()
    if not call.admin:
        name = call.method.rpartition("/")[2]
        raise Forbidden(f"{name} needs a token with the admin role: a line `token tenant admin` in the server's api_keys file")
