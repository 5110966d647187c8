"""The one interceptor: it makes the Call, takes apart bad bytes, and sends every call through the stages."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from agentmem.api.call import Call, Context, current_call
from agentmem.errors import InvalidInput
from agentmem.telemetry import request_id_var

Stage = Callable[[Call, Context], AbstractAsyncContextManager[None]]
Behaviour = Callable[[object, Context], Awaitable[object] | AsyncGenerator[object]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class _Malformed(Exception):
    """Bytes that are not the message they should be; handed on as a value, in place of the request."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs every known method inside ``stages``, the first outermost.

    The id of the call comes from the client's ``x-request-id`` (1 to 128 printable ASCII characters; anything else is
    replaced) and goes back in the initial metadata. It names the call in logs; it is not the ``request_id`` field that makes
    a reply repeatable.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the method's handler with everything around it; an unknown method stays unknown."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = ("stream" if handler.request_streaming else "unary") + "_" + ("stream" if handler.response_streaming else "unary")
        inner: Behaviour = getattr(handler, kind)

        async def behaviour(request: object, context: Context) -> object:
            return await self._run(inner, handler_call_details.method, request, context)

        make: Callable[..., Handler] = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            behaviour,
            request_deserializer=_tolerant(handler.request_deserializer or bytes),
            response_serializer=handler.response_serializer,
        )

    async def _run(self, inner: Behaviour, method: str, request: object, context: Context) -> object:
        call = Call(method, _request_id(context))
        current_call.set(call)
        request_id_var.set(call.request_id)
        await context.send_initial_metadata(((REQUEST_ID_KEY, call.request_id),))
        async with AsyncExitStack() as stack:
            for stage in self._stages:
                await stack.enter_async_context(stage(call, context))
            return await _respond(inner(_checked(request), context), context)


def _request_id(context: Context) -> str:
    sent = next((str(value) for key, value in context.invocation_metadata() or () if key == REQUEST_ID_KEY), "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


async def _respond(response: Awaitable[object] | AsyncGenerator[object], context: Context) -> object:
    """Await a coroutine's response, or write what a generator yields; a write waits for the client, so nothing piles up."""
    if not isinstance(response, AsyncGenerator):
        return await response
    async with aclosing(response) as messages:
        async for message in messages:
            await context.write(message)
    return None


def _tolerant(deserialize: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a deserializer that hands bad bytes on as a value: raising would end the call as INTERNAL, outside of all stages."""

    def read(raw: bytes) -> object:
        try:
            return deserialize(raw)
        except DecodeError as error:
            return _Malformed(f"the {len(raw)} bytes sent are not the request's message, or hold text that is not UTF-8: {error}")

    return read


def _checked(request: object) -> object:
    if isinstance(request, AsyncIterable):
        return _checked_stream(request)
    if isinstance(request, _Malformed):
        raise InvalidInput(str(request)) from request
    return request


async def _checked_stream(requests: AsyncIterable[object]) -> AsyncGenerator[object]:
    async for request in requests:
        yield _checked(request)
