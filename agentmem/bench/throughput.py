"""``bench throughput``: what continuous batching gives, as tokens a second of 1, 4 and 16 concurrent sessions."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TimedReply, greedy, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.reference import load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.texts import TextSource
from agentmem.types import Policy, SessionFormat, TurnInput
from agentmem_client import AsyncAgentMem, AsyncSession

COLUMNS = (
    Column("sessions", "sessions"),
    Column("tokens_per_second", "tokens/s", ".1f"),
    Column("speedup", "over one", ".2f"),
    Column("ms_per_token", "ms a token, each", ".1f"),
    Column("first_token_ms", "first token, ms", ".0f"),
)
CAPTION = (
    "N clients ask at once, over gRPC, for {reply_tokens} greedy tokens each, in sessions whose {context_tokens} tokens of context"
    " (different text in each) are on the device; tokens of all replies over the time from the first request to the last token. Medians."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many sessions at once, and tokens of context, of new input and of reply."""

    sessions: tuple[int, ...] = (1, 4, 16)
    context_tokens: int = 512
    input_tokens: int = 8
    reply_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Burst:
    """One measurement: concurrent replies and the seconds until the last of their tokens."""

    replies: list[TimedReply]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all replies in a second."""
        return sum(len(reply.tokens.token_ids) for reply in self.replies) / self.seconds


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Measure on a server of its own, the numbers of sessions interleaved. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    text = load_text(options)
    bursts: dict[int, list[Burst]] = {count: [] for count in sizes.sessions}
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        async with ServerProcess(options.settings(), Path(folder)) as server, connected(server) as client:
            sessions = await _fill(client, text, max(sizes.sessions), sizes, say)
            await _burst(sessions, text, sizes)  # warms up
            for number in range(options.repeat):
                for count in sizes.sessions:
                    say(f"{count} sessions, measurement {number + 1} of {options.repeat}")
                    bursts[count].append(await _burst(sessions[:count], text, sizes))
    rows = _rows(bursts)
    return Report(
        name="throughput",
        title="Tokens a second of concurrent sessions",
        caption=CAPTION.format(**asdict(sizes)),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured={f"speedup_at_{row['sessions']}": float(row["speedup"]) for row in rows[1:]},
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
    )


async def _fill(client: AsyncAgentMem, text: TextSource, count: int, sizes: Sizes, say: Say) -> list[AsyncSession]:
    sessions = []
    for number in range(count):
        say(f"reading the context of session {number + 1} of {count}")
        session = client.session(format=SessionFormat.RAW, policy=Policy(drafter="none"))
        await session.open()
        await session.append(TurnInput(token_ids=tuple(text.token_ids(sizes.context_tokens))))
        await session.end_turn()
        sessions.append(session)
    return sessions


async def _burst(sessions: list[AsyncSession], text: TextSource, sizes: Sizes) -> Burst:
    """Let ``sessions`` reply at once, then roll them back, so that every burst starts from the same context."""
    began = time.perf_counter()
    last = began

    def note(_: int) -> None:
        nonlocal last
        last = time.perf_counter()

    async def one(session: AsyncSession) -> TimedReply:
        given = TurnInput(token_ids=tuple(text.token_ids(sizes.input_tokens)))
        return await timed_reply(session, given, greedy(sizes.reply_tokens), on_tokens=note)

    replies = await asyncio.gather(*(one(session) for session in sessions))
    seconds = last - began
    for session in sessions:
        await session.rollback(1)
    return Burst(list(replies), seconds)


def _rows(bursts: dict[int, list[Burst]]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for count, measured in bursts.items():
        replies = [reply for burst in measured for reply in burst.replies]
        rate = statistics.median(burst.tokens_per_second for burst in measured)
        rows.append(
            {
                "sessions": count,
                "tokens_per_second": rate,
                "speedup": rate / float(rows[0]["tokens_per_second"]) if rows else 1.0,
                "ms_per_token": 1000 * statistics.median(reply.tokens.seconds_per_token for reply in replies),
                "first_token_ms": 1000 * statistics.median(reply.tokens.first_token_s for reply in replies),
            }
        )
    return rows
