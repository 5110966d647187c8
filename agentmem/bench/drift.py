"""``bench drift``: whether errors grow from turn to turn under RECALL, with the exact re-encode of every reply and without.

Both conversations are judged alike, after the fact: what each step predicted, against one forward of Hugging Face's model over the whole
transcript. It runs in this process, because only the engine knows what a step predicted.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass

from torch import Tensor

from agentmem.app import Core, build_core, load_handle
from agentmem.bench.machine import this_machine
from agentmem.bench.options import Options, Say
from agentmem.bench.plot import Chart, Line
from agentmem.bench.reference import Reference, load_text
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.texts import TextSource
from agentmem.config import load_settings
from agentmem.errors import InvalidInput
from agentmem.output import FREE
from agentmem.types import Fidelity, Policy, RequestId, SamplingParams, SessionFormat, TenantId, TurnInput
from agentmem.views import SessionSpec

TENANT = TenantId("bench")
NAMES = {True: "re-encoded", False: "not re-encoded"}
CLOSE_SECONDS = 5.0
BEFORE, AFTER = 2, 12  # the turns whose KL the threshold compares

COLUMNS = (
    Column("turn", "turn"),
    Column("tokens", "compared"),
    Column("kl_on", "re-encoded: mean KL", ".4f"),
    Column("reported", "as reported", ".4f"),
    Column("kl_off", "not re-encoded: mean KL", ".4f"),
    Column("ratio", "off over on", ".1f"),
)
CAPTION = (
    "{context} tokens of context, then {turns} turns of {input_tokens} tokens of input and {reply_tokens} sampled tokens (temperature"
    " {temperature}) under RECALL of up to {recall_tokens} tokens, the same text and seeds with re-encode and without. KL(exact || decoded)"
    " in nats: exact is one forward of HF's model over the whole transcript, in {dtype}; as reported: the service's own fidelity report."
    " Means over {repeat} conversations."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Turns, and tokens of the context, of a turn's input, of its reply and of recall."""

    turns: int = AFTER
    context: int = 2000
    input_tokens: int = 40
    reply_tokens: int = 48
    recall_tokens: int = 256
    temperature: float = 0.7

    def __post_init__(self) -> None:
        """Raise InvalidInput where there is nothing to compare."""
        if self.turns < BEFORE:
            raise InvalidInput(f"turns is {self.turns}; allowed are {BEFORE} or more")


