"""``bench recall``: what a compressed memory still knows. The table of compressors and recall methods, made by the service itself.

A context with planted facts is read, sealed and compressed before any question is visible. Then each turn asks for another fact, and the
re-encode of what was generated tells how close it came to the full cache.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from agentmem.bench.facts import PLACES, Fact, asked, facts_of, planted
from agentmem.bench.machine import this_machine
from agentmem.bench.measure import greedy
from agentmem.bench.options import Options, Say
from agentmem.bench.plot import Chart, Line
from agentmem.bench.reference import load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.settle import settled
from agentmem.compression import compressors
from agentmem.errors import InvalidInput
from agentmem.memory.recall.port import recallers
from agentmem.types import Fidelity, FidelityReport, Policy, Prefill, SessionFormat, TurnInput
from agentmem_client import AsyncAgentMem, AsyncSession

METHODS = ("none", "lsh", "pages", "oracle")
JUDGED = ("keydiff", 0.1, "lsh")  # the row that the thresholds are about
FULL = "full cache"

COLUMNS = (
    Column("compressor", "compressor"),
    Column("keep", "kept", ".0%"),
    Column("recall", "recall"),
    Column("answers", "exact answers", ".2f"),
    Column("mean_kl", "mean KL", ".3f"),
    Column("max_kl", "max KL", ".2f"),
    Column("top1", "top-1 agreement", ".3f"),
    Column("attended", "attended", ".3f"),
)
CAPTION = (
    "{context} tokens of the standard library's source with {facts} planted facts, sealed and compressed before a question is visible; then"
    " {turns} turns, each asking for another fact ({reply_tokens} greedy tokens). Recall of up to {recall_tokens} tokens for each KV head,"
    " {bits} bits. KL(exact || decoded) in nats, over generated tokens, from the service's own fidelity reports; attended: share of the"
    " context that a decode step read. {prefill}"
)
PREFILLS = {
    Prefill.VIEW: "The question too sees only the view (prefill: view); a session's default lets it see everything.",
    Prefill.EXACT: "The question sees everything (prefill: exact, a session's default), only the reply is restricted to the view.",
}

Key = tuple[str, float, str]  # compressor, keep, recall method


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of context, of recall and of a reply; facts, turns; and what to compare. No compressors named: all there are."""

    context: int = 3000
    facts: int = len(PLACES)
    turns: int = 5
    reply_tokens: int = 6  # the code, to the end of its line
    compressors: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    keeps: tuple[float, ...] = (0.1,)
    recall_tokens: int = 256
    bits: int = 256
    prefill: Prefill = Prefill.VIEW

    def __post_init__(self) -> None:
        """Raise InvalidInput for a name that is not registered, or a value that a policy does not take."""
        if not (self.methods and self.keeps):
            raise InvalidInput("there is nothing to compare: name a recall method and a budget")
        for name in self.compressors:
            compressors.get(name)
        for name in self.methods:
            recallers.get(name)
        for keep in self.keeps:
            self.policy(("keydiff", keep, "lsh"))
        asked(facts_of(0, self.facts), self.turns)

    def policy(self, key: Key) -> Policy:
        """Return the policy of a row. Budgets stay as they are: an objective would raise them where they are too small."""
        compressor, keep, method = key
        return Policy(
            fidelity=Fidelity.RECALL,
            compressor=compressor,
            keep=keep,
            recall=method,
            recall_tokens=self.recall_tokens,
            bits=self.bits,
            prefill=self.prefill,
            objective=0.0,
        )

    def cells(self) -> Iterator[Key]:
        """Yield the rows of the table, the full cache apart."""
        for compressor in self.compressors or tuple(compressors):
            yield from ((compressor, keep, method) for keep in self.keeps for method in self.methods)


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn: whether its reply was the fact's code, and how close it came to the full cache."""

    exact: bool
    report: FidelityReport


