"""``agentmem bench NAME``: one command for each benchmark, all with the same options and exit codes.

Exit codes: 0, 1 when ``--check`` finds a threshold missed, 2 when the benchmark could not run.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from agentmem.bench.options import Options
from agentmem.errors import AgentMemError, InvalidInput
from agentmem.types import Prefill
from agentmem.units import parse_size

# A benchmark is a module of this package with ``async run(options, say, sizes) -> Report``, its line here, and its thresholds.
BENCHMARKS = {
    "equality": "Greedy tokens through batching, fork, rollback, sealing, spilling and SIGKILL, against HF generate (fp32).",
    "restart": "Time to first token after SIGKILL: restored from disk against recomputed.",
    "throughput": "Tokens a second of 1, 4 and 16 concurrent sessions.",
    "decode": "Prefill and decode speed beside HF generate; with --fidelity, time a token as the context grows.",
    "recall": "What compressed memory still knows: planted facts, KL and tokens attended, for every compressor and recall method.",
    "density": "Private memory of a session, EXACT and RECALL, and the sessions that fit in a budget.",
    "toolloop": "Recorded agents replayed: with each drafter, beside HF generate and other servers.",
    "constrained": "Calls under grammars: whether random and real schemas hold, and what the grammars cost.",
    "drift": "KL of each of 12 turns under RECALL, with the exact re-encode and without.",
}

app = typer.Typer(help="Measure the service on this machine.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="smollm2, a model directory, a .gguf file or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16. Equality is only promised in fp32.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads that torch may use, in the server and in HF; 0: its default.")]
Repeat = Annotated[int, typer.Option(min=1, help="How often to measure; tables show medians.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there as JSON.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 when a threshold is missed.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the numbers there; needs matplotlib.")]

Sizes = Callable[[Any], object]
"""Makes a benchmark's sizes from its module. May raise InvalidInput."""


def _add_command(name: str) -> None:
    @app.command(name, help=BENCHMARKS[name])
    def command(
        model: Model = "smollm2",
        dtype: Dtype = "auto",
        threads: Threads = 0,
        repeat: Repeat = 3,
        json_file: Json = None,
        *,
        check: Check = False,
    ) -> None:
        raise typer.Exit(run_benchmark(name, Options(model, dtype, threads, repeat), json_file=json_file, check=check))


@app.command("equality", help=BENCHMARKS["equality"])
def equality(
    model: Model = "smollm2",
    dtype: Dtype = "fp32",  # other formats do not promise it
    threads: Threads = 0,
    repeat: Repeat = 1,
    json_file: Json = None,
    *,
    speculate: Annotated[str, typer.Option(help="A drafter, auto, none, or all: each session has another.")] = "auto",
    check: Check = False,
) -> None:
    """Play the script and compare."""

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        return module.Sizes(drafters=module.drafters_of(speculate))

    raise typer.Exit(run_benchmark("equality", Options(model, dtype, threads, repeat), json_file=json_file, check=check, sizes=sizes))


for _name in ("restart", "throughput"):
    _add_command(_name)


@app.command("decode", help=BENCHMARKS["decode"])
def decode(
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    repeat: Repeat = 3,
    json_file: Json = None,
    *,
    fidelity: Annotated[str, typer.Option(help="recall or both: RECALL beside EXACT at growing contexts; exact: EXACT alone.")] = "",
    contexts: Annotated[str, typer.Option(help="Tokens of context, with --fidelity.")] = "2048,8192,16384,32768",
    drafter: Annotated[str, typer.Option(help="With --fidelity: time EXACT with its drafts too, e.g. compact.")] = "",
    plot: Plot = None,
    check: Check = False,
) -> None:
    """Measure beside HF, or with --fidelity the service alone."""
    options = Options(model, dtype, threads, repeat)
    if not fidelity:
        if plot is not None:
            raise typer.BadParameter("--plot draws time against context, which --fidelity measures")
        if drafter:
            raise typer.BadParameter("--drafter is timed beside EXACT alone, which --fidelity measures")
        raise typer.Exit(run_benchmark("decode", options, json_file=json_file, check=check, plot=plot))

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        return module.Sizes(contexts=_numbers("contexts", contexts, int), fidelities=module.fidelities_of(fidelity), drafter=drafter)

    code = run_benchmark("latency", options, json_file=json_file, check=check, plot=plot, sizes=sizes, command="decode")
    raise typer.Exit(code)


@app.command("recall", help=BENCHMARKS["recall"])
def recall(
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Contexts, each with other text and other facts.")] = 2,
    json_file: Json = None,
    *,
    context: Annotated[int, typer.Option(help="Tokens that are read before the questions.")] = 3000,
    only: Annotated[str, typer.Option(help="Compressors, with commas between them. Default: all there are.")] = "",
    methods: Annotated[str, typer.Option("--recall", help="Recall methods.")] = "none,lsh,pages,oracle",
    budgets: Annotated[str, typer.Option(help="Shares of sealed tokens that stay resident.")] = "0.1",
    recall_tokens: Annotated[int, typer.Option(help="Most tokens recalled for each KV head.")] = 256,
    prefill: Annotated[Prefill, typer.Option(help="What the questions see: the compressed view, or everything.")] = Prefill.VIEW,
    plot: Plot = None,
    check: Check = False,
) -> None:
    """Fill the table of compressors and recall methods."""

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        return module.Sizes(
            context=context,
            compressors=_names(only),
            methods=_names(methods),
            keeps=_numbers("budgets", budgets, float),
            recall_tokens=recall_tokens,
            prefill=prefill,
        )

    options = Options(model, dtype, threads, repeat)
    raise typer.Exit(run_benchmark("recall", options, json_file=json_file, check=check, plot=plot, sizes=sizes))