@dataclass(frozen=True, slots=True)
class Spoken:
    """One turn: the distributions its steps predicted, by the position of the token fed, and the KL that its report states."""

    decoded: Mapping[int, Tensor]
    reported: float


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole transcript and its turns."""

    token_ids: tuple[int, ...]
    turns: tuple[Spoken, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What is said, the same in both conversations: a context and the input of each turn."""

    context: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]

    @classmethod
    def next(cls, text: TextSource, sizes: Sizes) -> Script:
        """Take the next passages of ``text``."""
        return cls(tuple(text.token_ids(sizes.context)), tuple(tuple(text.token_ids(sizes.input_tokens)) for _ in range(sizes.turns)))


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Hold the conversations, then judge them. Raises AgentMemError when the service fails."""
    sizes = sizes or Sizes()
    machine = this_machine(options)
    text = load_text(options)
    spoken = await _converse(options, [Script.next(text, sizes) for _ in range(options.repeat)], sizes, say)
    say("loading the model for HF")
    reference = await asyncio.to_thread(Reference.load, options)
    judged = {}
    for reencode, conversations in spoken.items():
        say(f"HF over the transcripts, {NAMES[reencode]}")
        judged[reencode] = [await asyncio.to_thread(_judge, reference, one) for one in conversations]
    rows = [_row(turn, spoken[True], judged) for turn in range(sizes.turns)]
    return Report(
        name="drift",
        title="KL to the full cache, turn by turn",
        caption=CAPTION.format(**asdict(sizes), repeat=options.repeat, dtype=machine.dtype),
        machine=machine,
        columns=COLUMNS,
        rows=rows,
        measured=_measured(rows),
        settings=asdict(options) | asdict(sizes) | {"cache_dir": str(options.cache_dir)},
        charts=[_chart(rows)],
    )


async def _converse(options: Options, scripts: Sequence[Script], sizes: Sizes, say: Say) -> dict[bool, list[Conversation]]:
    """Hold each conversation twice, with re-encode and without, one after the other."""
    spoken: dict[bool, list[Conversation]] = {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        settings = load_settings(None, {}, options.settings() | {"storage.state_dir": folder})
        core = build_core(settings, await asyncio.to_thread(load_handle, settings))
        try:
            for number, script in enumerate(scripts):
                for reencode, found in spoken.items():
                    say(f"conversation {number + 1} of {len(scripts)}, {NAMES[reencode]}")
                    found.append(await _talk(core, f"{number}-{reencode}", script, sizes, reencode=reencode))
        finally:
            await core.close(CLOSE_SECONDS)
    return spoken


async def _talk(core: Core, name: str, script: Script, sizes: Sizes, *, reencode: bool) -> Conversation:
    """Hold one conversation; between its turns, wait until all background work on the session is done."""
    policy = Policy(Fidelity.RECALL, recall_tokens=sizes.recall_tokens, reencode=reencode, objective=0.0)
    await core.manager.create(TENANT, SessionSpec(name, SessionFormat.RAW, policy=policy))
    await core.manager.append(TENANT, name, TurnInput(token_ids=script.context), request_id=None)
    await core.manager.seal(TENANT, name)
    decoded = []
    for number, given in enumerate(script.inputs):
        decoded.append(await _reply(core, name, given, sizes, number))
        await core.manager.seal(TENANT, name)
    session = await core.manager.table.open(TENANT, name)
    reports = [turn.report for turn in session.turns[-sizes.turns :]]
    turns = zip(decoded, reports, strict=True)
    return Conversation(tuple(session.chain.tokens), tuple(Spoken(one, report.mean_kl if report else 0.0) for one, report in turns))


async def _reply(core: Core, name: str, given: tuple[int, ...], sizes: Sizes, number: int) -> dict[int, Tensor]:
    """Generate turn ``number`` and return what its steps predicted. Raises InvalidInput where all of them saw everything."""
    request = RequestId(f"turn-{number}")
    sampling = SamplingParams(sizes.temperature, seed=number, max_tokens=sizes.reply_tokens, ignore_eos=True)
    events = core.manager.generate(
        TENANT, name, TurnInput(token_ids=given), sampling, request_id=request, resume_after=0, deadline=None, fidelity=None, output=FREE
    )
    async with aclosing(events):
        async for _ in events:
            pass
    session = await core.manager.table.open(TENANT, name)
    decoded = dict(session.replies[request].run.decoded)
    if not decoded:
        raise InvalidInput("no step saw a compressed memory: the context is too short for anything to be sealed")
    return decoded


def _judge(reference: Reference, conversation: Conversation) -> list[float]:
    """Return the mean KL(exact || decoded) of each turn, in nats."""
    positions = sorted({position for turn in conversation.turns for position in turn.decoded})
    exact = dict(zip(positions, reference.log_probabilities(conversation.token_ids, positions), strict=True))
    return [statistics.fmean(kl(exact[position], decoded) for position, decoded in turn.decoded.items()) for turn in conversation.turns]


def kl(exact: Tensor, decoded: Tensor) -> float:
    """Return KL(exact || decoded) in nats of two log distributions ``[vocab]``, any float dtype."""
    p = exact.double()
    return float((p.exp() * (p - decoded.double())).sum())


def _row(turn: int, spoken: Sequence[Conversation], judged: Mapping[bool, Sequence[Sequence[float]]]) -> dict[str, Cell]:
    """Return the row of turn ``turn``, from 0; ``spoken`` are the conversations with re-encode."""
    on, off = (statistics.fmean(conversation[turn] for conversation in judged[reencode]) for reencode in (True, False))
    return {
        "turn": turn + 1,
        "tokens": sum(len(conversation.turns[turn].decoded) for conversation in spoken),
        "kl_on": on,
        "reported": statistics.fmean(conversation.turns[turn].reported for conversation in spoken),
        "kl_off": off,
        "ratio": off / on,
    }


def _measured(rows: Sequence[Mapping[str, Cell]]) -> dict[str, float]:
    """Return the growth from turn 2 to the last; nothing for a shorter conversation than the threshold is about."""
    if len(rows) < AFTER:
        return {}
    first, last = rows[BEFORE - 1], rows[-1]
    return {"growth": float(last["kl_on"]) / float(first["kl_on"]), "growth_without": float(last["kl_off"]) / float(first["kl_off"])}


def _chart(rows: Sequence[Mapping[str, Cell]]) -> Chart:
    lines = [Line(NAMES[on], [(float(row["turn"]), float(row[key])) for row in rows]) for on, key in ((True, "kl_on"), (False, "kl_off"))]
    return Chart("KL to the full cache", "turn", "mean KL, nats", lines)
