"""The tool loop on one stream, on a real engine: results in pieces, what breaks off, and who may write meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import pytest
from support.replica import MAX_CONTEXT, TENANT, Replica, until, user

from agentmem.conversing import ConverseStep, ResultPiece
from agentmem.errors import ContextTooLong, InvalidInput, SessionBusy
from agentmem.events import ConverseEvent, FinishEvent, PieceEvent, TokenEvent
from agentmem.types import Message, Policy, SamplingParams, SessionFormat, TurnInput

PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)
RESULT = "line one of what the tool has said\nline two\n" * 8


def say(text: str = "hello", request_id: str = "") -> ConverseStep:
    return ConverseStep("a", given=user(text), params=PARAMS, request_id=request_id)


def pieces(text: str, size: int = 40, call: str = "c", request_id: str = "r", *, more: bool = False, offset: int = 0) -> list[ConverseStep]:
    """Return the steps that send ``text`` in pieces of ``size`` characters."""
    cuts = range(0, max(1, len(text)), size)
    return [
        ConverseStep(
            "a",
            piece=ResultPiece(call, text[at : at + size], last=at == cuts[-1], more=more and at == cuts[-1], offset=offset + at),
            params=PARAMS,
            request_id=request_id,
        )
        for at in cuts
    ]


async def feed(steps: Iterable[ConverseStep]) -> AsyncIterator[ConverseStep]:
    for step in steps:
        yield step


async def converse(replica: Replica, steps: Iterable[ConverseStep]) -> list[ConverseEvent]:
    """Send the steps and return every event."""
    async with aclosing(replica.manager.converse(TENANT, feed(steps))) as events:
        return [event async for event in events]


def tokens(events: Iterable[ConverseEvent]) -> tuple[int, ...]:
    return tuple(token for event in events if isinstance(event, TokenEvent) for token in event.token_ids)


async def whole(replica: Replica, name: str = "whole") -> tuple[tuple[int, ...], list[int]]:
    """Return the reply to RESULT sent as one message, and all tokens of the session that got it."""
    await replica.create(name, policy=Policy(drafter="none"))
    await replica.ask(name, "hello", 8, ignore_eos=True)
    answer = await replica.ask(name, TurnInput((Message("tool", RESULT, "", "c"),)), 8, ignore_eos=True)
    return answer.token_ids, replica.tokens(name)


@pytest.mark.parametrize("size", [1, 7, 40, 300, 10_000])
async def test_pieces_equal_the_whole(replica: Replica, size: int) -> None:
    """However the result is cut, the session's tokens and the reply are those of one message; what could be computed ahead was."""
    reply, session = await whole(replica)
    await replica.create()
    events = await converse(replica, [say(), *pieces(RESULT, size)])
    accepted = [event for event in events if isinstance(event, PieceEvent)]

    assert reply == tokens(events)[-8:]
    assert session == replica.tokens("a")
    assert len(RESULT) == accepted[-1].received
    assert [event.prefilled for event in accepted] == sorted(event.prefilled for event in accepted)
    if size < 100:
        assert accepted[-1].prefilled > 200
        finish = events[-1]
        assert isinstance(finish, FinishEvent)
        assert finish.reuse.computed < len(RESULT) - 200


async def test_results_of_several_calls_make_one_turn(replica: Replica) -> None:
    """With ``more`` the server waits for the next result; the reply comes after the last, one of 0 bytes included."""
    await replica.create()
    first, second = "one " * 80, ""
    events = await converse(replica, [say(), *pieces(first, call="c1", more=True), *pieces(second, call="c2", offset=len(first))])
    turn = replica.session().turns[-1]

    assert [("tool", first, "c1"), ("tool", second, "c2")] == [(m.role, m.content, m.tool_call_id) for m in turn.messages[:-1]]
    assert 2 == sum(isinstance(event, FinishEvent) for event in events)


