"""One reply, read to its end over as many streams as it takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from agentmem.errors import AgentMemError, Disconnected
from agentmem.events import FinishEvent, GenerationEvent, StartEvent, TokenEvent
from agentmem.v1.convert import event_from_pb
from agentmem.v1.generation_pb2 import GenerateRequest
from agentmem.v1.generation_pb2 import GenerationEvent as WireEvent
from agentmem_client.received import ReceivedTokens
from agentmem_client.transport import Transport


class Reply:
    """The events of a request with a ``request_id``: each once and in order, whatever happens to the connection.

    After a broken stream the same request is sent again with ``resume_after_tokens``; the server goes on after them.
    """

    def __init__(self, transport: Transport, request: GenerateRequest, seconds: float) -> None:
        self._transport = transport
        self._request = request
        self._attempts = transport.attempts(seconds)
        self._started = False
        self._finished = False
        self._received = ReceivedTokens(request.resume_after_tokens)

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """Yield the events. Raises what the server raised, or the transport's error when reconnecting did not help."""
        while not self._finished:
            try:
                async with aclosing(self._one_stream()) as events:
                    async for event in events:
                        if isinstance(event, TokenEvent):  # a server that always dies before the first token makes no progress
                            self._attempts.succeeded()
                        yield event
                if not self._finished:
                    raise Disconnected("the stream ended before the reply did")
            except AgentMemError as error:
                await self._attempts.failed(error)

    async def _one_stream(self) -> AsyncGenerator[GenerationEvent, None]:
        self._request.resume_after_tokens = self._received.count
        stream = self._transport.stream("GenerationService/Generate", self._request, WireEvent, seconds=self._attempts.remaining)
        async with aclosing(stream) as messages:
            async for message in messages:
                event = event_from_pb(message)
                if event is not None and self._is_news(event):
                    yield event

    def _is_news(self, event: GenerationEvent) -> bool:
        """Count ``event``; False when an earlier stream already delivered it. Raises InternalError when tokens are missing."""
        match event:
            case StartEvent():
                seen, self._started = self._started, True
                return not seen
            case TokenEvent():
                return self._received.adds(event)
            case FinishEvent():
                self._finished = True
        return True
