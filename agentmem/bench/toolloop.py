"""``bench toolloop``: recorded agents replayed, with each drafter, beside HF ``generate`` and any other server.

What the user and the tools say is the record's; the replies are the model's own: a call of the tool that the recorded agent called,
constrained to its schema, or a text. So all variants read the same, and each turn is timed under every variant before the next begins.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agentmem.bench.machine import this_machine
from agentmem.bench.measure import TimedReply, timed_reply
from agentmem.bench.options import Options, Say
from agentmem.bench.peer import Peer, PeerReply
from agentmem.bench.reference import Reference
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.settle import settled
from agentmem.bench.traces import Trace, TraceTurn, load_traces
from agentmem.errors import InvalidInput
from agentmem.output import FREE, OutputSpec, ToolChoice, ToolMode
from agentmem.speculation import check_drafter
from agentmem.types import Fidelity, Message, Policy, SamplingParams, TurnInput
from agentmem_client import AsyncSession

NONE, AUTO, HF = "none", "auto", "HF generate"
CONTEXT = 4000  # tokens at which HF is timed

COLUMNS = (
    Column("trace", "trace"),
    Column("variant", "drafter"),
    Column("turns", "turns"),
    Column("tokens", "tokens"),
    Column("ttft_ms", "first token, ms", ",.0f"),
    Column("rate", "tokens/s", ".1f"),
    Column("speedup", "over none", ".2f"),
    Column("per_step", "tokens a step", ".2f"),
    Column("accepted", "accepted", ".2f"),
    Column("turn_s", "a turn, s", ".2f"),
)
CAPTION = (
    "Recorded agents (agentmem/bench/recorded) over gRPC, greedy; the replies are the model's own, calls constrained to the recorded tool."
    " One tenant a drafter. tokens/s: of the tokens after the first; accepted: share of drafted tokens; first token and turn"
    " (request to last token): medians. HF reads all of the history again, for the turn nearest to {context:,} tokens."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which traces (all: empty) and drafters; other servers to ask; ``hf``: time HF too."""

    traces: tuple[str, ...] = ()
    drafters: tuple[str, ...] = (NONE, "forced", "ngram", "suffix", AUTO)
    draft_tokens: int = 16
    peers: tuple[Peer, ...] = ()
    hf: bool = True
    turns: int = 0  # of each trace; 0: all

    def __post_init__(self) -> None:
        """Raise InvalidInput for an unknown drafter, and without the two that are compared."""
        for name in self.drafters:
            check_drafter(name)
        if not {NONE, AUTO} <= set(self.drafters):
            raise InvalidInput(f"--drafters are {', '.join(self.drafters)}; {NONE} and {AUTO} must be among them")


@dataclass(slots=True)
class Played:
    """One trace under every variant. ``replies`` by variant, a turn each; ``same``: turns in which all variants said the same."""

    trace: Trace
    replies: dict[str, list[TimedReply]] = field(default_factory=dict)
    peers: dict[str, list[PeerReply]] = field(default_factory=dict)
    hf: tuple[float, float, int] | None = None  # seconds of HF and of auto for one turn, and its context
    same: int = 0

    def rate(self, variant: str) -> tuple[int, float]:
        """Return the tokens after each reply's first, and the seconds that they took."""
        times = [reply.tokens for reply in self.replies[variant]]
        return sum(len(t.token_ids) - t.num_first for t in times), sum(t.last_token_s - t.first_token_s for t in times)


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Replay the traces. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    traces = [replace(t, turns=t.turns[: sizes.turns or None]) for t in load_traces(sizes.traces or None)]
    reference = Reference.load(options) if sizes.hf else None
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        keys = Path(folder) / "keys"
        keys.write_text("".join(f"{name}-key tenant-{name}\n" for name in sizes.drafters), encoding="utf-8")
        settings = options.settings() | {"server.api_keys": keys}
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(ServerProcess(settings, Path(folder) / "state"))
            clients = {name: await stack.enter_async_context(connected(server, f"{name}-key")) for name in sizes.drafters}
            played = []
            for trace in traces:
                sessions = {
                    name: client.session(system=trace.system, tools=trace.tools, policy=_policy(name, sizes), delete_on_exit=True)
                    for name, client in clients.items()
                }
                played.append(await _play(trace, sessions, sizes, reference, say))
    return Report(
        name="toolloop",
        title="Tool loops, replayed",
        caption=CAPTION.format(context=CONTEXT),
        machine=machine,
        columns=COLUMNS,
        rows=[*(row for one in played for row in _rows(one)), *_totals(played)],
        measured=_measured(played),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir), "per_turn": _per_turn(played)},
        notes=_notes(played),
    )


