"""Tool loops over gRPC against a real server: killed servers, vanished clients, results of odd sizes, and many loops at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.conversation import ledger_replies
from support.server import Server
from support.tool_loops import CALLS, CONTEXT, READ, RESULTS, SAMPLING, drain, in_pieces, ledger, one_turn, run, save_model
from support.waiting import until

from agentmem.errors import ContextTooLong
from agentmem.types import SamplingParams
from agentmem_client import AsyncAgentMem, AsyncSession, RetryPolicy

PATIENT = RetryPolicy(attempts=1000, max_seconds=0.2)
FREE_SECONDS = 5.0  # within which a session whose client has vanished takes the next one
CRASHES = ("generation.mid_stream:kill:3", "generation.mid_stream:kill:12", "engine.step:kill:12", "ledger.before_commit:kill:4")
LOOPS, TURNS = 50, 8
VANISHING = """
import asyncio, sys
from agentmem.output import OutputSpec, ToolChoice, ToolMode
from agentmem_client import AsyncAgentMem, SamplingParams

async def hang():
    print("here", flush=True)
    await asyncio.Event().wait()

async def pieces():
    for _ in range(20):
        yield "some of a result that never ends"
    await hang()

async def main(address, session, where):
    async with AsyncAgentMem(address) as client:
        loop = client.attach(session).converse(SamplingParams(max_tokens=200))
        if where == "call":
            async for event in loop.say("go", sampling=SamplingParams(max_tokens=200, ignore_eos=True)):
                await hang()
        async for event in loop.say("go", output=OutputSpec(ToolChoice(ToolMode.NAMED, "read"))):
            pass
        if where == "tool":
            await loop.waiting(60.0)
            await hang()
        async for event in loop.result(loop.calls[0], pieces()):
            pass

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


def make_server(state_dir: Path, model: Path) -> Server:
    settings = {"model.id": str(model), "memory.kv_bytes": "256MiB", "memory.block_tokens": 16, "server.drain_seconds": 0.5}
    return Server(state_dir, model.parent / "cache", settings)


