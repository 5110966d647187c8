"""``agentmem bench NAME``: one command for each benchmark, all with the same options and exit codes.

Exit codes: 0, 1 when ``--check`` finds a threshold missed, 2 when the benchmark could not run.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from agentmem.bench.options import Options
from agentmem.errors import AgentMemError

# A benchmark is a module of this package with ``async run(options, say) -> Report``, its line here, and its thresholds.
BENCHMARKS = {
    "equality": "Greedy tokens through batching, fork, rollback, spilling and SIGKILL, against HF generate (fp32).",
    "restart": "Time to first token after SIGKILL: restored from disk against recomputed.",
    "throughput": "Tokens a second of 1, 4 and 16 concurrent sessions.",
    "decode": "Prefill and decode speed at 512, 2,048 and 6,000 tokens of context, beside HF generate.",
}

app = typer.Typer(help="Measure the service on this machine.", no_args_is_help=True)

Model = Annotated[str, typer.Option(help="smollm2, a model directory, a .gguf file or a hub id.")]
Dtype = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16. Equality is only promised in fp32.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads that torch may use, in the server and in HF; 0: its default.")]
Repeat = Annotated[int, typer.Option(min=1, help="How often to measure; tables show medians.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there as JSON.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 when a threshold is missed.")]


def _add_command(name: str, summary: str) -> None:
    exact = name == "equality"  # one pass decides, and other formats than fp32 do not promise it

    @app.command(name, help=summary)
    def command(
        model: Model = "smollm2",
        dtype: Dtype = "fp32" if exact else "auto",
        threads: Threads = 0,
        repeat: Repeat = 1 if exact else 3,
        json_file: Json = None,
        *,
        check: Check = False,
    ) -> None:
        raise typer.Exit(run_benchmark(name, Options(model, dtype, threads, repeat), json_file=json_file, check=check))


def run_benchmark(name: str, options: Options, *, json_file: Path | None, check: bool, console: Console | None = None) -> int:
    """Run benchmark ``name``, print its report, write ``json_file``; return the exit code. Progress goes to stderr."""
    from agentmem.bench.report import console_of, show

    console = console or console_of()
    errors = Console(stderr=True)
    try:
        _prepare(options, errors)
        with errors.status(f"{name}: starting") as status:
            module = importlib.import_module(f"agentmem.bench.{name}")
            report = asyncio.run(module.run(options, lambda line: status.update(f"{name}: {line}")))
        if json_file is not None:
            json_file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    except (AgentMemError, OSError) as error:
        errors.print(f"[bold red]agentmem bench {name}:[/] {error}", *getattr(error, "__notes__", ()), sep="\n", highlight=False)
        return 2
    show(report, console)
    return 1 if check and not report.passed else 0


def _prepare(options: Options, console: Console) -> None:
    """Convert the model where it has not been, with a progress bar, so that no measurement includes it."""
    from agentmem.bench.reference import prepare_model

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("model", total=1.0)
        prepare_model(options, lambda stage, fraction: bar.update(task, description=stage, completed=fraction))


for _name, _summary in BENCHMARKS.items():
    _add_command(_name, _summary)
