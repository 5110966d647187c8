"""Small versions of the benchmarks on the real model: what they do must be right, how fast they are is theirs to say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from agentmem.bench import decode, equality, restart, throughput
from agentmem.bench.options import Options
from agentmem.bench.report import Report, show


@pytest.fixture
def options(models: Path) -> Options:
    return Options("smollm2", "fp32", threads=1, repeat=1, cache_dir=models)


def printable(report: Report) -> bool:
    """Whether the report can be printed and written."""
    out = io.StringIO()
    show(report, Console(file=out, width=160))
    return report.title in out.getvalue() and bool(json.dumps(report.as_dict(), allow_nan=False))


@pytest.mark.timeout(120)
async def test_equality_holds_through_everything(options: Options) -> None:
    """Every token equals HF's through batching, fork, rollback, spilling and SIGKILL, all of which really happen."""
    sizes = equality.Sizes(sessions=2, turns=3, system_tokens=90, message_tokens=40, reply_tokens=6, resident_tokens=420)
    said: list[str] = []
    report = await equality.run(options, said.append, sizes)
    missed = {verdict.name for verdict in report.verdicts if not verdict.met}
    assert missed <= {"compared_tokens"}, report.measured  # the full size compares more
    assert ["1: all at once", "2: all at once", "2: again after rollback", "3: all at once"] == [row["step"] for row in report.rows]
    assert (2 + 3 + 1 + 3) * 6 == report.measured["compared_tokens"]
    assert "SIGKILL and restart" in said
    assert () == tuple(report.notes)
    assert printable(report)


async def test_a_restart_reads_from_disk_what_it_would_compute(options: Options) -> None:
    """The session's blocks come from disk on one side and are computed on the other."""
    report = await restart.run(options, lambda _: None, restart.Sizes(context_tokens=320, input_tokens=8, reply_tokens=2))
    restored, recomputed = report.rows
    assert (320, 8, 0, 328) == (restored["disk"], restored["computed"], recomputed["disk"], recomputed["computed"])
    assert {"ratio", "restored_share"} == set(report.measured)
    assert printable(report)


async def test_throughput_counts_every_session(options: Options) -> None:
    """There is a row for each number of sessions, the first being what the others are held against."""
    sizes = throughput.Sizes(sessions=(1, 2), context_tokens=70, input_tokens=4, reply_tokens=6)
    report = await throughput.run(options, lambda _: None, sizes)
    assert [1, 2] == [row["sessions"] for row in report.rows]
    assert {"speedup_at_2"} == set(report.measured)
    assert all(float(row["tokens_per_second"]) > 0 for row in report.rows)
    assert printable(report)


async def test_decode_measures_both_in_each_cell(options: Options) -> None:
    """There is a row for each context, with both speeds, and the worst cells decide."""
    report = await decode.run(options, lambda _: None, decode.Sizes(contexts=(40, 80), reply_tokens=4))
    assert [40, 80] == [row["context"] for row in report.rows]
    assert min(float(row["decode_speedup"]) for row in report.rows) == report.measured["slowest_decode"]
    assert min(float(row["prefill_speedup"]) for row in report.rows) == report.measured["slowest_prefill"]
    assert printable(report)
