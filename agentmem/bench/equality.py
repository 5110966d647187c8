"""``bench equality``: invariant 5. EXACT sessions speak as Hugging Face's ``generate`` does, token by token, whatever happens to them.

Several sessions with one system prompt talk in rounds, all at once, on a device too small to hold them; one is forked, one rolled
back, and the server is killed in the middle. With ``--speculate`` each drafts in another way. Some take every other turn under RECALL, with
so little recalled that it shows; some wait between turns until they are sealed, others go on at once. Then every EXACT reply is generated
again by HF from the same prompt ids.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TimedReply, greedy, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.reference import Reference
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.settle import settled
from agentmem.bench.texts import TextSource
from agentmem.errors import InternalError
from agentmem.speculation import AUTO, DRAFTERS, check_drafter
from agentmem.types import Fidelity, Policy, Turn
from agentmem_client import AsyncAgentMem, AsyncSession

COLUMNS = (
    Column("step", "step"),
    Column("replies", "replies"),
    Column("at_once", "at once"),
    Column("input", "tokens in"),
    Column("device", "from memory"),
    Column("disk", "from disk"),
    Column("computed", "computed"),
    Column("recall", "RECALL"),
    Column("accepted", "accepted drafts"),
    Column("compared", "compared with HF"),
    Column("mismatches", "different"),
)
CAPTION = (
    "Greedy replies of a served model, over gRPC, against HF generate (its own attention, full cache) on the same prompt ids. The device"
    " holds {resident_tokens} tokens of KV, so that idle sessions are spilled: what comes from disk before the restart is their proof."
    " at once: most replies that were decoding together. RECALL: replies that saw a compressed memory only; what came after was compared."
)

# Session number modulo 4: of four, one does neither, one each, one both.
SWITCHING = (0, 2)  # every other turn under RECALL
WAITING = (0, 1)  # for sealing, after each turn


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sessions, turns of each, and tokens: of the system prompt, of a message, of a reply, and of KV that the device holds."""

    sessions: int = 5
    turns: int = 5
    system_tokens: int = 320
    message_tokens: int = 160
    reply_tokens: int = 48
    resident_tokens: int = 2600
    recall_tokens: int = 16  # of a context of hundreds: what RECALL says differs, and must leave no trace in EXACT turns
    drafters: tuple[str, ...] = (AUTO,)  # of the sessions in turn


def drafters_of(name: str) -> tuple[str, ...]:
    """Return the drafters that ``--speculate name`` stands for: ``all`` for each there is. Raises InvalidInput for an unknown one."""
    if name == "all":
        return (AUTO, *(drafter for drafter in DRAFTERS if drafter != "none"))
    check_drafter(name)
    return (name,)


@dataclass(frozen=True, slots=True)
class Record:
    """One reply: in which step it came, its session and turn, the prompt's token ids as the ledger has them.

    ``after_recall``: the turn before it saw a compressed memory only.
    """

    step: str
    session: str
    turn: int
    prompt: tuple[int, ...]
    reply: TimedReply
    after_recall: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the reply is promised to equal HF's."""
        return self.reply.finish.fidelity is Fidelity.EXACT