@pytest.fixture(scope="module")
def steady(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Yield a server that nobody kills."""
    server = make_server(tmp_path_factory.mktemp("steady") / "state", tiny).start()
    yield server
    server.kill()


@pytest.fixture
async def client(steady: Server) -> AsyncIterator[AsyncAgentMem]:
    async with steady.client(retry=PATIENT) as client:
        yield client


@pytest.fixture
def mortal(tiny: Path, tmp_path: Path) -> Iterator[Server]:
    """Yield a server that has not been started."""
    server = make_server(tmp_path / "state", tiny)
    yield server
    server.kill()


async def is_free(session: AsyncSession) -> bool:
    return not (await session.info()).busy


async def test_a_loop_of_several_turns(client: AsyncAgentMem) -> None:
    """Each result is answered by a call, until the caller stops; the ledger has what went over the stream, in whatever pieces it came."""
    async with client.session(tools=[READ]) as session, client.session(tools=[READ]) as other:
        replies = await run(session)
        assert len(RESULTS) + 1 == len(replies)
        assert replies == await ledger_replies(session)
        _, _, messages = await ledger(session)
        assert [("tool", text) for text in RESULTS] == [said[0] for said in messages[2:]]
        assert replies == await run(other, pieces=lambda text: in_pieces(text, 1000))


async def crashed(server: Server, faults: str, session_id: str) -> list[list[int]]:
    """Run the loop through a crash and then through one between two pieces; return the replies that the client heard."""
    restarts = 0

    async def fatal(text: str) -> AsyncIterator[str]:
        nonlocal restarts
        async for piece in in_pieces(text):
            yield piece
            if text == RESULTS[-1] and piece != text[:40] and restarts == 1:
                restarts += 1
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)

    server.start(faults=faults)
    async with server.client(retry=PATIENT) as client, client.session(session_id, tools=[READ]) as session:
        loop = asyncio.create_task(run(session, pieces=fatal))
        assert -9 == await asyncio.to_thread(server.wait)
        await asyncio.to_thread(server.start)
        restarts += 1
        replies = await loop
    assert restarts == 2, f"{faults} came too late"
    return replies


@pytest.mark.timeout(150)
@pytest.mark.parametrize("faults", [CRASHES[0], *(pytest.param(faults, marks=pytest.mark.slow) for faults in CRASHES[1:])])
async def test_a_loop_goes_on_through_kills_of_its_server(mortal: Server, client: AsyncAgentMem, faults: str) -> None:
    """Killed in the middle of a reply and between two pieces: what is heard and what is kept are an undisturbed loop's."""
    heard = await crashed(mortal, faults, "s")
    async with client.session(tools=[READ]) as calm, mortal.client(retry=PATIENT) as other:
        assert await run(calm) == heard
        session = other.attach("s")
        assert await ledger(calm) == await ledger(session)
    mortal.kill()
    mortal.check_state()


async def test_a_result_of_nothing_is_a_result(client: AsyncAgentMem) -> None:
    """0 bytes, whole or as an iterator without pieces, are answered as any other."""
    async with client.session(tools=[READ]) as session, session.converse(SAMPLING, output=CALLS) as loop:
        await drain(loop.say("go"))
        assert await drain(loop.result(loop.calls[0], ""))
        assert await drain(loop.result(loop.calls[0], in_pieces("")))
        _, _, messages = await ledger(session)
    assert [("tool", ""), ("tool", "")] == [said[0] for said in messages[2:]]


@pytest.mark.parametrize("size", [100, 10 * CONTEXT])
async def test_a_result_longer_than_the_context_is_refused(client: AsyncAgentMem, size: int) -> None:
    """In pieces or whole: ContextTooLong, the session as it was, and the same loop takes a shorter result."""
    async with client.session(tools=[READ]) as session, session.converse(SAMPLING, output=CALLS) as loop:
        await drain(loop.say("go"))
        before, (call,) = await ledger(session), loop.calls
        with pytest.raises(ContextTooLong):
            await drain(loop.result(call, in_pieces("x" * 5 * CONTEXT, size)))
        await until(lambda: is_free(session), FREE_SECONDS)
        assert before == await ledger(session)
        assert (call,) == loop.calls
        assert await drain(loop.result(call, "too long; here is a part"))
        assert 3 == (await session.info()).n_turns


@pytest.mark.parametrize("where", ["call", "tool", "piece"])
async def test_a_client_that_vanishes_leaves_its_session_to_others(client: AsyncAgentMem, steady: Server, where: str) -> None:
    """Its process is killed: a reply goes on and is kept whole, half a result never was, and the next client goes on from there."""
    tools = [] if where == "call" else [READ]  # without tools no grammar ends the reply before all of its tokens
    async with client.session(f"left-{where}", tools=tools) as session:
        script = [sys.executable, "-c", VANISHING, steady.address, session.id, where]
        process = await asyncio.to_thread(subprocess.Popen, script, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert b"here" == (await asyncio.to_thread(process.stdout.readline)).strip()
            assert where != "piece" or not await is_free(session)
            assert where != "tool" or await is_free(session)
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)
            process.stdout.close()
        await until(lambda: is_free(session), FREE_SECONDS if where != "call" else 30.0)
        (reply,) = await ledger_replies(session)
        assert 2 == (await session.info()).n_turns
        assert (where == "call") == (len(reply) == 200)
        async with session.converse() as loop:
            assert await one_turn(loop)


@pytest.mark.timeout(150)
async def test_fifty_loops_share_a_server_fairly(client: AsyncAgentMem) -> None:
    """Every loop gets all its replies; when half of all turns are done, no loop has done less than half of what another has."""
    done = [0] * LOOPS
    halfway: list[int] = []
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)

    async def work(index: int) -> None:
        async with client.session(f"many-{index}") as session, session.converse(sampling) as loop:
            for turn in range(TURNS):
                events = loop.say(f"I am {index}") if not turn else loop.result("c", in_pieces(f"result {turn} of {index}\n" * 2))
                assert 8 == len(await drain(events))
                done[index] += 1
                if not halfway and sum(done) >= LOOPS * TURNS // 2:
                    halfway.extend(done)

    await asyncio.gather(*map(work, range(LOOPS)))
    assert [TURNS] * LOOPS == done
    assert min(halfway) >= max(halfway) / 2
