"""``bench density``: what a session costs in private memory, EXACT and RECALL, and how many fit in a budget and answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import greedy
from agentmem.bench.options import Options, Say
from agentmem.bench.reference import load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.settle import settled
from agentmem.bench.texts import TextSource
from agentmem.errors import InternalError, InvalidInput
from agentmem.types import Fidelity, Policy, SessionFormat, TurnInput
from agentmem.units import GIB, MIB, format_size
from agentmem.views import ServerStats
from agentmem_client import AsyncAgentMem, AsyncSession

COLUMNS = (
    Column("fidelity", "fidelity"),
    Column("device_mib", "device, MiB", ".1f"),
    Column("index_mib", "index, MiB", ".1f"),
    Column("private_mib", "private, MiB", ".1f"),
    Column("process_mib", "process: anonymous", ".1f"),
    Column("uss_mib", "USS", ".1f"),
    Column("share", "of EXACT", ".0%"),
    Column("fit", "fit in the budget"),
    Column("answered", "answer"),
    Column("spills", "spilled"),
)
CAPTION = (
    "Sessions of {context} tokens, each with its own text, on a server whose device budget is {budget_text}. Bytes are per session, over"
    " the second half of those that fit. device and index: as the server counts them; private: their sum (the archive is on disk)."
    " process: growth of the server's anonymous memory, and of its USS, which also counts pages of the mapped archive that the system can"
    " take back at any time. fit: sessions opened one after the other until the next took another's memory; answer: of these, how many"
    " then replied once more; spilled: meanwhile."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a session, of a question and of a reply; bytes of the device budget; sessions at most, whatever fits."""

    context: int = 4000
    budget: int = GIB
    input_tokens: int = 8
    reply_tokens: int = 4
    most_sessions: int = 1000

    def __post_init__(self) -> None:
        """Raise InvalidInput for sizes that leave nothing to measure."""
        for name, value, least in (("context", self.context, 1), ("budget", self.budget, MIB), ("most_sessions", self.most_sessions, 1)):
            if value < least:
                raise InvalidInput(f"{name} is {value}; allowed are {least} or more")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at one moment: what the server counts, and what its process has."""

    device: int
    index: int
    anonymous: int
    uss: int

    @classmethod
    def of(cls, stats: ServerStats, pid: int) -> Memory:
        """Read the process now."""
        info = psutil.Process(pid).memory_full_info()
        return cls(stats.kv_bytes_used, stats.index_bytes, info.rss - getattr(info, "shared", 0), info.uss)


@dataclass(frozen=True, slots=True)
class Filled:
    """A server filled with sessions. ``marks``: memory before the first of them, and after each that fits."""

    fidelity: Fidelity
    marks: Sequence[Memory]
    answered: int
    spills: int

    @property
    def sessions(self) -> int:
        """How many fit."""
        return len(self.marks) - 1

    def per_session(self, name: str) -> float:
        """Return the MiB of one of Memory's numbers that a session adds, over the second half of them.

        With the first ones the process also warms up: buffers of the prefill, heaps of its threads.
        """
        half = self.sessions // 2
        return float(getattr(self.marks[-1], name) - getattr(self.marks[half], name)) / (self.sessions - half) / MIB


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Fill one server with EXACT and one with RECALL sessions. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    filled = [await _fill(options, fidelity, sizes, say) for fidelity in (Fidelity.EXACT, Fidelity.RECALL)]
    rows = [_row(one, filled[0]) for one in filled]
    return Report(
        name="density",
        title=f"Private memory of a session of {sizes.context:,} tokens",
        caption=CAPTION.format(**asdict(sizes), budget_text=format_size(sizes.budget)),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured={
            "recall_of_exact": float(rows[1]["share"]),
            "process_of_exact": filled[1].per_session("anonymous") / filled[0].per_session("anonymous"),
            "exact_sessions": filled[0].sessions,
            "recall_sessions": filled[1].sessions,
            "silent_sessions": sum(one.sessions - one.answered for one in filled),
        },
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
    )


async def _fill(options: Options, fidelity: Fidelity, sizes: Sizes, say: Say) -> Filled:
    """Open sessions until one takes another's memory, measure, then let each of those that fit answer."""
    text = load_text(options)
    passage = text.token_ids(sizes.context + sizes.most_sessions + 1)
    settings = options.settings() | {"memory.kv_bytes": sizes.budget, "memory.host_bytes": 0}
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        async with ServerProcess(settings, Path(folder)) as server, connected(server) as client:
            say(f"{fidelity}: warming up")
            await (await _open(client, fidelity, text, passage[: sizes.context], sizes)).delete()
            stats = await client.stats()
            marks, spills = [Memory.of(stats, server.pid)], stats.spills
            sessions: list[AsyncSession] = []
            while len(sessions) < sizes.most_sessions:
                say(f"{fidelity}: opening session {len(sessions) + 1}")
                start = len(sessions) + 1  # no two sessions begin alike, so that they share no block
                session = await _open(client, fidelity, text, passage[start : start + sizes.context], sizes)
                stats = await client.stats()
                if stats.spills > spills:
                    await session.delete()
                    spills = stats.spills
                    break
                sessions.append(session)
                marks.append(Memory.of(stats, server.pid))
            if not sessions:
                raise InternalError(f"not one {fidelity} session of {sizes.context} tokens fits in {format_size(sizes.budget)}")
            answered = await _answer(sessions, text, sizes, lambda number: say(f"{fidelity}: session {number} answers"))
            spilled = (await client.stats()).spills - spills
    return Filled(fidelity, marks, answered, spilled)


async def _open(client: AsyncAgentMem, fidelity: Fidelity, text: TextSource, token_ids: list[int], sizes: Sizes) -> AsyncSession:
    """Return a sealed session that has read ``token_ids`` and replied once."""
    session = client.session(format=SessionFormat.RAW, policy=Policy(fidelity, objective=0.0, drafter="none"))
    await session.open()
    await session.append(TurnInput(token_ids=tuple(token_ids)))
    await settled(session)
    await _reply(session, text, sizes)  # what a session searches is made when it first replies
    await settled(session)
    return session


async def _reply(session: AsyncSession, text: TextSource, sizes: Sizes) -> bool:
    """Let ``session`` take a turn; return whether its reply has the length that was asked for."""
    given = TurnInput(token_ids=tuple(text.token_ids(sizes.input_tokens)))
    finish = await session.generate_text(given, greedy(sizes.reply_tokens))
    return finish.usage.output_tokens == sizes.reply_tokens


async def _answer(sessions: Sequence[AsyncSession], text: TextSource, sizes: Sizes, tell: Callable[[int], None]) -> int:
    """Let each session reply, and return how many did."""
    answered = 0
    for number, session in enumerate(sessions):
        tell(number + 1)
        answered += await _reply(session, text, sizes)
    return answered


def _row(filled: Filled, exact: Filled) -> dict[str, Cell]:
    device, index = filled.per_session("device"), filled.per_session("index")
    return {
        "fidelity": filled.fidelity.upper(),
        "device_mib": device,
        "index_mib": index,
        "private_mib": device + index,
        "process_mib": filled.per_session("anonymous"),
        "uss_mib": filled.per_session("uss"),
        "share": (device + index) / (exact.per_session("device") + exact.per_session("index")),
        "fit": filled.sessions,
        "answered": filled.answered,
        "spills": filled.spills,
    }