def _policy(drafter: str, sizes: Sizes) -> Policy:
    return Policy(Fidelity.EXACT, drafter=drafter, draft_tokens=sizes.draft_tokens)


async def _play(trace: Trace, sessions: dict[str, AsyncSession], sizes: Sizes, reference: Reference | None, say: Say) -> Played:
    """Take every turn under each variant, in turn; the background work of a reply ends before the next begins."""
    played = Played(trace, {name: [] for name in sessions}, {peer.name: [] for peer in sizes.peers})
    history: list[Message] = [Message("system", trace.system)]
    calls: dict[str, str] = dict.fromkeys(sessions, "")  # the call that each session waits for
    async with AsyncExitStack() as stack:
        for session in sessions.values():
            await stack.enter_async_context(session)
        for number, turn in enumerate(trace.turns, 1):
            for name, session in sessions.items():
                say(f"{trace.name}, turn {number} of {len(trace.turns)}, {name}")
                reply = await timed_reply(session, _given(turn, calls[name]), _sampling(turn), output=_output(turn))
                played.replies[name].append(reply)
                message = reply.finish.message
                calls[name] = message.tool_calls[0].id if message and message.tool_calls else ""
                await settled(session)
            history += turn.messages
            for peer in sizes.peers:
                played.peers[peer.name].append(await asyncio.to_thread(peer.reply, history, trace.tools, turn.tool, turn.tokens))
            history.append(turn.reply)
            played.same += len({replies[-1].tokens.token_ids for replies in played.replies.values()}) == 1
        if reference is not None:
            say(f"{trace.name}, HF generate")
            played.hf = await _hf(sessions[AUTO], played.replies[AUTO], reference)
    return played


def _given(turn: TraceTurn, call: str) -> TurnInput:
    """Return the turn's messages, a tool's result as the answer to the call that was really made."""
    messages = (replace(m, tool_call_id=call) if m.role == "tool" else m for m in turn.messages)
    return TurnInput(tuple(messages))


def _sampling(turn: TraceTurn) -> SamplingParams:
    return SamplingParams(max_tokens=turn.tokens)


def _output(turn: TraceTurn) -> OutputSpec:
    return OutputSpec(ToolChoice(ToolMode.NAMED, turn.tool)) if turn.tool else FREE


async def _hf(session: AsyncSession, replies: Sequence[TimedReply], reference: Reference) -> tuple[float, float, int]:
    """Time HF on the turn whose context is nearest to CONTEXT, for as many tokens; return its seconds, ours, and the context."""
    at = min(range(len(replies)), key=lambda n: abs(replies[n].finish.usage.context_tokens - CONTEXT))
    _, infos = await session.inspect(token_ids=True)
    turns = [info.turn for info in infos]
    last = turns[replies[at].finish.turn_index]
    prompt = [token for turn in turns[: last.index] for token in turn.token_ids] + list(last.token_ids[: last.reply_start])
    times = await asyncio.to_thread(reference.generate, prompt, len(replies[at].tokens.token_ids))
    return times.last_token_s, replies[at].tokens.last_token_s, len(prompt)


def _rows(played: Played) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for name, replies in played.replies.items():
        rows.append(_row(played.trace.name, name, len(replies), _cells([played], name)))
    for name, answers in played.peers.items():
        rows.append(_row(played.trace.name, name, len(answers), _peer_cells(answers)))
    if played.hf is not None:
        rows.append(_row(played.trace.name, HF, 1, {"turn_s": played.hf[0]}))
    return rows


