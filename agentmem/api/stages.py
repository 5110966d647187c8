"""What every call passes on its way to a servicer, outermost first: Measure, map_errors, Deadline, then auth.Authenticate.

A stage is an async context manager around the rest of the call; it may fill in the Call, and raise AgentMemError where
``map_errors`` is outside of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import grpc
import grpc.aio

from agentmem.api.call import Call, Context
from agentmem.errors import AgentMemError, DeadlineExceeded, InternalError, status_of
from agentmem.telemetry import Metrics
from agentmem.v1.status import DETAILS_KEY, shortened, status_details

log = logging.getLogger(__name__)

# Streams that are meant to stay open: the server gives them no deadline of its own.
_OPEN_ENDED = (
    "/agentmem.v1.GenerationService/Converse",
    "/agentmem.v1.SessionService/WatchSession",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# The engine ends a reply at the deadline and says so with a finish event; cutting the call off is the second line of defence.
_GRACE_SECONDS = 5.0


class Measure:
    """Counts calls and times them by method and status code, and logs each."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @asynccontextmanager
    async def around(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Measure the rest of the call, whatever becomes of it."""
        start = time.monotonic()
        code = "OK"
        self._metrics.calls_running.labels(call.method).inc()
        try:
            yield
        except grpc.aio.AbortError:
            code = context.code().name
            raise
        except BaseException:  # map_errors is inside: what is left is the end of the task, because the client is gone
            code = "CANCELLED"
            raise
        finally:
            seconds = time.monotonic() - start
            self._metrics.calls_running.labels(call.method).dec()
            self._metrics.calls.labels(call.method, code).inc()
            self._metrics.call_seconds.labels(call.method).observe(seconds)
            level = logging.DEBUG if code == "OK" else logging.INFO
            log.log(level, "call", extra={"method": call.method, "code": code, "tenant": call.tenant, "seconds": round(seconds, 6)})


@asynccontextmanager
async def map_errors(call: Call, context: Context) -> AsyncIterator[None]:
    """End the call with a rich status for any error; one that is not ours is a bug, and told by the request id only."""
    try:
        yield
    except AgentMemError as error:
        await _abort(context, error)
    except grpc.aio.BaseError:  # a servicer that isn't ours (health, reflection) has ended the call itself
        raise
    except Exception:
        log.exception("unexpected error in %s", call.method)
        message = f"internal error; the server's log tells more under request id {call.request_id}"
        await _abort(context, InternalError(message, metadata={"request_id": call.request_id}))


async def _abort(context: Context, error: AgentMemError) -> None:
    code = grpc.StatusCode[status_of(error).grpc]
    await context.abort(code, shortened(error.message), ((DETAILS_KEY, status_details(error)),))


class Deadline:
    """Gives every call a deadline: the client's, or else ``default_seconds`` from now."""

    def __init__(self, default_seconds: float) -> None:
        self._default_seconds = default_seconds

    @asynccontextmanager
    async def around(self, call: Call, context: Context) -> AsyncIterator[None]:
        """Fill in the call's deadline and enforce the server's own; grpc enforces the client's. Raises DeadlineExceeded."""
        remaining = cast("float | None", context.time_remaining())  # None where the client set no deadline, whatever its type says
        if remaining is not None:
            call.deadline = time.monotonic() + remaining
            yield
            return
        if call.method in _OPEN_ENDED:
            yield
            return
        call.deadline = time.monotonic() + self._default_seconds
        try:
            async with asyncio.timeout(self._default_seconds + _GRACE_SECONDS) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"the call sent no deadline and ran into the server's default of {self._default_seconds:g} seconds"
            ) from error
