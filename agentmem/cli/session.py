"""``agentmem session``: look after the sessions of a server. ``show`` has a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from agentmem.cli import options, show
from agentmem.cli.output import ago, print_json, print_table, session_json
from agentmem.errors import InvalidInput
from agentmem.units import format_size
from agentmem.views import ForgetTarget, SessionInfo

app = typer.Typer(no_args_is_help=True, help="Make, list, show, edit, fork, roll back, remove and move sessions.")

CHUNK_BYTES = 1 << 20


@app.command("ls")
def list_(
    labels: options.Labels = None,
    limit: Annotated[int, typer.Option(min=1, help="Most sessions to list.")] = 100,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """List sessions, the newest first."""
    with options.connect(target, token) as client, closing(client.list_sessions(options.pairs(labels))) as found:
        infos = [info for info, _ in zip(found, range(limit), strict=False)]
    if json_output:
        print_json([session_json(info) for info in infos])
        return
    print_table(("session", "turns", "tokens", "on device", "on disk", "changed", "expires", "labels"), map(_row, infos))


def _row(info: SessionInfo) -> tuple[object, ...]:
    record = info.record
    expires = ago(record.expires_at) if record.expires_at else "pinned" if record.pinned else "never"
    labels = ", ".join(f"{key}={value}" for key, value in sorted(record.labels.items()))
    sizes = format_size(info.device_bytes), format_size(info.disk_bytes)
    return record.id, info.n_turns, info.n_tokens, *sizes, ago(record.updated_at), expires, labels


@app.command()
def create(
    session_id: Annotated[str | None, typer.Argument(metavar="SESSION", help="Its id; made up where left out.")] = None,
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    policy: options.PolicyTexts = None,
    labels: options.Labels = None,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Make a session. One of that id and system prompt that exists already stays as it is."""
    rules = options.policy(policy)
    with options.connect(target, token) as client:
        info = client.session(session_id, system=system, policy=rules, labels=options.pairs(labels)).open()
    _print_session(info, json_output=json_output)


app.command("show")(show.show)


@app.command()
def fork(
    session_id: options.SessionId,
    at_turn: Annotated[int | None, typer.Option(help="Last turn to share; all turns that have ended where left out.")] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="Id of the fork.")] = None,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Make a session that shares another's history, and print its id."""
    with options.connect(target, token) as client:
        info = client.attach(session_id).fork(at_turn, session_id=new_id).info()
    _print_session(info, json_output=json_output)


@app.command()
def rollback(
    session_id: options.SessionId,
    to_turn: Annotated[int, typer.Option(help="Last turn to keep; 0 keeps the prelude only.")],
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Drop the turns after one, for good."""
    with options.connect(target, token) as client:
        info = client.attach(session_id).rollback(to_turn)
    _print_session(info, json_output=json_output)


@app.command()
def forget(
    session_id: options.SessionId,
    messages: Annotated[list[str], typer.Argument(metavar="TURN:MESSAGE...", help="Which messages of which turns, e.g. 3:1.")],
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Forget messages, for good: no later reply attends to them. `session show --json` tells them by turn, each counted from 0."""
    targets = list(map(_forget_target, messages))
    with options.connect(target, token) as client:
        info = client.attach(session_id).forget(targets)
    _print_session(info, json_output=json_output)


def _forget_target(text: str) -> ForgetTarget:
    turn, colon, message = text.partition(":")
    if not (colon and turn.isdecimal() and message.isdecimal()):
        raise InvalidInput(f"{text!r} is not TURN:MESSAGE, two numbers as in 3:1")
    return ForgetTarget(int(turn), int(message))


@app.command()
def rm(
    session_ids: Annotated[list[str], typer.Argument(metavar="SESSION...")],
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Delete sessions and everything that only they use, for good. Stops at the first that fails."""
    with options.connect(target, token) as client:
        for session_id in session_ids:
            report = client.attach(session_id).delete()
            if json_output:
                print_json({"id": session_id, **asdict(report)})
            else:
                erased = f"{report.blocks_erased} blocks ({format_size(report.bytes_erased)})"
                typer.echo(f"{session_id}: {report.turns} turns and {erased} removed, {report.blocks_shared} blocks kept for others")


@app.command()
def export(
    session_id: options.SessionId,
    file: Annotated[Path, typer.Argument(help="Where to write; - is stdout.")],
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Write a session to a file that `session import` takes, here or on another server."""
    with options.connect(target, token) as client:
        chunks = client.attach(session_id).export()
        if str(file) == "-":
            _copy(chunks, sys.stdout.buffer)
            return
        # Under another name until it is whole, so that no half session is taken for one.
        temp = file.with_name(file.name + ".part")
        try:
            with temp.open("wb") as out:
                n_bytes = _copy(chunks, out)
            temp.replace(file)
        except OSError as error:
            raise InvalidInput(f"{file} cannot be written: {error.strerror}") from error
        finally:
            temp.unlink(missing_ok=True)
    if json_output:
        print_json({"id": session_id, "file": str(file), "bytes": n_bytes})
    else:
        typer.echo(f"{session_id}: {format_size(n_bytes)} written to {file}")


def _copy(chunks: Iterable[bytes], out: BinaryIO) -> int:
    return sum(out.write(chunk) for chunk in chunks)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A file of `session export`; - is stdin.")],
    new_id: Annotated[str | None, typer.Option("--id", help="Id of the session; the exported one's where left out.")] = None,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Make a session from an exported file."""
    try:
        with sys.stdin.buffer if str(file) == "-" else file.open("rb") as source, options.connect(target, token) as client:
            info = client.import_session(_chunks(source), session_id=new_id).info()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from error
    _print_session(info, json_output=json_output)


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _print_session(info: SessionInfo, *, json_output: bool) -> None:
    if json_output:
        print_json(session_json(info))
    else:
        exact = "" if info.exact else "; not all of it exact until the server has been idle"
        typer.echo(f"{info.record.id}: {info.n_turns} turns, {info.n_tokens} tokens{exact}")
