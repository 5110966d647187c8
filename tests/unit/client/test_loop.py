"""The tool loop's client, against a service whose streams break where they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import aclosing

import pytest
from support.fake_service import FakeSessions, serving
from support.waiting import until

from agentmem.errors import Disconnected, InvalidInput, NotFound, SessionBusy
from agentmem.events import ConverseEvent, FinishEvent, PieceEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import Fidelity, Message, SamplingParams, ToolCall, TurnInput
from agentmem_client import AsyncAgentMem, RetryPolicy
from agentmem_client.loop import ToolLoop

CALL, OTHER = ToolCall("c1", "ls", "{}"), ToolCall("c2", "rm", "{}")
NAMED = OutputSpec(ToolChoice(ToolMode.NAMED, "ls"), ResponseFormat(FormatKind.REGEX, "a+"))
REPLY = [ProgressEvent, StartEvent, *[TokenEvent] * 4, FinishEvent]


def hello(text: str = "hello there") -> TurnInput:
    return TurnInput((Message("user", text),))


async def in_pieces(*pieces: str) -> AsyncIterator[str]:
    for piece in pieces:
        yield piece


async def collect(events: AsyncIterable[ConverseEvent]) -> list[ConverseEvent]:
    return [event async for event in events]


def words(events: list[ConverseEvent]) -> str:
    """Return the text of the tokens, each of which must have come once and in order."""
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert list(range(len(tokens))) == [event.index for event in tokens]
    return "".join(event.text for event in tokens)


def once(events: list[ConverseEvent], kind: type[ConverseEvent]) -> int:
    return sum(isinstance(event, kind) for event in events)


@pytest.fixture
async def loop(client: AsyncAgentMem) -> AsyncIterator[ToolLoop]:
    async with client.session("a") as session, session.converse() as made:
        yield made


async def test_a_loop_says_something_and_answers_what_was_called(loop: ToolLoop, sessions: FakeSessions) -> None:
    """The finish message's calls are the loop's calls; their results go over the same stream, and the last reply calls nothing."""
    sessions.tool_calls = [(CALL,)]
    first = await collect(loop.say(hello()))
    assert (REPLY, "you said: hello there ") == ([type(event) for event in first], words(first))
    assert (CALL,) == loop.calls
    await loop.waiting(3.0)
    second = await collect(loop.result(CALL, "two files"))
    assert ([PieceEvent, *REPLY], "you said: two files ") == ([type(event) for event in second], words(second))
    assert () == loop.calls
    assert 1 == sessions.calls.count("converse")
    assert [None, 3.0, None] == [step.waiting for step in sessions.steps]
    piece = sessions.steps[2].piece
    assert piece is not None
    assert ("c1", "ls", True, False) == (piece.tool_call_id, piece.name, piece.last, piece.more)


async def test_pieces_come_from_an_iterator(loop: ToolLoop, sessions: FakeSessions) -> None:
    """Each is sent with its offset in characters when the next has come, the last one marked; no piece at all is an empty result."""
    events = await collect(loop.result(CALL, in_pieces("grün ", "", "und ", "rot")))
    assert [5, 5, 9, 12] == [event.received for event in events if isinstance(event, PieceEvent)]
    pieces = [step.piece for step in sessions.steps if step.piece is not None]
    assert [(0, False), (5, False), (5, False), (9, True)] == [(piece.offset, piece.last) for piece in pieces]
    assert "you said: grün und rot " == words(events)
    assert "you said: " == words(await collect(loop.result("c2", in_pieces(), name="cat")))
    last = sessions.steps[-1].piece
    assert last is not None
    assert ("c2", "cat", "", True) == (last.tool_call_id, last.name, last.text, last.last)
    assert 2 == len({step.request_id for step in sessions.steps})


async def test_results_of_several_calls_are_one_request(loop: ToolLoop, sessions: FakeSessions) -> None:
    """With ``more`` there is no reply yet, offsets go on, and all pieces have one request id; the next result has another."""
    sessions.tool_calls = [(CALL, OTHER)]
    await collect(loop.say(hello()))
    for call in loop.calls:
        events = await collect(loop.result(call, "x" * 3, more=call is not loop.calls[-1]))
        assert int(call.id == "c2") == once(events, FinishEvent)
    await collect(loop.result(CALL, "later"))
    pieces = [(step.piece.offset, step.piece.more) for step in sessions.steps if step.piece is not None]
    assert [(0, True), (3, False), (0, False)] == pieces
    ids = [step.request_id for step in sessions.steps]
    assert (ids[1], 3) == (ids[2], len(set(ids)))


@pytest.mark.parametrize("lost", range(7))
async def test_a_reply_to_a_message_survives_a_break_at_any_event(loop: ToolLoop, sessions: FakeSessions, lost: int) -> None:
    """Whichever event is lost, each event comes once, and the server is asked to go on after the tokens that came."""
    sessions.lost_events = [lost]
    events = await collect(loop.say(hello()))
    assert "you said: hello there " == words(events)
    assert (1, 1) == (once(events, StartEvent), once(events, FinishEvent))
    assert [0, max(0, min(4, lost - 2))] == [step.resume_after for step in sessions.steps]
    assert 1 == len(sessions.replies)


@pytest.mark.parametrize("amnesia", [False, True])
@pytest.mark.parametrize("lost", range(10))
async def test_a_result_in_pieces_survives_a_break_at_any_event(
    loop: ToolLoop, sessions: FakeSessions, lost: int, *, amnesia: bool
) -> None:
    """The new stream is told the request's pieces, also by a server that knows nothing any more; each event comes once."""
    sessions.lost_events, sessions.amnesia = [lost], amnesia
    events = await collect(loop.result(CALL, in_pieces("one ", "two ", "three")))
    assert "you said: one two three " == words(events)
    assert [4, 8, 13] == [event.received for event in events if isinstance(event, PieceEvent)]
    assert (1, 1) == (once(events, StartEvent), once(events, FinishEvent))
    assert 2 == sessions.calls.count("converse")
    assert 1 == len({step.request_id for step in sessions.steps})


