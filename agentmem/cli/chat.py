"""``agentmem chat``: a conversation whose session outlives the program and the server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentmem.cli import options
from agentmem.cli.output import print_json
from agentmem.cli.progress import PrefillProgress
from agentmem.errors import NotFound
from agentmem.events import FinishEvent, ProgressEvent, TokenEvent
from agentmem.types import Fidelity, Policy, SamplingParams

if TYPE_CHECKING:
    from agentmem_client import AgentMem, Session


def chat(
    message: Annotated[str | None, typer.Argument(help="Say this and leave; without it, a conversation.")] = None,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    session_id: Annotated[str | None, typer.Option("--session", help="Create or resume this session.")] = None,
    system: Annotated[str, typer.Option(help="System prompt of a new session.")] = "",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled reply repeatable.")] = None,
    fidelity: Annotated[Fidelity | None, typer.Option(help="What replies attend to; as the session's policy says where left out.")] = None,
    policy: options.PolicyTexts = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the last session's id is remembered.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Begin a new session.")] = False,
    json_output: options.Json = False,
) -> None:
    """Talk to the model. The session goes on at the next run, unless --new is given. Ctrl-C stops a reply, Ctrl-D leaves."""
    settings = options.settings_from(None, dict(os.environ), None, {"storage.state_dir": state_dir})
    memory = LastSession(settings.storage.state_dir / "chat.json", target)
    sampling = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)
    rules = options.policy(policy)
    with options.connect(target, token) as client:
        session = open_session(client, session_id, system, None if new else memory.read(), rules)
        memory.write(session.id)
        for line in [message] if message is not None else lines():
            reply(session, line, sampling, fidelity, json_output=json_output)


class LastSession:
    """Which session the last run used, for each server, in one JSON file."""

    def __init__(self, path: Path, target: str) -> None:
        self._path = path
        self._target = target

    def _all(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there yet, or damaged: a new session begins
            return {}

    def read(self) -> str | None:
        """Return the session's id; None where there is none."""
        return self._all().get(self._target)

    def write(self, session_id: str) -> None:
        """Remember ``session_id``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temp = self._path.with_suffix(".tmp")
        temp.write_text(json.dumps(self._all() | {self._target: session_id}), encoding="utf-8")
        temp.replace(self._path)


def open_session(client: AgentMem, session_id: str | None, system: str, last: str | None, policy: Policy) -> Session:
    """Return the session asked for, else the last one where the server still has it, else a new one."""
    if session_id is None and last is not None:
        try:
            session = client.attach(last)
            info = session.info()
            typer.echo(f"resuming {last}: {info.n_turns} turns, {info.n_tokens} tokens (--new begins another)", err=True)
            return session
        except NotFound:
            typer.echo(f"the last session, {last}, is gone; a new one begins", err=True)
    session = client.session(session_id, system=system, policy=policy, labels={"made-by": "agentmem-chat"})
    session.open()
    return session


def lines() -> Iterator[str]:
    """Yield what is typed, or piped in, until it ends; empty lines are left out."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


def reply(session: Session, content: str, sampling: SamplingParams, fidelity: Fidelity | None, *, json_output: bool) -> None:
    """Print the reply as it comes and what it cost; Ctrl-C stops it and keeps what was said."""
    progress = PrefillProgress()
    try:
        for event in session.generate(content, sampling, fidelity=fidelity):
            if isinstance(event, ProgressEvent) and not json_output:
                progress.show(event)
            elif isinstance(event, TokenEvent):
                progress.stop()
                if not json_output:
                    typer.echo(event.text, nl=False)
            elif isinstance(event, FinishEvent):
                finish(session.id, event, json_output=json_output)
    except KeyboardInterrupt:
        typer.echo("\n(stopped)", err=True)
    finally:
        progress.stop()


def finish(session_id: str, event: FinishEvent, *, json_output: bool) -> None:
    """Print how a reply ended: one JSON object, or one line on stderr."""
    usage, reuse = event.usage, event.reuse
    if json_output:
        print_json({"session_id": session_id, **asdict(event)})
        return
    typer.echo("")
    seconds = max(usage.total_seconds - usage.first_token_seconds, 1e-9)
    rate = f", {(usage.output_tokens - 1) / seconds:.1f} tokens/s" if usage.output_tokens > 1 else ""
    typer.secho(
        f"[{usage.output_tokens} tokens, first after {usage.first_token_seconds:.2f} s{rate}; context {usage.context_tokens}: "
        f"{reuse.device + reuse.host} from memory, {reuse.disk + reuse.peer} from disk, {reuse.computed} computed; "
        f"fidelity {event.fidelity}{'' if usage.attended == 1 else f', attended to {usage.attended:.0%}'}"
        f"{'' if event.durable else '; not durable yet: ' + event.detail}]",
        err=True,
        dim=True,
    )
