"""Streams that overlap, break, crawl, are cancelled or simply abandoned, against the real engine."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc.aio
import pytest
from support.conversation import QUESTIONS, REPLY_TOKENS, SAMPLING, SYSTEM, Heard, ask, hear, request_of, tokens_and_replies
from support.judge import Judge
from support.server import MIB, Server
from support.waiting import until

from agentmem.errors import DeadlineExceeded, SessionBusy
from agentmem.events import FinishEvent, TokenEvent
from agentmem.types import FinishReason, SamplingParams
from agentmem.v1 import generation_pb2
from agentmem.v1.convert import event_from_pb, sampling_to_pb, turn_input_to_pb
from agentmem.v1.generation_pb2_grpc import GenerationServiceStub
from agentmem_client import AsyncAgentMem, AsyncSession, Message, TurnInput

LONG = 400
LONG_SAMPLING = SamplingParams(max_tokens=LONG, ignore_eos=True)


def wire_request(session: AsyncSession, sampling: SamplingParams = SAMPLING, request_id: str = "") -> generation_pb2.GenerateRequest:
    """Return the first question as the bytes of a client that is about to misbehave."""
    given = turn_input_to_pb(TurnInput((Message("user", QUESTIONS[0]),)))
    return generation_pb2.GenerateRequest(session_id=session.id, input=given, sampling=sampling_to_pb(sampling), request_id=request_id)


async def read_some(stream: grpc.aio.UnaryStreamCall[generation_pb2.GenerateRequest, generation_pb2.GenerationEvent], n: int) -> list[int]:
    """Return the first ``n`` (or a few more) tokens of a stream."""
    tokens: list[int] = []
    async for message in stream:
        event = event_from_pb(message)
        if isinstance(event, TokenEvent):
            tokens += event.token_ids
        if len(tokens) >= n:
            break
    return tokens


async def at_rest(client: AsyncAgentMem, session: AsyncSession) -> bool:
    """Return whether nothing runs on the server and nobody writes to the session."""
    stats = await client.stats()
    return not stats.running and not stats.waiting and not (await session.info()).busy


async def assert_exact(session: AsyncSession, judge: Judge) -> None:
    """Check that the session goes on where it stands, with the tokens that a full reading of it gives."""
    assert (await hear(session.generate(QUESTIONS[1], SAMPLING))).acknowledged
    assert judge.first_wrong(*await tokens_and_replies(session)) is None


async def test_a_second_writer_is_told_that_the_session_is_busy(client: AsyncAgentMem) -> None:
    """A Generate while another one runs gets SESSION_BUSY with a time to come back; the first one is not disturbed."""
    async with client.session() as session, aclosing(session.generate(QUESTIONS[0], SAMPLING)) as events:
        first = Heard()
        async for event in events:
            if isinstance(event, TokenEvent):
                first.tokens += event.token_ids
                break
        second = await hear(client.attach(session.id).generate(QUESTIONS[1], SAMPLING))
        await hear(events, first)
    assert isinstance(second.error, SessionBusy)
    assert second.error.retry_after is not None
    assert (True, REPLY_TOKENS) == (first.acknowledged, len(first.tokens))


async def test_a_broken_stream_is_resumed_where_it_broke(client: AsyncAgentMem, shared: Server, reference: list[list[int]]) -> None:
    """The channel closes in the middle; the same request id from elsewhere brings the rest, and nothing is generated twice."""
    async with client.session(system=SYSTEM) as session:
        async with grpc.aio.insecure_channel(shared.address) as channel:
            received = await read_some(GenerationServiceStub(channel).Generate(wire_request(session, request_id=request_of(1))), 4)
        rest = await ask(session, 1, resume_after=len(received))
        info = await session.info()
    assert reference[0] == received + rest.tokens
    assert (True, 2) == (rest.acknowledged, info.n_turns)


async def test_a_sampled_reply_is_repeated_by_its_request_id(client: AsyncAgentMem, shared: Server) -> None:
    """Without a seed, too: another process that sends the same request gets the same tokens, and the turn is there once."""
    sampling = SamplingParams(temperature=1.0, max_tokens=REPLY_TOKENS)
    async with client.session() as session, shared.client() as other:
        one = await hear(session.generate(QUESTIONS[0], sampling, request_id="r"))
        two = await hear(other.attach(session.id).generate(QUESTIONS[0], sampling, request_id="r"))
        info = await session.info()
    assert (None, one.tokens, 2) == (two.error, two.tokens, info.n_turns)


async def test_a_reply_without_request_id_ends_when_its_client_vanishes(client: AsyncAgentMem, shared: Server, judge: Judge) -> None:
    """The run is cancelled, the server is idle again, and the session goes on exactly from what was committed."""
    async with client.session() as session:
        async with grpc.aio.insecure_channel(shared.address) as channel:
            await read_some(GenerationServiceStub(channel).Generate(wire_request(session, LONG_SAMPLING)), 2)
        await until(lambda: at_rest(client, session))
        _, turns = await session.inspect(token_ids=True)
        assert FinishReason.CANCELLED is turns[-1].turn.finish_reason
        assert turns[-1].turn.usage.output_tokens < LONG
        await assert_exact(session, judge)


async def test_cancel_ends_a_reply_within_a_step(client: AsyncAgentMem, judge: Judge) -> None:
    """After Cancel has answered at most a few tokens that were under way follow, and the turn is committed with what it has."""
    heard = Heard()
    async with client.session() as session:
        reading = asyncio.create_task(hear(session.generate(QUESTIONS[0], LONG_SAMPLING, request_id="long"), heard))

        async def talking() -> bool:
            return len(heard.tokens) >= 3

        await until(talking, 40.0)
        assert await session.cancel("long")
        so_far = len(heard.tokens)
        await reading
        assert heard.finish is not None
        assert (FinishReason.CANCELLED, True) == (heard.finish.finish_reason, heard.finish.durable)
        assert len(heard.tokens) <= so_far + 4
        assert not await session.cancel("long")
        await assert_exact(session, judge)


async def test_a_deadline_ends_a_reply_and_keeps_what_it_has(client: AsyncAgentMem, judge: Judge) -> None:
    """The client gets DEADLINE_EXCEEDED, the engine stops, and the session goes on exactly from what was committed."""
    async with client.session() as session:
        await session.append(QUESTIONS[0])  # so that the deadline falls into decoding
        heard = await hear(session.generate(QUESTIONS[1], LONG_SAMPLING, deadline_seconds=2.0))
        assert isinstance(heard.error, DeadlineExceeded)
        assert 0 < len(heard.tokens) < LONG
        await until(lambda: at_rest(client, session))
        _, turns = await session.inspect(token_ids=True)
        assert turns[-1].turn.finish_reason in {FinishReason.DEADLINE, FinishReason.CANCELLED}
        await assert_exact(session, judge)


@pytest.mark.timeout(180)
async def test_a_slow_reader_costs_nobody_else_anything(client: AsyncAgentMem, shared: Server) -> None:
    """While it reads an event every 0.2 s, others are answered and the server's memory stays flat; it still gets every token."""
    n_tokens = 120
    sampling = SamplingParams(max_tokens=n_tokens, ignore_eos=True, logprobs=20)  # large events, so that buffers would fill
    slow, slow_is_slow = Heard(), asyncio.Event()
    slow_is_slow.set()

    async def crawl() -> None:
        async for event in session.generate(QUESTIONS[0], sampling):
            if isinstance(event, TokenEvent):
                slow.tokens += event.token_ids
            if isinstance(event, FinishEvent):
                slow.finish = event
            if slow_is_slow.is_set():
                await asyncio.sleep(0.2)

    async with client.session() as session, client.session() as other:
        before = shared.process.memory_info().rss
        crawling = asyncio.create_task(crawl())
        for question in QUESTIONS[:3]:
            assert (await hear(other.generate(question, SAMPLING))).acknowledged
        assert len(slow.tokens) < n_tokens
        slow_is_slow.clear()
        await crawling
        grown = shared.process.memory_info().rss - before
    assert n_tokens == len(slow.tokens)
    assert slow.finish is not None
    assert grown < 100 * MIB