async def test_a_break_between_two_results_loses_neither(loop: ToolLoop, sessions: FakeSessions) -> None:
    """The first call's pieces are sent again before the second's, and the tool may be waited for between them."""
    sessions.lost_events, sessions.amnesia = [2, 1], True
    await collect(loop.result(CALL, in_pieces("a", "b"), more=True))
    await loop.waiting(1.0)
    events = await collect(loop.result(OTHER, "c"))
    assert [["ab", "c"]] == [list(results.values()) for results in sessions.results.values()]
    assert (1, 1) == (once(events, PieceEvent), once(events, FinishEvent))


async def test_several_breaks_in_a_row_are_survived(loop: ToolLoop, sessions: FakeSessions) -> None:
    """As often as the server makes progress the loop comes back, more often than it would without any."""
    sessions.lost_events = [3, 3, 3, 3, 3, 3]
    assert "you said: a b c d e f " == words(await collect(loop.say(hello("a b c d e f"))))


async def test_a_server_that_never_gets_to_a_token_is_given_up(loop: ToolLoop, sessions: FakeSessions) -> None:
    """Taking the piece and starting is no progress: after four tries the error is the caller's."""
    sessions.lost_events, sessions.amnesia = [3] * 10, True
    with pytest.raises(Disconnected):
        await collect(loop.result(CALL, "x"))
    assert 4 == sessions.calls.count("converse")


async def test_a_busy_session_is_tried_again(loop: ToolLoop, sessions: FakeSessions) -> None:
    """An error that says when to come back is transient."""
    sessions.failures = [SessionBusy("somebody writes", retry_after=0.01)]
    assert "you said: hello there " == words(await collect(loop.say(hello())))


