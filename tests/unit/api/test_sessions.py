from __future__ import annotations

import asyncio

from support.api import INFO, Api, refusal

from agentmem.errors import Draining, InvalidInput
from agentmem.types import Fidelity, Policy, SessionFormat, ToolSpec
from agentmem.v1 import session_pb2 as pb
from agentmem.v1 import types_pb2, views
from agentmem.views import ChangeKind, DeleteReport, SessionPatch, SessionSpec

SESSION = views.session_to_pb(INFO)


async def test_create(api: Api) -> None:
    """Every field of the request reaches the manager, under the caller's tenant."""
    spec = SessionSpec(
        "mine", SessionFormat.CHAT, "be kind", (ToolSpec("f", "does", "{}"),), Policy(Fidelity.EXACT), 60.0, {"k": "v"}, pinned=True
    )
    response = await api.session.CreateSession(views.spec_to_pb(spec))
    assert SESSION == response.session
    assert [("create", ("default", spec), {})] == api.sessions.calls


async def test_create_with_nothing_said(api: Api) -> None:
    """An empty request makes a CHAT session with the defaults and an id of the server's choice."""
    await api.session.CreateSession(pb.CreateSessionRequest())
    assert [("create", ("default", SessionSpec()), {})] == api.sessions.calls


async def test_get(api: Api) -> None:
    """The session is returned as the manager sees it."""
    response = await api.session.GetSession(pb.GetSessionRequest(session_id="s"))
    assert INFO == views.session_from_pb(response.session)


async def test_list(api: Api) -> None:
    """Labels and page token are passed on; page size 0 means 100."""
    response = await api.session.ListSessions(pb.ListSessionsRequest(labels={"a": "b"}, page_token="t"))
    assert ([SESSION, SESSION], "more") == (list(response.sessions), response.next_page_token)
    assert [("list", ("default",), {"labels": {"a": "b"}, "page_size": 100, "page_token": "t"})] == api.sessions.calls


async def test_update_changes_only_what_is_set(api: Api) -> None:
    """A field left out arrives as None; a field set to its zero arrives as that zero."""
    await api.session.UpdateSession(pb.UpdateSessionRequest(session_id="s"))
    await api.session.UpdateSession(pb.UpdateSessionRequest(session_id="s", ttl_seconds=0, pinned=False, policy={}, labels={}))
    patches = [args[2] for _, args, _ in api.sessions.calls]
    assert [SessionPatch(), SessionPatch(0.0, pinned=False, policy=Policy(), labels={})] == patches


async def test_delete(api: Api) -> None:
    """The report of what was removed comes back."""
    response = await api.session.DeleteSession(pb.DeleteSessionRequest(session_id="s"))
    assert DeleteReport(2, 3, 4, 5) == views.delete_report_from_pb(response)


async def test_fork(api: Api) -> None:
    """Turn 0 is a turn, and no turn is None; labels left out are inherited."""
    await api.session.ForkSession(pb.ForkSessionRequest(session_id="s", at_turn=0, new_session_id="n", labels={"entries": {"a": "b"}}))
    await api.session.ForkSession(pb.ForkSessionRequest(session_id="s"))
    assert [
        ("fork", ("default", "s"), {"at_turn": 0, "new_id": "n", "labels": {"a": "b"}}),
        ("fork", ("default", "s"), {"at_turn": None, "new_id": None, "labels": None}),
    ] == api.sessions.calls


async def test_rollback(api: Api) -> None:
    """Turn 0 may be rolled back to, but only when it is said."""
    await api.session.RollbackSession(pb.RollbackSessionRequest(session_id="s", to_turn=0))
    assert [("rollback", ("default", "s"), {"to_turn": 0})] == api.sessions.calls
    error = await refusal(api.session.RollbackSession(pb.RollbackSessionRequest(session_id="s")))
    assert "to_turn is not set; allowed: the last turn to keep, 0 or more" == str(error)


async def test_export(api: Api) -> None:
    """Chunks arrive as they were yielded, and the manager's generator is closed."""
    chunks = [message.chunk async for message in api.session.ExportSession(pb.ExportSessionRequest(session_id="s"))]
    assert [b"one", b"two"] == chunks
    assert api.sessions.closed.is_set()


async def test_import(api: Api) -> None:
    """The id is read from the first message, the bytes of all are joined."""
    messages = [pb.ImportSessionRequest(new_session_id="n", chunk=b"on"), pb.ImportSessionRequest(chunk=b"e")]
    response = await api.session.ImportSession(iter(messages))
    assert SESSION == response.session
    assert (b"one", [("import", ("default",), {"new_id": "n"})]) == (api.sessions.imported, api.sessions.calls)


async def test_import_of_nothing(api: Api) -> None:
    """A stream without a message is refused in words."""
    error = await refusal(api.session.ImportSession(iter(())))
    assert isinstance(error, InvalidInput)
    assert "the stream holds no message" in str(error)


async def test_watch_ends_with_the_manager(api: Api) -> None:
    """Changes arrive in order with their turn, and the stream ends when the manager's does."""
    stream = api.session.WatchSession(pb.WatchSessionRequest(session_id="s"))
    changes = [views.change_from_pb(message) async for message in stream]
    assert [(ChangeKind.SNAPSHOT, None), (ChangeKind.SEALED, 1)] == [(change.kind, change.turn_index) for change in changes]


async def test_watch_ends_when_the_server_drains(api: Api) -> None:
    """Watchers of a session are told that the server shuts down, and may come back."""
    api.sessions.hold = asyncio.Event()
    stream = aiter(api.session.WatchSession(pb.WatchSessionRequest(session_id="s")))
    await anext(stream)
    await anext(stream)
    draining = asyncio.create_task(api.server.drain(5.0))
    error = await refusal(stream)
    await draining
    assert isinstance(error, Draining)
    assert 1.0 == error.retry_after
    assert api.sessions.closed.is_set()


async def test_watch_ends_when_the_client_leaves(api: Api) -> None:
    """The manager's generator is closed when the watcher is gone."""
    api.sessions.hold = asyncio.Event()
    stream = api.session.WatchSession(pb.WatchSessionRequest(session_id="s"))
    await stream.read()
    stream.cancel()
    await asyncio.wait_for(api.sessions.closed.wait(), 5)


async def test_unknown_format(api: Api) -> None:
    """An enum number without a name is refused with the field, the number and what is allowed."""
    request = pb.CreateSessionRequest()
    request.MergeFromString(b"\x10\x63")  # field 2 is 99
    error = await refusal(api.session.CreateSession(request))
    assert "format is 99, which is none of: SESSION_FORMAT_CHAT, SESSION_FORMAT_RAW" == str(error)
    assert 99 == request.format
    assert 0 == types_pb2.SESSION_FORMAT_UNSPECIFIED
