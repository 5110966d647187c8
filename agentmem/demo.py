"""``agentmem demo``: a scripted agent on a real server that is killed in the middle, beside HF generate re-reading the history.

Two sessions share a system prompt and read files of Python's standard library; one is forked; SIGKILL comes while a reply is
streaming; a new server on the same state directory goes on. What can be checked from outside is checked.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from agentmem.bench.machine import this_machine
from agentmem.bench.options import Options
from agentmem.bench.report import console_of
from agentmem.errors import AgentMemError

if TYPE_CHECKING:
    from agentmem.bench.measure import TimedReply
    from agentmem.bench.reference import Reference
    from agentmem.bench.server import ServerProcess
    from agentmem_client import AsyncAgentMem, AsyncSession

INTRO = (
    "[bold]agentmem demo[/]: two agents read Python's standard library on a local server, one is forked, the server is killed"
    " with SIGKILL in the middle of a reply and started again. Beside each turn: what it costs when HF generate re-reads the whole history."
)
SYSTEM = "You are a careful reviewer of Python code. Answer in short sentences. This is the style that the team asks for:\n\n"
BLOCK_TOKENS = 64  # the last, incomplete block of a session is not on disk
KILL_AFTER = 4  # tokens


@dataclass(frozen=True, slots=True)
class Sizes:
    """Characters of the files that are read, and tokens of a reply and of the one that is killed."""

    style_characters: int = 2400
    file_characters: int = 3000
    reply_tokens: int = 32
    killed_reply_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One turn: tokens, where they came from, seconds, and the same turn by HF. ``tokens_per_second`` 0: the server was killed."""

    agent: str
    event: str
    input_tokens: int
    from_memory: int
    from_disk: int
    computed: int
    first_token_s: float
    tokens_per_second: float
    hf_read_tokens: int
    hf_first_token_s: float
    hf_tokens_per_second: float
    same_tokens: bool


@dataclass(frozen=True, slots=True)
class Check:
    """An invariant that can be seen from outside, and whether it held."""

    says: str
    held: bool