async def test_an_error_that_stays_is_raised_at_once(loop: ToolLoop, client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A session that does not exist, and a result that is refused: one try, and the loop can go on afterwards."""
    async with client.attach("nowhere").converse() as lost:
        with pytest.raises(NotFound):
            await collect(lost.say(hello()))
    sessions.tool_calls = [(CALL, OTHER)]
    await collect(loop.say(hello()))
    await collect(loop.result(CALL, "first", more=True))
    with pytest.raises(InvalidInput, match="refused"):
        await collect(loop.result(OTHER, in_pieces("long", "refuse this", "never sent")))
    assert (CALL, OTHER) == loop.calls
    assert 2 == sessions.calls.count("converse")

    assert "you said: short " == words(await collect(loop.result(OTHER, "short")))
    assert {"c1": "first", "c2": "short"} == sessions.results[sessions.steps[-1].request_id]


async def test_what_is_left_early_is_not_heard_later(loop: ToolLoop, sessions: FakeSessions) -> None:
    """A reply that its caller leaves, closing the generator or not, ends its stream; what is said next gets its own reply."""
    sessions.tool_calls = [(CALL,)]
    async for event in loop.say(hello("a b c d")):
        if isinstance(event, TokenEvent):
            break
    assert () == loop.calls
    assert "you said: next " == words(await collect(loop.say(hello("next"))))
    async with aclosing(loop.say(hello("e f"))) as events:
        await anext(events)
    assert "you said: again " == words(await collect(loop.say(hello("again"))))


async def test_a_result_that_is_left_early_was_never_sent(loop: ToolLoop, sessions: FakeSessions) -> None:
    """Its tool fails between two pieces: the stream ends, and the result that comes instead is whole and of another request."""

    async def failing() -> AsyncIterator[str]:
        yield "half of "
        yield "something"
        raise OSError("the tool broke")

    await collect(loop.result(OTHER, "kept ", more=True))
    with pytest.raises(OSError, match="the tool broke"):
        await collect(loop.result(CALL, failing()))

    async def no_stream() -> bool:
        return not sessions.open_streams

    await until(no_stream)
    events = await collect(loop.result(CALL, "an error message"))
    assert "you said: an error message " == words(events)
    assert {"c2": "kept ", "c1": "an error message"} == sessions.results[sessions.steps[-1].request_id]


async def test_a_cancelled_call_leaves_the_loop_usable(loop: ToolLoop, sessions: FakeSessions) -> None:
    """The task that reads a reply is cancelled: its stream is gone, the next message has one of its own."""
    sessions.stall = asyncio.Event()
    reading = asyncio.create_task(collect(loop.say(hello())))

    async def is_talking() -> bool:
        return len(sessions.replies) == 1

    await until(is_talking)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    sessions.stall = None
    assert "you said: more " == words(await collect(loop.say(hello("more"))))


async def test_closing_the_loop_ends_the_stream(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Leaving the block is enough; a loop that was closed opens another stream when it is used again."""

    async def no_stream() -> bool:
        return not sessions.open_streams

    async with client.session("a") as session, session.converse() as loop:
        await collect(loop.say(hello()))
        assert 1 == sessions.open_streams
    await until(no_stream)
    await collect(loop.say(hello()))
    assert 2 == sessions.calls.count("converse")
    loop.close()


async def test_waiting_opens_another_stream_where_the_old_one_is_dead(sessions: FakeSessions) -> None:
    """A server that came back meanwhile hears that a tool is running, or at the latest the result."""
    async with serving(sessions) as first:
        port = int(first.address.rpartition(":")[2])
        other = AsyncAgentMem(first.address, retry=RetryPolicy(attempts=1000, max_seconds=0.1))  # a busy machine takes its time
        session = other.session("b")
        await session.open()
        loop = session.converse()
        await collect(loop.say(hello()))
    async with serving(sessions, port=port):
        await loop.waiting(1.0)
        assert "you said: done " == words(await collect(loop.result(CALL, "done")))
        loop.close()
        await other.close()


async def test_what_a_reply_may_be_goes_along(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Choice, format, fidelity and sampling of the loop hold for each reply unless one has its own; a seed is made up where one counts."""
    sampling = SamplingParams(temperature=0.5)
    async with client.session("a") as session:
        async with session.converse(sampling, output=NAMED, fidelity=Fidelity.RECALL) as loop:
            await collect(loop.say(hello()))
            await collect(loop.result(CALL, "x", output=OutputSpec(), sampling=SamplingParams(max_tokens=3)))
            await collect(loop.say(hello()))
        await session.generate_text("x", output=NAMED)
    assert [NAMED, OutputSpec(), NAMED, NAMED] == sessions.outputs
    assert [Fidelity.RECALL] * 3 == sessions.fidelities[:3]
    assert [0.5, 0.0, 0.5] == [params.temperature for params in sessions.params[:3]]
    assert (3, None) == (sessions.params[1].max_tokens, sessions.params[1].seed)
    seeds = [params.seed for params in (sessions.params[0], sessions.params[2])]
    assert None not in seeds


async def test_a_retry_has_the_seed_of_the_first_try(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A reply that has to be computed anew after a crash is the same one."""
    sessions.lost_events, sessions.amnesia = [4], True
    async with client.session("a") as session, session.converse(SamplingParams(temperature=1.0)) as loop:
        await collect(loop.say(hello()))
    assert 1 == len({params.seed for params in sessions.params})
