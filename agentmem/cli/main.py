"""``agentmem``: the root command, and what happens to errors: one line on stderr, exit code 1. Wrong usage exits with 2."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from agentmem import __version__
from agentmem.cli import chat, doctor, options, recall, serve, session, settings, worker
from agentmem.cli.output import fail
from agentmem.errors import AgentMemError

PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}


class Commands(TyperGroup):
    """The root group: prints an AgentMemError of any command as one line."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 -- typer's own signature, of its vendored click
        """Run the command; an error that agentmem raises on purpose becomes exit code 1, without a traceback."""
        try:
            return super().invoke(ctx)
        except AgentMemError as error:
            fail(error)
            raise typer.Exit(1) from error


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, help="Persistent KV-cache memory for LLM agents.")
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("recall")(recall.recall)
app.command("doctor")(doctor.doctor)
app.add_typer(session.app, name="session")
app.add_typer(worker.app, name="worker")
app.add_typer(settings.app, name="config")


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Keep the options that come before any command."""


@app.command("demo")
def demo(
    model: Annotated[str, typer.Option(help="smollm2, a model directory, a .gguf file or a hub id.")] = "smollm2",
    json_output: options.Json = False,
) -> None:
    """Run a scripted agent against a real server that is killed in the middle, and compare with re-reading the history."""
    from agentmem.demo import run_demo

    raise typer.Exit(run_demo(model=model, json_output=json_output))


@app.command("bench", context_settings=PASS_ON, add_help_option=False)
def bench(ctx: typer.Context) -> None:
    """Measure the service on this machine; see ``agentmem bench --help``."""
    from agentmem.bench.cli import app as bench_app

    bench_app(args=ctx.args, prog_name="agentmem bench")


def main() -> None:
    """Run the command line; the entry point of the ``agentmem`` script."""
    app()
