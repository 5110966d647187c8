"""``bench decode --fidelity``: time a token as the context grows, under RECALL and under EXACT, with drafts if asked for, in one run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TimedReply, greedy, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.plot import Chart, Line
from agentmem.bench.reference import load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.settle import settled
from agentmem.bench.stretch import stretched, trained_length
from agentmem.bench.texts import TextSource
from agentmem.errors import InvalidInput
from agentmem.speculation import check_drafter
from agentmem.types import Fidelity, Policy, SessionFormat, TurnInput
from agentmem_client import AsyncSession

EXACT, RECALL = Fidelity.EXACT, Fidelity.RECALL
Variant = tuple[Fidelity, str]  # and the drafter
PIECE = 4096  # tokens of one Append: each ends well before its deadline
GROWTH = 16  # from the first context to the last, 2k to 32k
SPARE = 64  # tokens of a block: room between the last reply and the end of the context

COLUMNS = (
    Column("context", "context", ",.0f"),
    Column("exact_ms", "EXACT, ms a token", ".1f"),
    Column("recall_ms", "RECALL, ms a token", ".1f"),
    Column("ratio", "EXACT over RECALL", ".2f"),
    Column("drafted_ms", "EXACT with drafts, ms a token", ".1f"),
    Column("accepted", "accepted drafts", ".2f"),
    Column("attended", "attended", ".3f"),
    Column("resident", "resident tokens", ",.0f"),
    Column("note", ""),
)
CAPTION = (
    "One session grows; at each length two forks of it, EXACT and RECALL (default policy), in turn reply with {reply_tokens} greedy tokens,"
    " timed at the client, over gRPC: mean of the tokens after the first, median of the measurements. The background work of a reply ends"
    " before the next begins. attended: share of the context that a decode step of RECALL read."
)
BEYOND = "The model was trained for {trained:,} tokens. Beyond that only the time means anything, not what it says."


def fidelities_of(name: str) -> tuple[Fidelity, ...]:
    """Return what ``--fidelity name`` measures: RECALL is never timed without EXACT beside it. Raises InvalidInput."""
    known = {"recall": (EXACT, RECALL), "both": (EXACT, RECALL), "exact": (EXACT,)}
    if name not in known:
        raise InvalidInput(f"--fidelity {name!r} is unknown; allowed are {', '.join(known)}")
    return known[name]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of context, ascending, of a reply and of what it answers; and what to time."""

    contexts: tuple[int, ...] = (2048, 8192, 16384, 32768)
    fidelities: tuple[Fidelity, ...] = (EXACT, RECALL)
    drafter: str = ""  # EXACT with its drafts too
    draft_tokens: int = 4
    input_tokens: int = 8
    reply_tokens: int = 48

    def __post_init__(self) -> None:
        """Raise InvalidInput where the contexts do not grow."""
        if not self.contexts or sorted(set(self.contexts)) != list(self.contexts) or self.contexts[0] < 1:
            raise InvalidInput(f"contexts are {self.contexts}; allowed are positive numbers, each above the one before")
        if self.drafter:
            check_drafter(self.drafter)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is timed: fidelities without drafts, and EXACT with some."""
        return (*((fidelity, "none") for fidelity in self.fidelities), *([(EXACT, self.drafter)] if self.drafter else []))


@dataclass(slots=True)
class Timing:
    """A run in progress. ``replies`` by context and fidelity; ``resident``: tokens that stay on the device under RECALL, by context."""

    sizes: Sizes
    repeat: int
    text: TextSource
    say: Say
    replies: dict[tuple[int, Variant], list[TimedReply]] = field(default_factory=dict)
    resident: dict[int, int] = field(default_factory=dict)

    async def grow(self, session: AsyncSession) -> None:
        """Let ``session`` read on to each context and measure there."""
        length = 0
        for context in self.sizes.contexts:
            self.say(f"reading up to {context:,} tokens")
            for start in range(length, context, PIECE):
                await session.append(self._input(min(PIECE, context - start)))
            length = context
            await settled(session)
            await self._measure(session, context)

    def _input(self, tokens: int) -> TurnInput:
        return TurnInput(token_ids=tuple(self.text.token_ids(tokens)))

    async def _measure(self, session: AsyncSession, context: int) -> None:
        """Time replies of forks of ``session``, the fidelities in turn."""
        forks: dict[Variant, AsyncSession] = {}
        for fidelity, drafter in self.sizes.variants:
            fork = forks[fidelity, drafter] = await session.fork()
            draft_tokens = self.sizes.draft_tokens
            await fork.update(policy=Policy(fidelity, objective=0.0, drafter=drafter, draft_tokens=draft_tokens))
            info, _ = await settled(fork)
            self.resident[context] = info.resident_tokens
        for number in range(-1, self.repeat):  # number -1 warms up
            given = self._input(self.sizes.input_tokens)
            for variant, fork in forks.items():
                self.say(f"{context:,} tokens of context, {' '.join(variant)}, measurement {max(0, number) + 1} of {self.repeat}")
                reply = await timed_reply(fork, given, greedy(self.sizes.reply_tokens))
                if number >= 0:
                    self.replies.setdefault((context, variant), []).append(reply)
                await settled(fork)
        for fork in forks.values():
            await fork.delete()

    def row(self, context: int, trained: int) -> dict[str, Cell]:
        """Return the table's row of ``context``; what was not timed is missing. ``trained``: the model's trained length."""
        row: dict[str, Cell] = {"context": context, "note": "beyond the trained length" if context > trained else ""}
        drafted: Variant = (EXACT, self.sizes.drafter)
        for variant, name in (((EXACT, "none"), "exact_ms"), ((RECALL, "none"), "recall_ms"), (drafted, "drafted_ms")):
            if replies := self.replies.get((context, variant)):
                row[name] = 1000 * statistics.median(reply.tokens.seconds_per_token for reply in replies)
        if replies := self.replies.get((context, drafted)):
            usages = [reply.finish.usage for reply in replies]
            row["accepted"] = sum(usage.accepted for usage in usages) / max(1, sum(usage.drafted for usage in usages))
        if replies := self.replies.get((context, (RECALL, "none"))):
            row["ratio"] = float(row["exact_ms"]) / float(row["recall_ms"])
            row["attended"] = statistics.median(reply.finish.usage.attended for reply in replies)
            row["resident"] = self.resident[context]
        return row


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Grow a session and measure at each length. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    timing = Timing(sizes, options.repeat, load_text(options), say)
    trained = trained_length(options)
    replies = (options.repeat + 1) * (sizes.input_tokens + sizes.reply_tokens)
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        served = stretched(options, sizes.contexts[-1] + replies + SPARE, Path(folder) / "model")
        async with (
            ServerProcess(served.settings(), Path(folder) / "state") as server,
            connected(server) as client,
            client.session(format=SessionFormat.RAW, policy=Policy(EXACT)) as session,
        ):
            await timing.grow(session)
    rows = [timing.row(context, trained) for context in sizes.contexts]
    return Report(
        name="latency" if RECALL in sizes.fidelities else "latency of EXACT",
        title="Time a token as the context grows",
        caption=CAPTION.format(**asdict(sizes)),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured=_measured(rows),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
        notes=[BEYOND.format(trained=trained)] if sizes.contexts[-1] > trained else [],
        charts=[_chart(rows)],
    )


def _measured(rows: Sequence[Mapping[str, Cell]]) -> dict[str, float]:
    """Return what the thresholds judge; they are about contexts that grow 16 times, so a shorter run has not measured them."""
    first, last = rows[0], rows[-1]
    measured = {"exact_growth": float(last["exact_ms"]) / float(first["exact_ms"])}
    if "recall_ms" in last and float(last["context"]) >= GROWTH * float(first["context"]):
        measured["recall_growth"] = float(last["recall_ms"]) / float(first["recall_ms"])
        measured["exact_over_recall"] = float(last["ratio"])
    return measured


def _chart(rows: Sequence[Mapping[str, Cell]]) -> Chart:
    lines = [
        Line(label, [(float(row["context"]), float(row[name])) for row in rows])
        for label, name in (("EXACT", "exact_ms"), ("RECALL", "recall_ms"), ("EXACT with drafts", "drafted_ms"))
        if name in rows[-1]
    ]
    return Chart("Time a token", "tokens of context", "ms a token", lines, log_x=True)