def _totals(played: Sequence[Played]) -> list[dict[str, Cell]]:
    names = played[0].replies
    turns = sum(len(one.trace.turns) for one in played)
    return [_row("all", name, turns, _cells(played, name)) for name in names]


def _per_turn(played: Sequence[Played]) -> list[dict[str, Cell]]:
    """Return every reply by itself, for ``--json``: times in seconds."""
    turns: list[dict[str, Cell]] = []
    for one in played:
        for name, replies in one.replies.items():
            for number, reply in enumerate(replies, 1):
                times, usage = reply.tokens, reply.finish.usage
                cells: dict[str, Cell] = {
                    "trace": one.trace.name,
                    "variant": name,
                    "turn": number,
                    "context": usage.context_tokens,
                    "tokens": len(times.token_ids),
                    "steps": usage.steps,
                    "drafted": usage.drafted,
                    "accepted": usage.accepted,
                    "first_token_s": times.first_token_s,
                    "last_token_s": times.last_token_s,
                    "finish": reply.finish.finish_reason.value,
                }
                turns.append(cells)
    return turns


def _row(trace: str, variant: str, turns: int, cells: dict[str, Cell]) -> dict[str, Cell]:
    first: dict[str, Cell] = {"trace": trace, "variant": variant, "turns": turns}
    return first | cells


def _cells(played: Sequence[Played], name: str) -> dict[str, Cell]:
    replies = [reply for one in played for reply in one.replies[name]]
    usages = [reply.finish.usage for reply in replies]
    tokens = sum(len(reply.tokens.token_ids) for reply in replies)
    drafted = sum(usage.drafted for usage in usages)
    cells: dict[str, Cell] = {
        "tokens": tokens,
        "ttft_ms": 1000 * statistics.median(reply.tokens.first_token_s for reply in replies),
        "rate": _rate(played, name),
        "speedup": _rate(played, name) / _rate(played, NONE),
        "per_step": tokens / max(1, tokens - sum(usage.accepted for usage in usages)),
        "turn_s": statistics.median(reply.tokens.last_token_s for reply in replies),
    }
    return cells | ({"accepted": sum(usage.accepted for usage in usages) / drafted} if drafted else {})


def _peer_cells(answers: Sequence[PeerReply]) -> dict[str, Cell]:
    seconds = sum(answer.last_token_s - answer.first_token_s for answer in answers)
    return {
        "tokens": sum(answer.tokens for answer in answers),
        "ttft_ms": 1000 * statistics.median(answer.first_token_s for answer in answers),
        "rate": sum(max(0, answer.tokens - 1) for answer in answers) / max(seconds, 1e-9),
        "turn_s": statistics.median(answer.last_token_s for answer in answers),
    }


def _rate(played: Iterable[Played], name: str) -> float:
    parts = [one.rate(name) for one in played]
    return sum(tokens for tokens, _ in parts) / max(sum(seconds for _, seconds in parts), 1e-9)


def _measured(played: Sequence[Played]) -> dict[str, float]:
    """Return what the thresholds judge."""
    measured = {
        "speedup": _rate(played, AUTO) / _rate(played, NONE),
        "slowest_trace": min(_rate([one], AUTO) / _rate([one], NONE) for one in played),
    }
    ratios = [one.hf[0] / one.hf[1] for one in played if one.hf is not None]
    return measured | ({"hf_turn": statistics.median(ratios)} if ratios else {})


def _notes(played: Sequence[Played]) -> list[str]:
    turns, same = sum(len(one.trace.turns) for one in played), sum(one.same for one in played)
    notes = [f"In {same} of {turns} turns every drafter gave the same tokens (all of them is what fp32 promises, see bench equality)."]
    notes += [f"{one.trace.name}: HF {one.hf[0]:.2f} s, ours {one.hf[1]:.2f} s at {one.hf[2]:,} tokens" for one in played if one.hf]
    return notes
