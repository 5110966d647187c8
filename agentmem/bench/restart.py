"""``bench restart``: what a long session's first token costs after SIGKILL, with its memory on disk and without it."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TimedReply, greedy, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.reference import load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.types import SessionFormat, TurnInput

SESSION = "long"
BLOCKS = "blocks"  # the folder of block files in a state directory

COLUMNS = (
    Column("start", "after SIGKILL"),
    Column("first_token_s", "first token, s", ".3f"),
    Column("fastest_s", "fastest", ".3f"),
    Column("slowest_s", "slowest", ".3f"),
    Column("disk", "tokens from disk", ",.0f"),
    Column("computed", "computed", ",.0f"),
    Column("ready_s", "server ready, s", ".1f"),
)
CAPTION = (
    "A session of {context_tokens} tokens; SIGKILL; a new server on the same state; once it is ready, the next turn ({input_tokens}"
    " tokens) is timed at its client, over gRPC, to the first token. Recomputed: the same, on a copy of the state without its block"
    " files. The block files are dropped from the page cache before each start. Medians, both in turn."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of the session before the kill, of the next turn's input and of its reply."""

    context_tokens: int = 6000
    input_tokens: int = 16
    reply_tokens: int = 4


@dataclass(frozen=True, slots=True)
class Start:
    """The first turn after one restart, and how long the server took to be ready."""

    reply: TimedReply
    ready_s: float


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Build the session once, then kill and start again for every measurement. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    text = load_text(options)
    restored: list[Start] = []
    recomputed: list[Start] = []
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        original = Path(folder) / "original"
        say(f"a session of {sizes.context_tokens} tokens")
        await _build(options, original, text.token_ids(sizes.context_tokens))
        given = text.token_ids(sizes.input_tokens)
        for number in range(options.repeat):
            for name, kept, starts in (("restored", True, restored), ("recomputed", False, recomputed)):
                say(f"{name}, measurement {number + 1} of {options.repeat}")
                starts.append(await _start(options, _copy(original, blocks=kept), given, sizes.reply_tokens))
    rows = [_row("restored from disk", restored), _row("recomputed", recomputed)]
    return Report(
        name="restart",
        title="First token after SIGKILL and restart",
        caption=CAPTION.format(**asdict(sizes)),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured={
            "ratio": float(rows[0]["first_token_s"]) / float(rows[1]["first_token_s"]),
            "restored_share": float(rows[0]["disk"]) / (float(rows[0]["disk"]) + float(rows[0]["computed"])),
        },
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
    )


async def _build(options: Options, state: Path, token_ids: list[int]) -> None:
    """Make the session durable, then kill its server."""
    async with ServerProcess(options.settings(), state) as server, connected(server) as client:
        async with client.session(SESSION, format=SessionFormat.RAW) as session:
            await session.append(TurnInput(token_ids=tuple(token_ids)))
            await session.seal()
        await server.kill()


def _copy(original: Path, *, blocks: bool) -> Path:
    """Return a fresh copy of a dead server's state, with or without its block files, which are not in the page cache."""
    copy = original.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy, ignore=None if blocks else shutil.ignore_patterns(BLOCKS))
    for path in (copy / BLOCKS).rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return copy


async def _start(options: Options, state: Path, given: list[int], reply_tokens: int) -> Start:
    began = time.perf_counter()
    async with ServerProcess(options.settings(), state) as server, connected(server) as client:
        ready_s = time.perf_counter() - began
        reply = await timed_reply(client.attach(SESSION), TurnInput(token_ids=tuple(given)), greedy(reply_tokens))
        await server.kill()
    return Start(reply, ready_s)


def _row(name: str, starts: Sequence[Start]) -> dict[str, Cell]:
    times = [start.reply.tokens.first_token_s for start in starts]
    reuse = [start.reply.finish.reuse for start in starts]
    return {
        "start": name,
        "first_token_s": statistics.median(times),
        "fastest_s": min(times),
        "slowest_s": max(times),
        "disk": statistics.median(report.disk for report in reuse),
        "computed": statistics.median(report.computed for report in reuse),
        "ready_s": statistics.median(start.ready_s for start in starts),
    }