async def test_a_broken_stream_goes_on_where_it_was(replica: Replica) -> None:
    """Pieces wait for their client: a new stream skips what the server has, asks for what is missing, and then the reply comes."""
    reply, session = await whole(replica)
    await replica.create()
    steps = pieces(RESULT)
    await converse(replica, [say(), *steps[:5]])
    assert replica.session().writer is None
    assert len(replica.session().turns) == 2
    with pytest.raises(InvalidInput, match="only 200 characters have arrived"):
        await converse(replica, steps[6:])
    events = await converse(replica, [*steps[3:]])

    assert [200, 200, 240] == [event.received for event in events if isinstance(event, PieceEvent)][:3]
    assert reply == tokens(events)
    assert session == replica.tokens("a")


async def test_results_that_are_whole_are_skipped_when_they_come_again(replica: Replica) -> None:
    """The last piece's answer is lost: all of it is sent again, and a result of 0 bytes after another makes neither a second one."""
    await replica.create()
    first = "one " * 80
    steps = [*pieces(first, call="c1", more=True), *pieces("", call="c2", more=True, offset=len(first))]
    steps += pieces("", call="c3", offset=len(first))
    await converse(replica, [say(), *steps[:-1]])
    await converse(replica, steps)

    assert [first, "", ""] == [message.content for message in replica.session().turns[-1].messages[:-1]]
    assert ["c1", "c2", "c3"] == [message.tool_call_id for message in replica.session().turns[-1].messages[:-1]]


async def test_a_result_that_is_sent_again_to_a_server_that_lost_it(replica: Replica) -> None:
    """After a crash in the middle of the reply it is computed anew, and the client hears only what comes after the tokens it has."""
    reply, session = await whole(replica)
    await replica.create()
    await converse(replica, [say()])
    await replica.restart()
    events = await converse(replica, [dataclasses.replace(step, resume_after=3) for step in pieces(RESULT)])

    assert reply[3:] == tokens(events)
    assert session == replica.tokens("a")


async def test_a_stream_that_is_dead_takes_nothing_from_the_one_that_came_after_it(replica: Replica) -> None:
    """Pieces belong to whoever sent the last: the old stream may end late, in the middle of the new one's, and is refused if it goes on."""
    reply, session = await whole(replica)
    await replica.create()
    await converse(replica, [say()])
    steps, going, late = pieces(RESULT), asyncio.Event(), asyncio.Event()

    async def hanging() -> AsyncIterator[ConverseStep]:
        for step in steps[:5]:
            yield step
        going.set()
        await late.wait()
        yield steps[5]

    async def taking_over() -> AsyncIterator[ConverseStep]:
        for step in steps[:7]:
            yield step
        late.set()
        assert isinstance((await asyncio.gather(old, return_exceptions=True))[0], SessionBusy)
        assert "Converse" == replica.session().writer
        for step in steps[7:]:
            yield step

    async def follow(source: AsyncIterator[ConverseStep]) -> list[ConverseEvent]:
        async with aclosing(replica.manager.converse(TENANT, source)) as events:
            return [event async for event in events]

    old = asyncio.create_task(follow(hanging()))
    await going.wait()
    events = await follow(taking_over())
    assert reply == tokens(events)
    assert session == replica.tokens("a")


async def test_a_tool_may_be_waited_for_between_two_results(replica: Replica) -> None:
    """One call's result is there, the other's takes a while: saying so changes nothing."""
    await replica.create()
    steps = [*pieces("one", call="c1", more=True), ConverseStep("a", waiting=1.0), *pieces("two", call="c2", offset=3)]
    assert 16 == len(tokens(await converse(replica, [say(), *steps])))


async def test_a_reply_is_taken_up_by_its_request_id(replica: Replica) -> None:
    """A message with the id of a reply that there is goes on after the tokens that the client has; nothing is generated twice."""
    await replica.create()
    steps = pieces(RESULT)
    reply = tokens(await converse(replica, [say(), *steps]))[-8:]
    again = await converse(replica, [ConverseStep("a", request_id="r", resume_after=3)])
    resent = await converse(replica, [steps[-1]])

    assert reply[3:] == tokens(again)
    assert reply == tokens(resent)
    assert len(replica.session().turns) == 3