@dataclass(slots=True)
class Story:
    """The script, its rows and checks. ``tell`` is called whenever there is something new to show."""

    server: ServerProcess
    client: AsyncAgentMem
    reference: Reference
    tell: Callable[[str], None]
    sizes: Sizes
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    replies: dict[str, TimedReply] = field(default_factory=dict)  # by request id
    sessions: dict[str, AsyncSession] = field(default_factory=dict)

    async def play(self) -> None:
        """Tell it from the beginning to the end. Raises AgentMemError when the service fails."""
        system = SYSTEM + excerpt("bisect", self.sizes.style_characters)
        for name in ("reviewer", "tester"):
            self.sessions[name] = self.client.session(name, system=system)
            await self.sessions[name].open()
        prelude = (await self.sessions["reviewer"].info()).n_tokens
        await self.turn("reviewer", self._first_message())
        text = excerpt("textwrap", self.sizes.file_characters)
        second = await self.turn("tester", f"Which cases should be tested first?\n\n{text}", "same system prompt")
        shared = second.finish.reuse.device
        self.check("the second session reads the shared system prompt from memory", 0 < prelude - prelude % BLOCK_TOKENS <= shared)
        await self.turn("reviewer", "Name one thing that you would change in it.")
        await self.fork()
        await self.killed_turn()
        for name in ("reviewer", "what-if"):
            reply = await self.turn(name, "And what would you leave exactly as it is?", "restored from disk")
            self.check(f"after SIGKILL {name} computes only its new tokens, the rest was read back", _restored(reply))
        await self.replay()
        self.check("every turn was durable when it was acknowledged", all(reply.finish.durable for reply in self.replies.values()))

    async def turn(self, name: str, message: str, event: str = "", *, kill: bool = False) -> TimedReply:
        """Take a turn in session ``name``, then let HF take the same turn on the same token ids."""
        from agentmem.bench.measure import greedy, timed_reply

        self.tell(f"{name}: the service replies")
        request_id = f"{name}-{len(self.rows)}"
        tokens = self.sizes.killed_reply_tokens if kill else self.sizes.reply_tokens
        on_tokens = self._killer() if kill else None
        reply = await timed_reply(self.sessions[name], message, greedy(tokens), request_id=request_id, on_tokens=on_tokens)
        self.replies[request_id] = reply
        self.tell(f"{name}: HF generate reads {reply.finish.usage.context_tokens} tokens again")
        prompt = await self._prompt(name)
        theirs = await asyncio.to_thread(self.reference.generate, prompt, tokens)
        reuse = reply.finish.reuse
        self.rows.append(
            Row(
                agent=name,
                event=event,
                input_tokens=reply.finish.usage.input_tokens,
                from_memory=reuse.device + reuse.host,
                from_disk=reuse.disk,
                computed=reuse.computed,
                first_token_s=reply.tokens.first_token_s,
                tokens_per_second=0.0 if kill else _rate(reply.tokens.seconds_per_token),
                hf_read_tokens=len(prompt),
                hf_first_token_s=theirs.first_token_s,
                hf_tokens_per_second=_rate(theirs.seconds_per_token),
                same_tokens=theirs.token_ids == reply.tokens.token_ids,
            )
        )
        return reply

    async def _prompt(self, name: str) -> list[int]:
        """Return what the last reply of session ``name`` was generated from, as the ledger has it."""
        _, infos = await self.sessions[name].inspect(messages=False, token_ids=True)
        *before, last = [info.turn for info in infos]
        return [token for turn in before for token in turn.token_ids] + list(last.token_ids[: last.reply_start])

    async def fork(self) -> None:
        """Fork the reviewer and let the fork go another way."""
        self.sessions["what-if"] = await self.sessions["reviewer"].fork(session_id="what-if")
        reply = await self.turn("what-if", "Suppose it had to be thread safe. What then?", "fork of reviewer")
        usage, reuse = reply.finish.usage, reply.finish.reuse
        self.check("the fork shares the history in memory and computes only its new tokens", reuse.computed <= usage.input_tokens + 1)

    async def killed_turn(self) -> None:
        """Take a turn during which the server dies and comes back; the client's stream goes on by itself."""
        before = {name: await self._ledger(name) for name in self.sessions}
        reply = await self.turn("tester", "Write the first test.", "SIGKILL while replying", kill=True)
        after = {name: await self._ledger(name) for name in self.sessions}
        whole = len(reply.tokens.token_ids) == self.sizes.killed_reply_tokens and len(after["tester"]) == len(before["tester"]) + 1
        self.check("the reply that SIGKILL interrupted went on to its end, and is one turn", whole)
        self.check("no acknowledged turn was lost or changed", all(after[name][: len(turns)] == turns for name, turns in before.items()))

    async def _ledger(self, name: str) -> list[tuple[int, ...]]:
        _, infos = await self.sessions[name].inspect(messages=False, token_ids=True)
        return [info.turn.token_ids for info in infos]

    def _killer(self) -> Callable[[int], None]:
        restarts: set[asyncio.Task[None]] = set()  # a task that nobody holds may be collected

        def on_tokens(count: int) -> None:
            if count >= KILL_AFTER and not restarts:
                self.server.kill_now()
                self.tell(f"SIGKILL after {count} tokens; starting the server again")
                restarts.add(asyncio.get_running_loop().create_task(self.server.start()))

        return on_tokens

    async def replay(self) -> None:
        """Ask again for a reply from before the kill, by its request id."""
        from agentmem.bench.measure import greedy, timed_reply

        self.tell("asking again for the first reply, by its request id")
        name, request_id = "reviewer", "reviewer-0"
        before = await self._ledger(name)
        sampling = greedy(self.sizes.reply_tokens)
        again = await timed_reply(self.sessions[name], self._first_message(), sampling, request_id=request_id)
        same = again.tokens.token_ids == self.replies[request_id].tokens.token_ids and before == await self._ledger(name)
        self.check("a request id from before the kill gives the same tokens again, and no new turn", same)

    def _first_message(self) -> str:
        return f"What does this module do?\n\n{excerpt('heapq', self.sizes.file_characters)}"

    def check(self, says: str, held: bool) -> None:
        """Note an invariant."""
        self.checks.append(Check(says, held))


def excerpt(module: str, characters: int) -> str:
    """Return the beginning of a standard library module's source, cut at a line's end."""
    from agentmem.bench.texts import source_of

    return source_of(module)[:characters].rpartition("\n")[0]