@dataclass(slots=True)
class Play:
    """The script and what it recorded. ``ledgers`` holds the turns of each session as last acknowledged."""

    client: AsyncAgentMem
    text: TextSource
    sizes: Sizes
    sessions: dict[str, AsyncSession] = field(default_factory=dict)
    ledgers: dict[str, list[Turn]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    at_once: dict[str, int] = field(default_factory=dict)
    lost_turns: int = 0
    sealed_tokens: int = 0

    async def open(self) -> None:
        """Create the sessions, all with one system prompt."""
        system = "You answer briefly.\n\n" + self.text.text(self.sizes.system_tokens)
        for number in range(self.sizes.sessions):
            name = f"session-{number + 1}"
            drafter = self.sizes.drafters[number % len(self.sizes.drafters)]
            policy = Policy(Fidelity.EXACT, recall_tokens=self.sizes.recall_tokens, objective=0.0, drafter=drafter)
            self.sessions[name] = self.client.session(name, system=system, policy=policy)
            await self.sessions[name].open()

    async def speak(self, step: str, names: Sequence[str], *, recall: bool = False) -> None:
        """Let sessions ``names`` take a turn at once, each with its own text, longer from one to the next.

        ``recall``: those that switch take it under RECALL.
        """
        decoding: set[str] = set()

        async def one(number: int, name: str) -> tuple[str, TimedReply]:
            def note(tokens: int) -> None:
                if tokens < self.sizes.reply_tokens:
                    decoding.add(name)
                else:
                    decoding.discard(name)
                self.at_once[step] = max(self.at_once.get(step, 0), len(decoding))

            message = self.text.text(self.sizes.message_tokens + 16 * number)
            fidelity = Fidelity.RECALL if recall and name in self._chosen(SWITCHING) else Fidelity.EXACT
            sampling = greedy(self.sizes.reply_tokens)
            return name, await timed_reply(self.sessions[name], message, sampling, fidelity=fidelity, on_tokens=note)

        for name, reply in await asyncio.gather(*(one(number, name) for number, name in enumerate(names))):
            await self._record(step, name, reply)
        for name in self._chosen(WAITING).intersection(names):
            info, _ = await settled(self.sessions[name])
            self.sealed_tokens = max(self.sealed_tokens, info.sealed_tokens)

    def _chosen(self, remainders: tuple[int, ...]) -> set[str]:
        return {f"session-{number}" for number in range(1, self.sizes.sessions + 1) if number % 4 in remainders}

    async def _record(self, step: str, name: str, reply: TimedReply) -> None:
        turns = await self._turns(name)
        last = turns[-1]
        if last.reply_start is None or last.token_ids[last.reply_start :] != reply.tokens.token_ids:
            raise InternalError(f"{name}, turn {last.index}: the ledger's reply is not the one that was streamed")
        before = [token for turn in turns[:-1] for token in turn.token_ids]
        after_recall = turns[-2].fidelity is not Fidelity.EXACT
        self.records.append(Record(step, name, last.index, (*before, *last.token_ids[: last.reply_start]), reply, after_recall))
        self.ledgers[name] = turns

    async def _turns(self, name: str) -> list[Turn]:
        _, infos = await self.sessions[name].inspect(token_ids=True)
        return [info.turn for info in infos]

    async def fork(self, source: str, name: str) -> None:
        """Fork session ``source`` at its end."""
        self.sessions[name] = await self.sessions[source].fork(session_id=name)
        self.ledgers[name] = await self._turns(name)

    async def rollback(self, name: str) -> None:
        """Take back the last turn of session ``name``."""
        to_turn = self.ledgers[name][-1].index - 1
        await self.sessions[name].rollback(to_turn)
        self.ledgers[name] = await self._turns(name)

    async def check_ledgers(self) -> None:
        """Count the acknowledged turns that are gone or changed."""
        for name, before in self.ledgers.items():
            now = {turn.index: turn.token_ids for turn in await self._turns(name)}
            self.lost_turns += sum(now.get(turn.index) != turn.token_ids for turn in before)


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Play the script ``options.repeat`` times with new text, then compare. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    say("loading the model for HF generate")
    reference = Reference.load(options)
    text = reference.text()
    settings = options.settings() | {"memory.kv_bytes": sizes.resident_tokens * reference.kv_bytes_per_token}
    plays = []
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
            async with ServerProcess(settings, Path(folder)) as server, connected(server) as client:
                plays.append(Play(client, text, sizes))
                await _perform(plays[-1], server, say)
    records = [record for play in plays for record in play.records]
    differing, notes = _compare(records, reference, sizes, say)
    return Report(
        name="equality" if sizes.drafters == ("none",) else "equality with drafts",
        title="Tokens that differ from HF generate with a full cache",
        caption=CAPTION.format(**asdict(sizes)),
        machine=machine,
        columns=COLUMNS,
        rows=_rows(plays, records, differing),
        measured=_measured(plays, records, differing),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
        notes=notes,
    )


async def _perform(play: Play, server: ServerProcess, say: Say) -> None:
    """Play the script: a fork before the middle, a rollback after it, and SIGKILL where approximate K and V may not be exact again."""
    await play.open()
    middle = (play.sizes.turns + 1) // 2
    for turn in range(1, play.sizes.turns + 1):
        say(f"round {turn} of {play.sizes.turns}")
        await play.speak(f"{turn}: all at once", list(play.sessions), recall=turn % 2 == 0)
        if turn == middle - 1:
            await play.fork("session-1", "fork")
        if turn == middle:
            await play.rollback("session-2")
            await play.speak(f"{turn}: again after rollback", ["session-2"], recall=True)
            say("SIGKILL and restart")
            await server.kill()
            await server.start()
            await play.check_ledgers()


def _compare(records: Sequence[Record], reference: Reference, sizes: Sizes, say: Say) -> tuple[dict[int, int], list[str]]:
    """Return differing tokens by number of an EXACT record, and a line about the first of each reply that differs."""
    differing, notes = {}, []
    exact = [(number, record) for number, record in enumerate(records) if record.is_exact]
    for count, (number, record) in enumerate(exact):
        say(f"HF generate, reply {count + 1} of {len(exact)}")
        expected = reference.generate(record.prompt, sizes.reply_tokens).token_ids
        actual = record.reply.tokens.token_ids
        wrong = [i for i in range(max(len(expected), len(actual))) if expected[i : i + 1] != actual[i : i + 1]]
        differing[number] = len(wrong)
        if wrong:
            margin = reference.margin((*record.prompt, *expected[: wrong[0]]))
            where = f"{record.session}, turn {record.turn}, token {wrong[0]} of the reply"
            notes.append(
                f"{where}: {actual[wrong[0] : wrong[0] + 1]} instead of {expected[wrong[0] : wrong[0] + 1]}, top-2 margin {margin:.2g}"
            )
    return differing, notes


def _rows(plays: Sequence[Play], records: Sequence[Record], differing: dict[int, int]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for step in plays[0].at_once:
        numbers = [number for number, record in enumerate(records) if record.step == step]
        finished = [records[number].reply.finish for number in numbers]
        rows.append(
            {
                "step": step,
                "replies": len(numbers),
                "at_once": max(play.at_once[step] for play in plays),
                "input": sum(finish.usage.input_tokens for finish in finished),
                "device": sum(finish.reuse.device for finish in finished),
                "disk": sum(finish.reuse.disk for finish in finished),
                "computed": sum(finish.reuse.computed for finish in finished),
                "recall": sum(not records[number].is_exact for number in numbers),
                "accepted": sum(finish.usage.accepted for finish in finished),
                "compared": _tokens(records[number] for number in numbers if records[number].is_exact),
                "mismatches": sum(differing.get(number, 0) for number in numbers),
            }
        )
    return rows


def _measured(plays: Sequence[Play], records: Sequence[Record], differing: dict[int, int]) -> dict[str, float]:
    middle = (plays[0].sizes.turns + 1) // 2
    before = [record.reply.finish.reuse for record in records if int(record.step.partition(":")[0]) <= middle]
    after = [record.reply.finish.reuse for record in records if int(record.step.partition(":")[0]) == middle + 1]
    fork = next(record.reply.finish.reuse for record in records if record.session == "fork")
    return {
        "mismatching_tokens": sum(differing.values()),
        "lost_turns": sum(play.lost_turns for play in plays),
        "compared_tokens": _tokens(record for record in records if record.is_exact),
        "replies_at_once": max(most for play in plays for most in play.at_once.values()),
        "spilled_tokens": sum(reuse.disk for reuse in before),
        "restored_tokens": sum(reuse.disk for reuse in after),
        "forked_tokens": fork.device + fork.disk,
        "approximate_tokens": _tokens(record for record in records if record.reply.finish.usage.attended < 1),
        "exact_after_recall": _tokens(record for record in records if record.is_exact and record.after_recall),
        "sealed_tokens": max(play.sealed_tokens for play in plays),
        "accepted_tokens": sum(record.reply.finish.usage.accepted for record in records if record.is_exact),
    }


def _tokens(records: Iterable[Record]) -> int:
    return sum(len(record.reply.tokens.token_ids) for record in records)
