from __future__ import annotations

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from support.fake_service import FakeSessions, serving_on_a_thread

from agentmem.errors import Disconnected, NotFound
from agentmem.events import FinishEvent, PieceEvent, StartEvent, TokenEvent
from agentmem.types import Fidelity, ToolCall
from agentmem.views import ForgetTarget
from agentmem_client import AgentMem, AsyncAgentMem, AsyncSession, RetryPolicy, Session, SyncToolLoop, ToolLoop
from agentmem_client.sync import LoopThread


@pytest.fixture
def sessions() -> FakeSessions:
    return FakeSessions()


@pytest.fixture
def address(sessions: FakeSessions) -> Iterator[str]:
    with serving_on_a_thread(sessions) as address:
        yield address


def test_the_same_words_without_await(address: str, sessions: FakeSessions) -> None:
    """Sessions, replies, forks, lists, exports and imports work as in the asynchronous client."""
    with AgentMem(address) as client, client.session("a", system="Be brief.") as session:
        client.wait_ready(5.0)
        events = list(session.generate("hello"))
        assert isinstance(events[1], StartEvent)
        assert isinstance(events[-1], FinishEvent)
        assert "you said: more " == session.generate_text("more").text
        with session.fork(1) as fork:
            assert [1, 2] == [span.turn_index for span in session.recall("you said")]
            assert Fidelity.COMPACT is session.set_fidelity(Fidelity.COMPACT).fidelity
            assert not session.forget([ForgetTarget(1, 0)]).exact
            assert ("a", 1) == ((record := fork.info().record).parent, record.parent_turn)
        copy = client.import_session(session.export(), session_id="b")
        assert isinstance(copy, Session)
        assert {"a", "b", fork.id} == {info.record.id for info in client.list_sessions()}
        with pytest.raises(NotFound):
            client.attach("c").info()
    assert 3 == len(sessions.sessions)


def test_a_tool_loop_without_await(address: str, sessions: FakeSessions) -> None:
    """What is said, waiting, and a result in pieces from any iterable."""
    sessions.tool_calls = [(ToolCall("c", "ls", "{}"),)]
    with AgentMem(address) as client, client.session() as session, session.converse() as loop:
        assert isinstance([*loop.say("hello")][-1], FinishEvent)
        (call,) = loop.calls
        loop.waiting(1.0)
        events = [*loop.result(call, iter(["one ", "two"]))]
    assert [4, 7] == [event.received for event in events if isinstance(event, PieceEvent)]
    assert "you said: one two " == "".join(event.text for event in events if isinstance(event, TokenEvent))


def test_leaving_the_loop_cancels(address: str, sessions: FakeSessions) -> None:
    """Breaking out of the for loop stops the reply on the server."""
    with AgentMem(address) as client, client.session() as session:
        events = session.generate("a b c", request_id="r")
        for event in events:
            if isinstance(event, TokenEvent):
                break
        events.close()
        assert ["r"] == sessions.cancelled


def test_delete_on_exit(address: str, sessions: FakeSessions) -> None:
    """The synchronous context manager deletes what was for one use."""
    with AgentMem(address) as client, client.session(delete_on_exit=True):
        pass
    assert {} == sessions.sessions


def test_an_error_of_the_server_is_the_same_error(address: str, sessions: FakeSessions) -> None:
    """The error tree crosses the thread unchanged."""
    sessions.failures = [Disconnected("away")]
    with AgentMem(address, retry=RetryPolicy(attempts=1)) as client, pytest.raises(Disconnected, match="away"):
        client.stats()


def test_a_closed_client_says_so() -> None:
    """Closing twice is harmless, calling afterwards is an error and leaves nothing hanging."""
    client = AgentMem("127.0.0.1:1")
    session = client.session()
    events = session.generate("x")
    client.close()
    client.close()
    with pytest.raises(Disconnected, match="the client is closed"):
        session.info()
    events.close()


def test_an_interrupt_cancels_what_runs() -> None:
    """A call that is given up while waiting does not go on in the background."""
    cancelled, main = threading.Event(), threading.get_ident()

    async def wait() -> None:
        while sys._current_frames()[main].f_code.co_name != "wait":  # noqa: ASYNC110 -- until the main thread waits
            await asyncio.sleep(0)
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    loop = LoopThread()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(wait())
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.wait(10)
    loop.close(asyncio.sleep(0))


@pytest.mark.parametrize(("sync", "inner"), [(Session, AsyncSession), (AgentMem, AsyncAgentMem), (SyncToolLoop, ToolLoop)])
def test_nothing_is_missing_in_the_synchronous_client(sync: type, inner: type) -> None:
    """Every public method of the asynchronous class is there, with its documentation."""
    names = {name for name, value in vars(inner).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert set() == names - set(vars(sync))
    assert all(getattr(sync, name).__doc__ for name in names)


def test_the_client_needs_no_server_libraries() -> None:
    """The base install, gRPC and protobuf, is enough: torch, transformers, numpy and the server's gRPC extras stay unloaded."""
    code = """
import sys, json, importlib.abc
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import agentmem_client
print(json.dumps(agentmem_client.__all__))
"""
    server_only = ("torch", "transformers", "numpy", "safetensors", "blake3", "grpc_health", "typer", "rich", "prometheus_client")
    done = subprocess.run([sys.executable, "-c", code, *server_only], capture_output=True, text=True, check=True)
    assert "AgentMem" in json.loads(done.stdout)