def _restored(reply: TimedReply) -> bool:
    """Whether a turn after a restart had its past read back: for this turn, or, where idle steps were faster, before it came."""
    reuse, usage = reply.finish.reuse, reply.finish.usage
    return reuse.disk + reuse.device > 0 and reuse.computed <= usage.input_tokens + BLOCK_TOKENS


def _rate(seconds: float) -> float:
    return 1 / seconds if seconds else 0.0


def table_of(rows: list[Row]) -> Table:
    """Return the turns as a table."""
    table = Table(title="Tokens of each turn, where they came from, and seconds to the first token", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("turn")
    for header in ("in", "memory", "disk", "computed", "first, s", "tokens/s", "HF reads", "first, s", "tokens/s", "same"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.agent}, {row.event}" if row.event else row.agent,
            *(f"{count:,}" for count in (row.input_tokens, row.from_memory, row.from_disk, row.computed)),
            f"{row.first_token_s:.2f}",
            f"{row.tokens_per_second:.0f}" if row.tokens_per_second else "killed",
            f"{row.hf_read_tokens:,}",
            f"{row.hf_first_token_s:.2f}",
            f"{row.hf_tokens_per_second:.0f}",
            "yes" if row.same_tokens else "no",
        )
    return table


async def _play(options: Options, sizes: Sizes, reference: Reference, tell: Callable[[Story, str], None]) -> Story:
    from agentmem.bench.server import ServerProcess, connected

    with tempfile.TemporaryDirectory(prefix="agentmem-demo-") as folder:
        async with ServerProcess(options.settings(), Path(folder)) as server, connected(server) as client:
            story = Story(server, client, reference, lambda line: tell(story, line), sizes)
            await story.play()
            if options.dtype == "fp32":  # other formats round differently from one kernel to the next
                story.check("every reply equals HF generate's, token by token", all(row.same_tokens for row in story.rows))
    return story


def run_demo(
    *, model: str = "smollm2", dtype: str = "fp32", threads: int = 0, json_output: bool = False, sizes: Sizes | None = None
) -> int:
    """Run the demo and print its table; return 0 when every check held, 1 when one did not or the service failed.

    In fp32, the default, the service must say what HF says, token by token. ``json_output`` prints JSON instead of the table;
    progress goes to stderr then.
    """
    console = console_of(stderr=json_output)
    console.print(INTRO, highlight=False)
    began = time.monotonic()
    options = Options(model=model, dtype=dtype, threads=threads)
    try:
        reference = _load(options, console)
        with Live(Text("starting the server"), console=console, transient=True) as live:
            tell = _teller(live)
            story = asyncio.run(_play(options, sizes or Sizes(), reference, tell))
    except (AgentMemError, OSError) as error:
        console.print(f"[bold red]agentmem demo:[/] {error}", *getattr(error, "__notes__", ()), sep="\n", highlight=False)
        return 1
    passed = all(check.held for check in story.checks)
    if json_output:
        turns, checks = [asdict(row) for row in story.rows], [asdict(check) for check in story.checks]
        value = {"machine": asdict(this_machine(options)), "turns": turns, "checks": checks, "passed": passed}
        print(json.dumps(value, indent=2))  # noqa: T201 -- not for people: no wrapping, no colours
    else:
        _show(story, console, time.monotonic() - began)
    return 0 if passed else 1


def _load(options: Options, console: Console) -> Reference:
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("loading torch and transformers", total=None)
        from agentmem.bench.reference import Reference

        return Reference.load(options, lambda stage, fraction: bar.update(task, description=stage, total=1.0, completed=fraction))


def _teller(live: Live) -> Callable[[Story, str], None]:
    return lambda story, line: live.update(Group(table_of(story.rows), Text(line)), refresh=True)


def _show(story: Story, console: Console, seconds: float) -> None:
    console.print(table_of(story.rows))
    for check in story.checks:
        word = "[green]  held[/]" if check.held else "[bold red]FAILED[/]"
        console.print(f"{word}  {check.says}", highlight=False)
    ours = sum(row.first_token_s for row in story.rows)
    theirs = sum(row.hf_first_token_s for row in story.rows)
    verdict = "All checks held" if all(check.held for check in story.checks) else "Something is broken"
    console.print(
        f"[bold]{verdict}.[/] Waiting for first tokens: {ours:.1f} s with agentmem, {theirs:.1f} s with HF re-reading every time."
        f" ({seconds:.0f} s in all)",
        highlight=False,
    )
