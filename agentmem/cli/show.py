"""``agentmem session show``: a session's turns, where their K and V are, how exact they are, and where attention goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from agentmem.cli import options
from agentmem.cli.output import bar, print_json, print_table, session_json, snippet
from agentmem.types import FidelityReport
from agentmem.units import format_size
from agentmem.views import SessionInfo, TurnInfo

SHOWN_CHARACTERS = 60
PLACES = "turn", "tokens", "blocks on disk", "device", "host", "disk", "kept", "sealed", "reused", "computed", "finish", "last message"
REPORT = "turn", "fidelity", "attended", "same choice", "mean KL", "max KL", "worst at", "keep", "recall tokens", "compared with"


def show(
    session_id: options.SessionId,
    attention: Annotated[bool, typer.Option("--attention", help="Also measure where attention goes, turn by turn.")] = False,
    target: options.Target = options.DEFAULT_TARGET,
    token: options.Token = "",
    json_output: options.Json = False,
) -> None:
    """Show a session, its turns, where their K and V are, and how close their replies came to exact attention."""
    with options.connect(target, token) as client:
        info, turns = client.attach(session_id).inspect(token_ids=json_output, attention=attention)
    if json_output:
        print_json({**session_json(info), "turns": [asdict(turn) for turn in turns]})
        return
    _print_state(info)
    print_table(PLACES, map(_turn_row, turns))
    if any(turn.turn.report for turn in turns):
        print_table(REPORT, [_report_row(turn, report) for turn in turns if (report := turn.turn.report)])
    if attention:
        print_table(("turn", "attention", ""), _attention_rows(turns))


def _print_state(info: SessionInfo) -> None:
    record = info.record
    typer.echo(f"{record.id}: {info.n_turns} turns, {info.n_tokens} tokens, {info.device_tokens} of them on the device")
    typer.echo(f"sealed: {info.sealed_tokens} tokens, {info.resident_tokens} of them resident")
    asked, runs = record.policy.fidelity, info.fidelity
    words = [
        f"format {record.format}",
        f"fidelity {asked}" if asked == runs else f"fidelity {asked}, {runs} now",
        "durable" if info.durable else "not durable yet",
        *(() if info.exact else ("not all exact yet",)),
        *(name for name, on in (("open turn", info.open_turn), ("busy", info.busy), ("pinned", record.pinned)) if on),
    ]
    typer.echo(", ".join(words))
    if record.parent:
        typer.echo(f"forked from {record.parent} at turn {record.parent_turn}")


def _turn_row(info: TurnInfo) -> tuple[object, ...]:
    turn, reuse = info.turn, info.turn.reuse
    return (
        turn.index,
        info.n_tokens,
        f"{info.blocks_on_disk} of {info.n_blocks}",
        *map(format_size, (info.device_bytes, info.host_bytes, info.disk_bytes)),
        f"{info.kept:.0%}",
        info.sealed,
        reuse.device + reuse.host + reuse.disk + reuse.peer,
        reuse.computed,
        turn.finish_reason or turn.state,
        (f"({info.forgotten} forgotten) " if info.forgotten else "")
        + (snippet(turn.messages[-1].content, SHOWN_CHARACTERS) if turn.messages else ""),
    )


def _report_row(info: TurnInfo, report: FidelityReport) -> tuple[object, ...]:
    return (
        info.turn.index,
        info.turn.fidelity,
        f"{report.attended:.0%}",
        f"{report.top1_agreement:.1%} of {report.tokens}",
        f"{report.mean_kl:.4f}",
        f"{report.max_kl:.4f}",
        "-" if report.worst_position is None else report.worst_position,
        _budget(f"{report.keep:.0%}", f"{report.next_keep:.0%}"),
        _budget(str(report.recall_tokens), str(report.next_recall_tokens)),
        report.reference if report.reencoded else f"{report.reference}; not re-encoded",
    )


def _budget(now: str, later: str) -> str:
    return now if now == later else f"{now}, then {later}"


def _attention_rows(turns: Sequence[TurnInfo]) -> list[tuple[object, ...]]:
    shares = [turn.attention or 0.0 for turn in turns]
    most = max(shares, default=0.0)
    return [(turn.turn.index, f"{share:.1%}", bar(share, most)) for turn, share in zip(turns, shares, strict=True)]