@app.command("density", help=BENCHMARKS["density"])
def density(
    model: Model = "smollm2",
    dtype: Dtype = "bf16",
    threads: Threads = 0,
    json_file: Json = None,
    *,
    context: Annotated[int, typer.Option(help="Tokens of a session.")] = 4000,
    budget: Annotated[str, typer.Option(help="Device memory that is filled with sessions.")] = "1GiB",
    check: Check = False,
) -> None:
    """Measure sessions of one length in one budget."""

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        return module.Sizes(context=context, budget=parse_size(budget))

    raise typer.Exit(run_benchmark("density", Options(model, dtype, threads, 1), json_file=json_file, check=check, sizes=sizes))


@app.command("drift", help=BENCHMARKS["drift"])
def drift(
    model: Model = "smollm2",
    dtype: Dtype = "fp32",
    threads: Threads = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Conversations, each with other text; KL is their mean.")] = 3,
    json_file: Json = None,
    *,
    plot: Plot = None,
    check: Check = False,
) -> None:
    """Measure turn by turn."""
    raise typer.Exit(run_benchmark("drift", Options(model, dtype, threads, repeat), json_file=json_file, check=check, plot=plot))


@app.command("toolloop", help=BENCHMARKS["toolloop"])
def toolloop(
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    json_file: Json = None,
    *,
    traces: Annotated[str, typer.Option(help="Traces, with commas between them. Default: all there are.")] = "",
    drafters: Annotated[str, typer.Option(help="Drafters to compare; none and auto are needed.")] = "none,forced,ngram,suffix,auto",
    turns: Annotated[int, typer.Option(min=0, help="Turns of each trace; 0: all.")] = 0,
    peer: Annotated[list[str] | None, typer.Option(metavar="NAME=URL", help="Another OpenAI-compatible server; may be repeated.")] = None,
    hf: Annotated[bool, typer.Option(help="Time HF generate too.")] = True,
    check: Check = False,
) -> None:
    """Replay the traces turn by turn."""

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        peers = tuple(map(module.Peer.parse, peer or ()))
        return module.Sizes(traces=_names(traces), drafters=_names(drafters), peers=peers, hf=hf, turns=turns)

    raise typer.Exit(run_benchmark("toolloop", Options(model, dtype, threads, 1), json_file=json_file, check=check, sizes=sizes))


@app.command("constrained", help=BENCHMARKS["constrained"])
def constrained(
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    threads: Threads = 0,
    json_file: Json = None,
    *,
    schemas: Annotated[int, typer.Option(min=1, help="Random tools, called once each, beside the real ones.")] = 500,
    check: Check = False,
) -> None:
    """Call random and real tools."""

    def sizes(module: Any) -> object:  # noqa: ANN401 - a module's own class
        return module.Sizes(schemas=schemas)

    raise typer.Exit(run_benchmark("constrained", Options(model, dtype, threads, 1), json_file=json_file, check=check, sizes=sizes))


def run_benchmark(
    name: str,
    options: Options,
    *,
    json_file: Path | None,
    check: bool,
    plot: Path | None = None,
    sizes: Sizes = lambda _module: None,
    console: Console | None = None,
    command: str = "",
) -> int:
    """Run module ``name``, print its report, write ``json_file`` and ``plot``; return the exit code. Progress goes to stderr.

    ``command``: what the user typed, where it is not the module's name.
    """
    from agentmem.bench.plot import check_plot, draw
    from agentmem.bench.report import console_of, show

    console = console or console_of()
    errors = Console(stderr=True)
    try:
        if plot is not None:
            check_plot(plot)
        module = importlib.import_module(f"agentmem.bench.{name}")
        chosen = sizes(module)
        _prepare(options, errors)
        with errors.status(f"{name}: starting") as status:
            report = asyncio.run(module.run(options, lambda line: status.update(f"{name}: {line}"), chosen))
        if json_file is not None:
            json_file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
        if plot is not None:
            draw(report.charts, plot)
    except (AgentMemError, OSError) as error:
        errors.print(f"[bold red]agentmem bench {command or name}:[/] {error}", *getattr(error, "__notes__", ()), sep="\n", highlight=False)
        return 2
    show(report, console)
    return 1 if check and not report.passed else 0


def _prepare(options: Options, console: Console) -> None:
    """Convert the model where it has not been, with a progress bar, so that no measurement includes it."""
    from agentmem.bench.reference import prepare_model

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("model", total=1.0)
        prepare_model(options, lambda stage, fraction: bar.update(task, description=stage, completed=fraction))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(name) for name in _names(text))
    except ValueError:
        raise InvalidInput(f"--{option} {text!r} is not a list of numbers with commas between them") from None
