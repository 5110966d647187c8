from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from support.fake_service import FakeSessions

from agentmem.api.server import ApiServer
from agentmem.errors import AlreadyExists, Disconnected, InvalidInput, NotFound, Overloaded, SessionBusy
from agentmem.events import FinishEvent, ProgressEvent, StartEvent, TokenEvent
from agentmem.types import Fidelity, FinishReason, Message, Policy, SamplingParams, SessionFormat, ToolSpec, TurnInput
from agentmem.views import ChangeKind, DeleteReport, ForgetTarget, RecalledSpan
from agentmem_client import AsyncAgentMem, AsyncSession


async def text_of(session: AsyncSession, content: str) -> str:
    return "".join([event.text async for event in session.generate(content) if isinstance(event, TokenEvent)])


async def test_a_session_is_opened_used_and_left_on_the_server(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Entering creates the session with what was asked for, the reply's events come in order, leaving keeps the session."""
    tool = ToolSpec("ls", "List files.", "{}")
    asked = {"system": "Be brief.", "tools": [tool], "labels": {"a": "b"}, "ttl_seconds": 5.0, "pinned": True}
    async with client.session("notes", **asked, policy=Policy(Fidelity.EXACT)) as session:
        events = [event async for event in session.generate("hello there")]
    assert [ProgressEvent, StartEvent, *[TokenEvent] * 4, FinishEvent] == [type(event) for event in events]
    last = events[-1]
    assert isinstance(last, FinishEvent)
    assert ("you said: hello there ", FinishReason.STOP) == (last.text, last.finish_reason)
    record = sessions.sessions["default", "notes"].record
    assert ("Be brief.", (tool,), {"a": "b"}, 5.0, True) == (record.system, record.tools, record.labels, record.ttl_seconds, record.pinned)
    assert Fidelity.EXACT is record.policy.fidelity


async def test_opening_an_id_again_resumes_it(client: AsyncAgentMem) -> None:
    """The same id is the same session: with the same system prompt, and with none given."""
    for system in ("Be brief.", "Be brief.", ""):
        async with client.session("notes", system=system) as session:
            await session.append("more")
    assert 4 == (await client.attach("notes").info()).n_turns


@pytest.mark.parametrize("other", [{"system": "Be long."}, {"tools": [ToolSpec("rm", "", "{}")]}, {"format": SessionFormat.RAW}])
async def test_opening_an_id_as_something_else_is_refused(client: AsyncAgentMem, other: dict[str, object]) -> None:
    """A session of that id with another system prompt, other tools or another format is not silently used."""
    await client.session("notes", system="Be brief.").open()
    with pytest.raises(AlreadyExists, match="'notes' exists with another"):
        await client.session("notes", **other).open()  # type: ignore[arg-type]


async def test_delete_on_exit_removes_the_session(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A session for one use is gone afterwards, also when the block failed."""
    with pytest.raises(ValueError, match="stop"):
        async with client.session(delete_on_exit=True):
            raise ValueError("stop")
    assert {} == sessions.sessions


async def test_input_may_be_text_messages_or_everything(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A text is a user's message, in a RAW session text as it is; one message, many, and a TurnInput are taken too."""
    async with client.session("chat") as chat, client.session("raw", format=SessionFormat.RAW) as raw:
        hi = Message("user", "hi")
        for content in ("hi", hi, [hi], TurnInput((hi,))):
            await chat.append(content)
        assert [(hi,)] * 4 == [turn.messages for turn in sessions.sessions["default", "chat"].turns[1:]]
        assert "you said: plain text " == await text_of(raw, "plain text")
        assert "you said: " == "".join([e.text async for e in raw.generate() if isinstance(e, TokenEvent)])
    assert "you said: later " == await text_of(client.attach("raw"), "later")


async def test_everything_a_session_can_do(client: AsyncAgentMem) -> None:
    """Fork, rollback, update, end of turn, inspect, seal, watch, export and import, delete answer with the records."""
    async with client.session("a", labels={"k": "v"}) as session:
        await session.generate_text("one")
        fork = await session.fork(1, labels={"k": "w"})
        assert ({"k": "w"}, "a", 1) == ((record := (await fork.open()).record).labels, record.parent, record.parent_turn)
        assert 1 == (await session.rollback(0)).n_turns
        assert {"x": "y"} == (await session.update(labels={"x": "y"}, pinned=True)).record.labels
        assert "a" == (await session.end_turn(waiting_on_tool=True, eta_seconds=1.0)).record.id
        assert "a" == (await session.seal()).record.id
        info, turns = await fork.inspect(token_ids=True)
        assert (2, [0, 5], (0, 1, 2, 3, 4)) == (info.n_turns, [turn.n_tokens for turn in turns], turns[1].turn.token_ids)
        assert [ChangeKind.SNAPSHOT, ChangeKind.DELETED] == [change.kind async for change in session.watch()]
        copy = await client.import_session(session.export(), session_id="b")
        assert ("b", "b") == (copy.id, (await copy.info()).record.id)
        assert DeleteReport(1, 2, 4096, 1) == await session.delete()
        with pytest.raises(NotFound, match="no session 'a'"):
            await session.info()


async def test_memory_is_asked_edited_and_switched(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Recall returns spans, heaviest first and no more than k; forgetting and another fidelity answer with the session."""
    async with client.session("a", policy=Policy(keep=0.5)) as session:
        await session.generate_text("the code is 7")
        await session.generate_text("something else")
        spans = await session.recall("code is")
        assert [RecalledSpan(1, 5, 5, "the code is 7", 0.5), RecalledSpan(1, 5, 5, "you said: the code is 7 ", 1 / 3)] == spans
        assert spans[:1] == await session.recall("code is", k=1)
        info = await session.set_fidelity(Fidelity.RECALL)
        assert (Policy(Fidelity.RECALL, keep=0.5), Fidelity.RECALL) == (info.record.policy, info.fidelity)
        sessions.lost_answers = 1
        assert not (await session.forget([ForgetTarget(1, 0), ForgetTarget(2, 1)])).exact
        _, turns = await session.inspect(attention=True)
        assert [(0.0, 0), (1 / 3, 1), (2 / 3, 1)] == [(turn.attention, turn.forgotten) for turn in turns]
        assert [None] * 3 == [turn.attention for turn in (await session.inspect())[1]]


@pytest.mark.parametrize("k", [0, 1001, 2**40])
async def test_too_many_or_too_few_spans_are_refused(client: AsyncAgentMem, k: int) -> None:
    """The number of spans is 1 to 1,000, whatever refuses it."""
    async with client.session() as session:
        with pytest.raises(InvalidInput, match="k is|k holds"):
            await session.recall("x", k=k)


async def test_forgetting_what_is_not_there(client: AsyncAgentMem) -> None:
    """Nothing to forget, the prelude, and a turn that does not exist are told apart."""
    async with client.session() as session:
        for targets, says in (([], "messages has 0"), ([ForgetTarget(0, 0)], "turn 0"), ([ForgetTarget(7, 0)], "no turn 7")):
            with pytest.raises(InvalidInput, match=says):
                await session.forget(targets)


@pytest.mark.parametrize("fidelity", [None, *Fidelity])
async def test_a_reply_has_its_own_fidelity(client: AsyncAgentMem, sessions: FakeSessions, fidelity: Fidelity | None) -> None:
    """A call may ask for any fidelity; the reply says what it ran with and how much it attended to."""
    async with client.session() as session:
        finish = await session.generate_text("hello", fidelity=fidelity)
    assert [fidelity] == sessions.fidelities
    assert (fidelity or Fidelity.EXACT, 0.5 if fidelity is Fidelity.RECALL else 1.0) == (finish.fidelity, finish.usage.attended)


async def test_a_broken_stream_is_continued_without_loss_or_repetition(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Streams that break after 2, 0 and 3 tokens, and a server that is busy once, still give every event once and in order."""
    sessions.breaks = [2, 0, 3]
    async with client.session() as session:
        events = [event async for event in session.generate("a b c d e f")]
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert list(range(8)) == [event.index for event in tokens]
    assert "you said: a b c d e f " == "".join(event.text for event in tokens)
    assert 1 == sum(isinstance(event, StartEvent) for event in events)
    assert [0, 2, 2, 5] == sessions.resumed_after
    assert 1 == len(sessions.replies)


async def test_a_reply_goes_on_after_the_server_restarted(client: AsyncAgentMem, sessions: FakeSessions, server: ApiServer) -> None:
    """When the connection itself dies in the middle, the reply is taken up at the server that comes back on the port."""
    from support.fake_service import serving

    sessions.stall = asyncio.Event()
    async with client.session() as session:
        events = session.generate("a b c")
        got = [await anext(events) for _ in range(3)]
        await server.stop()
        sessions.stall = None
        async with serving(sessions, port=server.port):
            got += [event async for event in events]
    assert [0, 1, 2, 3, 4] == [event.index for event in got if isinstance(event, TokenEvent)]
    assert [0, 1] == sessions.resumed_after


async def test_a_reply_of_an_earlier_process_is_continued(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """With the request id and the number of tokens received, only the rest of the reply comes."""
    async with client.session() as session:
        await session.generate_text("a b c", request_id="r")
        rest = [event async for event in session.generate("a b c", request_id="r", resume_after=3)]
    assert [3, 4] == [event.index for event in rest if isinstance(event, TokenEvent)]
    assert 1 == len(sessions.replies)


async def test_giving_up_raises_the_last_error(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """When no try makes progress the reply ends with what went wrong; an error that trying cannot help ends it at once."""
    async with client.session() as session:
        sessions.breaks = [0] * 20
        with pytest.raises(Disconnected, match="connection reset by peer"):
            await session.generate_text("hello", request_id="r")
        sessions.breaks = []
        sessions.failures = [SessionBusy("another writer")]
        with pytest.raises(SessionBusy, match="another writer"):
            await session.generate_text("hello")


async def test_a_sampled_reply_has_a_seed(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A sampled request without a seed gets one, the same for every repetition; a greedy one, a given seed and a named request stay."""
    sessions.breaks = [1]
    async with client.session() as session:
        await session.generate_text("a", SamplingParams(temperature=1.0))
        await session.generate_text("a", SamplingParams(temperature=1.0, seed=3))
        await session.generate_text("a", SamplingParams(temperature=1.0), request_id="mine")
        await session.generate_text("a")
    first, again, given, named, greedy = sessions.params
    assert first.seed is not None
    assert (first.seed, 3, None, None) == (again.seed, given.seed, named.seed, greedy.seed)


async def test_leaving_the_loop_cancels_the_reply(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A reader that goes away tells the server by name which reply to stop."""
    async with client.session() as session:
        async with aclosing(session.generate("a b c", request_id="r")) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    break
        assert ["r"] == sessions.cancelled
        assert await session.cancel()
        assert not await session.cancel("unknown")


async def test_cancelling_the_task_cancels_the_reply(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A task that is cancelled while it waits for a token stops the reply on the server too."""
    sessions.stall = asyncio.Event()
    seen = asyncio.Event()

    async def read(session: AsyncSession) -> None:
        async for event in session.generate("a b c", request_id="r"):
            if isinstance(event, TokenEvent):
                seen.set()

    async with client.session() as session:
        task = asyncio.create_task(read(session))
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ["r"] == sessions.cancelled


async def test_a_failed_cancel_is_logged_only(client: AsyncAgentMem, sessions: FakeSessions, caplog: pytest.LogCaptureFixture) -> None:
    """Leaving the loop never raises: the reply ends by itself, and the log tells."""
    async with client.session() as session:
        async with aclosing(session.generate("a b c")) as events:
            await anext(events)
            sessions.failures = [NotFound("gone")]
        assert "cancelling it failed: gone" in caplog.text


async def test_lost_answers_do_not_double_anything(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """Creating, forking and appending are repeated safely when the server worked and only its answer was lost."""
    sessions.lost_answers = 1
    async with client.session(system="x") as session:
        sessions.lost_answers = 1
        assert 1 == (await session.append("hello")).turn_index
        sessions.lost_answers = 1
        fork = await session.fork()
    assert 2 == (await fork.info()).n_turns
    assert 2 == len(sessions.sessions)


async def test_a_taken_id_is_told_when_forking(client: AsyncAgentMem) -> None:
    """A fork under an id that the caller chose and that exists is refused."""
    async with client.session("a") as session, client.session("b"):
        with pytest.raises(AlreadyExists, match="'b'"):
            await session.fork(session_id="b")


async def test_text_that_cannot_be_sent_is_refused_here(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """A lone surrogate never leaves the client and is not tried again."""
    async with client.session() as session:
        with pytest.raises(InvalidInput, match="surrogate"):
            await session.append("\ud800")
    assert ["create"] == sessions.calls


async def test_an_overloaded_server_is_given_time(client: AsyncAgentMem, sessions: FakeSessions) -> None:
    """RetryInfo is honoured; an overload that names no time is not retried."""
    async with client.session() as session:
        sessions.failures = [Overloaded("full", retry_after=0.01)]
        await session.info()
        sessions.failures = [Overloaded("full")]
        with pytest.raises(Overloaded, match="full"):
            await session.info()
