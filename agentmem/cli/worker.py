"""``agentmem worker``: a process that compresses and indexes what a server has sealed, and what there is to see of such processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentmem.cli import options
from agentmem.cli.output import ago, print_json, print_table
from agentmem.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from agentmem.stores.jobs import JobStore

app = typer.Typer(help="Run a worker process for a server with workers.executor=process, or look after workers and their jobs.")

StateDir = Annotated[Path | None, typer.Option(help="The server's storage.state_dir; as the settings say where left out.")]
DATABASE = "jobs.sqlite"  # as agentmem_workers.port has it, which loads torch
SHOWN = ("queued", "running", "done", "parked", "lost")


@app.callback(invoke_without_command=True)
def worker(
    ctx: typer.Context,
    config: options.Config = None,
    state_dir: StateDir = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that one job may use.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when no job waits.")] = False,
    idle_exit: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="End when no job came for so long.")] = None,
    json_output: options.Json = False,
) -> None:
    """Do seal jobs until SIGTERM or Ctrl-C; the one under way is finished first. Run as many as the machine has room for."""
    ctx.obj = state_dir or options.settings_from(config, dict(os.environ), None, {}).storage.state_dir
    if ctx.invoked_subcommand is not None:
        return
    from agentmem.telemetry import setup_logging
    from agentmem_workers.command import run_worker  # loads torch
    from agentmem_workers.worker import Worker

    def on_ready(ready: Worker) -> None:
        row = ready.row
        if json_output:
            print_json(asdict(row))
        else:
            typer.echo(f"worker {row.id} takes jobs from {database.parent} on {row.device}")

    database = _database(ctx.obj)
    setup_logging("info", "json" if json_output else "text", prompt_text=False)
    run_worker(database.parent, threads=threads, idle_exit=0.0 if once else idle_exit, on_ready=on_ready)


@app.command("ls")
def list_(ctx: typer.Context, state_dir: StateDir = None, json_output: options.Json = False) -> None:
    """List the workers, how many jobs are in which state, and the parked jobs with their last errors."""
    with _jobs(state_dir or ctx.obj) as store:
        workers, jobs = store.workers(), store.jobs()
    counts = Counter(str(job.state) for job in jobs)
    parked = [job for job in jobs if job.state == "parked"]
    if json_output:
        states = {state: counts[state] for state in SHOWN}
        print_json({"workers": [asdict(row) for row in workers], "jobs": states, "parked": [asdict(job) for job in parked]})
        return
    on = {job.worker: job.key for job in jobs if job.state == "running"}
    rows = [(row.id, row.pid, row.host, row.device, ago(row.started), ago(row.heartbeat), on.get(row.id, "-")) for row in workers]
    print_table(("worker", "pid", "host", "device", "started", "heard of", "job"), rows)
    typer.echo("jobs: " + ", ".join(f"{counts[state]} {state}" for state in SHOWN))
    if parked:
        print_table(
            ("parked job", "attempts", "since", "last error"), [(job.key, job.attempts, ago(job.changed), job.error) for job in parked]
        )


@app.command()
def retry(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A parked job as `worker ls` prints it, the start of its name, or `all`.")],
    state_dir: StateDir = None,
    json_output: options.Json = False,
) -> None:
    """Queue parked jobs anew, once what they failed of is out of the way."""
    with _jobs(state_dir or ctx.obj) as store:
        keys = [row.key for row in store.jobs() if row.state == "parked" and (job == "all" or row.key.startswith(job))]
        if not keys:
            raise NotFound(f"no parked job is called {job}")
        if job != "all" and len(keys) > 1:
            raise NotFound(f"{len(keys)} parked jobs are called {job}...; give more of the name, or all")
        count = sum(map(store.retry, keys))
    if json_output:
        print_json({"queued": keys[:count]})
    else:
        typer.echo(f"{count} queued again")


def _database(state_dir: Path) -> Path:
    """Return the file in which workers find their jobs. Raises ConfigError where there is none: looking must not make one."""
    database = state_dir / DATABASE
    if not database.is_file():
        raise ConfigError(f"no server has asked for workers in {state_dir}; one with workers.executor=process does")
    return database


@contextmanager
def _jobs(state_dir: Path) -> Iterator[JobStore]:
    from agentmem.stores.jobs import JobStore

    with closing(JobStore(_database(state_dir))) as store:
        yield store