@dataclass(slots=True)
class Table:
    """The table in progress: ``answers`` by row, of all contexts."""

    client: AsyncAgentMem
    sizes: Sizes
    say: Say
    answers: dict[Key, list[Answer]] = field(default_factory=dict)

    async def add(self, name: str, facts: Sequence[Fact], token_ids: Sequence[int]) -> None:
        """Read and seal a context, then ask in forks of its session."""
        self.say(f"{name}: reading")
        async with self.client.session(format=SessionFormat.RAW, policy=Policy(Fidelity.EXACT), delete_on_exit=True) as context:
            await context.append(TurnInput(token_ids=tuple(token_ids)))
            await settled(context)
            await self._fill(context, asked(facts, self.sizes.turns), name)

    async def _fill(self, context: AsyncSession, questions: Sequence[Fact], where: str) -> None:
        """Ask with the full cache, then for each row. A compressor's work is done once."""
        self.say(f"{where}: {FULL}")
        await self._ask(context, (FULL, 1.0, ""), Policy(Fidelity.EXACT), questions)
        for (compressor, keep), keys in groupby(self.sizes.cells(), key=lambda key: key[:2]):
            self.say(f"{where}: {compressor}, {keep:.0%} kept: sealing")
            sealed = await context.fork()
            for number, key in enumerate(keys):
                if number == 0:
                    await sealed.update(policy=self.sizes.policy(key))
                    await settled(sealed)
                self.say(f"{where}: {compressor}, {keep:.0%} kept, recall {key[2]}")
                await self._ask(sealed, key, self.sizes.policy(key), questions)
            await sealed.delete()

    async def _ask(self, context: AsyncSession, key: Key, policy: Policy, questions: Sequence[Fact]) -> None:
        """Ask a fork of ``context`` under ``policy``, turn by turn, each sealed before the next."""
        session = await context.fork()
        await session.update(policy=policy)
        await settled(session)
        for fact in questions:
            finish = await session.generate_text(fact.question, greedy(self.sizes.reply_tokens))
            _, turns = await settled(session)
            answer = Answer(fact.answered_by(finish.text), turns[-1].turn.report or FidelityReport())
            self.answers.setdefault(key, []).append(answer)
        await session.delete()


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Fill the table, on ``options.repeat`` contexts. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    text = load_text(options)
    facts = [facts_of(number, sizes.facts) for number in range(options.repeat)]
    contexts = [planted(text, planting, sizes.context) for planting in facts]
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        async with ServerProcess(options.settings(), Path(folder)) as server, connected(server) as client:
            table = Table(client, sizes, say)
            for number, (planting, token_ids) in enumerate(zip(facts, contexts, strict=True)):
                await table.add(f"context {number + 1}", planting, token_ids)
    rows = [_row(key, found) for key, found in table.answers.items()]
    return Report(
        name="recall",
        title="Exact answers and KL of compressed memory, against the full cache",
        caption=CAPTION.format(**asdict(sizes) | {"prefill": PREFILLS[sizes.prefill]}),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured=_measured(rows),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
        charts=_charts(rows),
    )


def _row(key: Key, answers: Sequence[Answer]) -> dict[str, Cell]:
    compressor, keep, method = key
    reports = [answer.report for answer in answers]
    tokens = sum(report.tokens for report in reports)

    def mean(values: Sequence[float]) -> float:
        """Over generated tokens; 0 where none was approximate."""
        return sum(value * report.tokens for value, report in zip(values, reports, strict=True)) / max(1, tokens)

    return {
        "compressor": compressor,
        "keep": keep,
        "recall": method,
        "answers": sum(answer.exact for answer in answers) / len(answers),
        "mean_kl": mean([report.mean_kl for report in reports]),
        "max_kl": max(report.max_kl for report in reports),
        "top1": mean([report.top1_agreement for report in reports]) if tokens else 1.0,
        "attended": sum(report.attended for report in reports) / len(reports),
        "compared": tokens,
    }


def _measured(rows: Sequence[Mapping[str, Cell]]) -> dict[str, float]:
    """Return what the thresholds judge; nothing where the judged row was not asked for."""
    full = next(row for row in rows if row["compressor"] == FULL)
    judged = [row for row in rows if (row["compressor"], row["keep"], row["recall"]) == JUDGED]
    measured = {"full_answers": float(full["answers"])}
    for row in judged:
        measured |= {name: float(row[name]) for name in ("mean_kl", "top1", "attended")}
        if full["answers"]:
            measured["answers_of_full"] = float(row["answers"]) / float(full["answers"])
    return measured


def _charts(rows: Sequence[Mapping[str, Cell]]) -> list[Chart]:
    """Return accuracy and KL against the share of tokens attended to: one line for each compressor and method, its budgets joined."""
    lines: dict[str, list[Mapping[str, Cell]]] = {}
    for row in rows[1:]:
        lines.setdefault(f"{row['compressor']} + {row['recall']}", []).append(row)

    def over(name: str) -> list[Line]:
        return [Line(label, sorted((float(row["attended"]), float(row[name])) for row in found)) for label, found in lines.items()]

    x = "share of tokens attended to"
    return [
        Chart("Exact answers", x, "share of questions", [Line(FULL, bound=float(rows[0]["answers"])), *over("answers")]),
        Chart("KL to the full cache", x, "mean KL, nats", over("mean_kl"), log_y=True),
    ]
