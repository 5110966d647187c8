"""``bench constrained``: calls under grammars, each held against its schema by another implementation, and what the grammars cost."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agentmem.bench.machine import this_machine
from agentmem.bench.options import Options, Say
from agentmem.bench.random_schemas import random_schema
from agentmem.bench.report import Cell, Column, Report
from agentmem.bench.server import ServerProcess, connected
from agentmem.bench.tool_schemas import TOOLS, AskedTool
from agentmem.errors import AgentMemError, InvalidInput
from agentmem.events import FinishEvent
from agentmem.output import OutputSpec, ToolChoice, ToolMode
from agentmem.types import Policy, SamplingParams, ToolSpec
from agentmem.views import ServerStats
from agentmem_client import AsyncAgentMem, AsyncSession

RANDOM, REAL, ALL = "random", "real tools", "all"
FORCED = Policy(drafter="forced")  # so that what was drafted is what grammars left no choice about
AHEAD = 4  # times as many sessions as reply at once have their prompts read before, so that steps are replies' alone
SHOWN = 5  # invalid calls that the notes quote

Validator = Callable[[dict[str, Any], object], str]
"""Takes a schema and arguments; returns what is wrong with them, "" for nothing."""

COLUMNS = (
    Column("group", "tools"),
    Column("calls", "calls"),
    Column("valid", "valid"),
    Column("partial", "partial"),
    Column("tokens", "tokens"),
    Column("forced", "forced", ".0%"),
    Column("overhead", "grammar, % of steps", ".2f"),
)
CAPTION = (
    "Calls of a named tool over gRPC, {sessions} sessions at once, temperature 1.0, up to {max_tokens} tokens; arguments are checked with"
    " the package jsonschema, a call that has no end counts as invalid. forced: share of the tokens that the grammar left no choice about."
    " Grammar: time of asking it and of masking logits, over the time of all steps with a reply under a grammar, as the server counts them."
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Calls of as many random tools, calls of each real tool, sessions at once, and a reply's most tokens."""

    schemas: int = 500
    calls_per_tool: int = 5
    sessions: int = 16
    max_tokens: int = 512
    tools: tuple[AskedTool, ...] = TOOLS

    def __post_init__(self) -> None:
        """Raise InvalidInput for sizes that measure nothing."""
        for name in ("schemas", "calls_per_tool", "sessions", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; allowed: from 1")


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one call. ``problem``: why it is invalid, "" if it is not."""

    tool: ToolSpec
    problem: str = ""
    partial: bool = False
    tokens: int = 0
    forced: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Calls, and the seconds of the steps that made them: of grammars alone, and of all."""

    name: str
    calls: list[Call]
    guided: float
    steps: float

    @property
    def num_valid(self) -> int:
        """Calls with arguments that match."""
        return sum(not call.problem for call in self.calls)

    @property
    def overhead(self) -> float:
        """Share of the steps' time that grammars took."""
        return self.guided / self.steps if self.steps else 0.0

    def row(self) -> dict[str, Cell]:
        """Return the table's row."""
        tokens = sum(call.tokens for call in self.calls)
        return {
            "group": self.name,
            "calls": len(self.calls),
            "valid": self.num_valid,
            "partial": sum(call.partial for call in self.calls),
            "tokens": tokens,
            "forced": sum(call.forced for call in self.calls) / max(1, tokens),
            "overhead": 100 * self.overhead,
            "guided_seconds": self.guided,
            "step_seconds": self.steps,
        }


async def run(options: Options, say: Say, sizes: Sizes | None = None) -> Report:
    """Measure on a server of its own. Raises AgentMemError when the service fails, InvalidInput without jsonschema."""
    sizes = sizes or Sizes()
    validator = load_validator()
    machine = this_machine(options)
    with tempfile.TemporaryDirectory(prefix="agentmem-bench-") as folder:
        async with ServerProcess(options.settings(), Path(folder)) as server, connected(server) as client:
            bench = _Bench(client, validator, sizes, say)
            groups = [
                await bench.group(RANDOM, [random_tool(seed) for seed in range(sizes.schemas)]),
                await bench.group(REAL, [tool for tool in sizes.tools for _ in range(sizes.calls_per_tool)]),
            ]
    total = Group(ALL, [call for g in groups for call in g.calls], sum(g.guided for g in groups), sum(g.steps for g in groups))
    return Report(
        name="constrained",
        title="Calls under grammars",
        caption=CAPTION.format(sessions=sizes.sessions, max_tokens=sizes.max_tokens),
        machine=machine,
        columns=COLUMNS,
        rows=[group.row() for group in (*groups, total)],
        measured={"valid_share": total.num_valid / len(total.calls), "guide_overhead": total.overhead},
        settings=asdict(options)
        | {"cache_dir": str(options.cache_dir), "schemas": sizes.schemas, "calls_per_tool": sizes.calls_per_tool}
        | {"sessions": sizes.sessions, "max_tokens": sizes.max_tokens, "tools": [tool.spec.name for tool in sizes.tools]},
        notes=_notes(total.calls),
    )


def random_tool(seed: int) -> AskedTool:
    """Return a tool with random arguments, the same for the same ``seed``."""
    name = f"tool_{seed}"
    schema = json.dumps(random_schema(seed), ensure_ascii=False)
    return AskedTool(ToolSpec(name, "Takes settings.", schema), f"Call {name} with any settings that it takes.")


def load_validator() -> Validator:
    """Return what holds arguments against a schema. Raises InvalidInput when the package jsonschema is missing."""
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise InvalidInput("bench constrained needs jsonschema: pip install 'agentmem-kv[bench]'") from error

    def validate(schema: dict[str, Any], arguments: object) -> str:
        problem = next(Draft202012Validator(schema).iter_errors(arguments), None)
        return f"{problem.json_path}: {problem.message}" if problem else ""

    return validate


def judged(tool: ToolSpec, finish: FinishEvent, validate: Validator) -> Call:
    """Return the call in a reply that had to call ``tool`` once."""
    calls = finish.message.tool_calls if finish.message else ()
    problem = "; ".join(finish.problems)
    if finish.partial:
        problem = f"ended by {finish.finish_reason} within the call"
    elif [call.name for call in calls] != [tool.name]:
        problem = problem or f"calls {[call.name for call in calls]}"
    elif not problem:
        try:
            problem = validate(json.loads(tool.parameters), json.loads(calls[0].arguments))
        except ValueError as error:
            problem = f"no JSON: {error}"
    return Call(tool, problem, finish.partial, finish.usage.output_tokens, finish.usage.accepted)


class _Bench:
    def __init__(self, client: AsyncAgentMem, validator: Validator, sizes: Sizes, say: Say) -> None:
        self._client = client
        self._validator = validator
        self._sizes = sizes
        self._say = say

    async def group(self, name: str, tools: Sequence[AskedTool]) -> Group:
        """Call every tool in a session of its own, seeded by its place."""
        before, calls = await self._client.stats(), list[Call]()
        width = AHEAD * self._sizes.sessions
        for first in range(0, len(tools), width):
            self._say(f"{name}: {first} of {len(tools)} calls")
            calls += await self._wave(tools[first : first + width], first)
        after = await self._client.stats()
        return Group(name, calls, *_seconds(before, after))

    async def _wave(self, tools: Sequence[AskedTool], first: int) -> list[Call]:
        """Let all sessions read their prompts, then reply, so many at once."""
        at_once = asyncio.Semaphore(self._sizes.sessions)
        async with AsyncExitStack() as stack:
            sessions = [self._client.session(tools=[tool.spec], policy=FORCED, delete_on_exit=True) for tool in tools]
            refused = await asyncio.gather(*(self._read(stack, *pair) for pair in zip(sessions, tools, strict=True)))

            async def call(index: int) -> Call:
                async with at_once:
                    return refused[index] or await self._call(sessions[index], tools[index].spec, first + index)

            return list(await asyncio.gather(*map(call, range(len(tools)))))

    async def _read(self, stack: AsyncExitStack, session: AsyncSession, tool: AskedTool) -> Call | None:
        try:
            await stack.enter_async_context(session)
            await session.append(tool.request)
        except InvalidInput as error:
            return Call(tool.spec, f"refused: {error}")
        return None

    async def _call(self, session: AsyncSession, tool: ToolSpec, seed: int) -> Call:
        sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=self._sizes.max_tokens)
        try:
            finish = await session.generate_text(None, sampling, output=OutputSpec(ToolChoice(ToolMode.NAMED, tool.name)))
        except AgentMemError as error:  # refused, or its grammar failed: no call either way
            return Call(tool, f"{type(error).__name__}: {error}")
        return judged(tool, finish, self._validator)


def _seconds(before: ServerStats, after: ServerStats) -> tuple[float, float]:
    return after.guided_seconds - before.guided_seconds, after.guided_step_seconds - before.guided_step_seconds


def _notes(calls: Sequence[Call]) -> list[str]:
    invalid = [call for call in calls if call.problem]
    notes = [f"invalid, {call.tool.name}: {call.problem[:200]}" for call in invalid[:SHOWN]]
    return notes + ([f"and {len(invalid) - SHOWN} more"] if len(invalid) > SHOWN else [])