async def test_a_client_that_goes_leaves_the_session_free(replica: Replica) -> None:
    """In the middle of a result nobody else writes; when its client vanishes the session is as it was, and others write at once."""
    await replica.create()
    await converse(replica, [say()])
    before = list(replica.session().chain.tokens)
    going = asyncio.Event()

    async def hanging() -> AsyncIterator[ConverseStep]:
        for step in pieces(RESULT)[:8]:
            yield step
        going.set()
        await asyncio.Event().wait()

    async def follow() -> None:
        async with aclosing(replica.manager.converse(TENANT, hanging())) as events:
            async for _ in events:
                pass

    client = asyncio.create_task(follow())
    await going.wait()
    with pytest.raises(SessionBusy, match="Converse is writing"):
        await replica.ask("a", "me too")
    client.cancel()
    await asyncio.gather(client, return_exceptions=True)
    await until(lambda: replica.session().writer is None)

    session = replica.session()
    assert before == session.chain.tokens
    assert session.branch is None or session.branch.length <= len(before)
    await replica.ask("a", "me too", 4)
    assert before == replica.tokens("a")[: len(before)]


async def test_a_result_longer_than_the_context_is_refused_early(replica: Replica) -> None:
    """The stream ends as soon as the pieces are too long; the session is as it was and takes a shorter one."""
    await replica.create()
    await converse(replica, [say()])
    before = list(replica.session().chain.tokens)
    steps = pieces("x" * 20 * MAX_CONTEXT)
    with pytest.raises(ContextTooLong):
        await converse(replica, steps)
    assert before == replica.session().chain.tokens
    assert replica.session().writer is None
    assert 8 == len(tokens(await converse(replica, pieces("short", request_id="other"))))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([ConverseStep(given=user("x"))], "names no session_id"),
        ([say(), ConverseStep("b", given=user("x"))], "the stream is of session 'a'"),
        ([ConverseStep("a")], "input, a piece or waiting"),
        ([ConverseStep("a", given=user("x"), waiting=1.0)], "one of them"),
        ([pieces("x" * 100)[0], say()], "before the last piece"),
        ([pieces("x" * 100)[0], pieces("y", call="d", offset=40)[0]], "the result of call 'c' has not ended"),
        ([pieces("x" * 100)[0], pieces("x" * 100, request_id="other")[1]], "piece is of request 'other'"),
        ([*pieces("x", offset=5)], "only 0 characters have arrived"),
    ],
)
async def test_steps_that_make_no_sense(replica: Replica, steps: list[ConverseStep], words: str) -> None:
    """Each is refused with what was wrong, and the session is left alone."""
    await replica.create()
    with pytest.raises(InvalidInput, match=words):
        await converse(replica, steps)
    assert replica.session().writer is None


async def test_raw_sessions_have_no_tools(replica: Replica) -> None:
    """A RAW session takes text on the stream and no results."""
    await replica.create(format=SessionFormat.RAW)
    assert tokens(await converse(replica, [ConverseStep("a", given=TurnInput(text="go"), params=PARAMS)]))
    with pytest.raises(InvalidInput, match="RAW session takes no tool results"):
        await converse(replica, pieces("x"))


async def test_waiting_brings_the_memory_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    """While a tool runs the turn is sealed; memory that was spilled meanwhile is there when the result is expected."""
    replica = Replica(tmp_path_factory.mktemp("state"), prefetches=True)
    try:
        await replica.create(policy=Policy(drafter="none"))
        await converse(replica, [say("hello " * 20)])
        await replica.settle()
        await replica.spill()
        await converse(replica, [ConverseStep("a", waiting=0.0)])
        await until(lambda: (branch := replica.session().branch) is not None and branch.alive and branch.length > 100)
    finally:
        await replica.core.close(5.0)


async def test_pieces_that_nobody_comes_back_for_are_dropped(replica: Replica) -> None:
    """They wait as long as finished replies do, and then take no more memory."""
    await replica.create()
    await converse(replica, [say(), *pieces(RESULT)[:3]])
    session, generator = replica.session(), replica.manager.generator
    now = asyncio.get_running_loop().time()
    generator.forget_replies(session, now + generator.resume_seconds - 1)
    assert ["r"] == list(session.left_pieces)
    generator.forget_replies(session, now + generator.resume_seconds + 1)
    assert [] == list(session.left_pieces)
