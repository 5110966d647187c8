"""Small versions of the benchmarks on the real model: what they do must be right, how fast they are is theirs to say."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from agentmem.bench import decode, density, drift, equality, latency, recall, restart, throughput
from agentmem.bench.options import Options
from agentmem.bench.report import Report, show
from agentmem.units import MIB


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
    """Every EXACT token equals HF's through batching, fork, rollback, RECALL, sealing, spilling and SIGKILL, all of which really happen."""
    sizes = equality.Sizes(
        sessions=2, turns=3, system_tokens=90, message_tokens=80, reply_tokens=6, resident_tokens=520, recall_tokens=4, drafters=("none",)
    )
    said: list[str] = []
    report = await equality.run(options, said.append, sizes)
    missed = {verdict.name for verdict in report.verdicts if not verdict.met}
    assert missed <= {"compared_tokens"}, report.measured  # the full size compares more
    assert ["1: all at once", "2: all at once", "2: again after rollback", "3: all at once"] == [row["step"] for row in report.rows]
    # Two sessions, then three with the fork; session-2 takes its second turn under RECALL, before its rollback and after it.
    assert ((2 + 2 + 0 + 3) * 6, 6) == (report.measured["compared_tokens"], report.measured["exact_after_recall"])
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


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_recall_fills_its_table(options: Options) -> None:
    """Each compressor meets each method, after the full cache; recall comes closer to it than none, and reads less than everything."""
    sizes = recall.Sizes(context=640, facts=2, turns=2, compressors=("keydiff",), methods=("none", "lsh"), recall_tokens=128)
    report = await recall.run(options, lambda _: None, sizes)
    full, none, lsh = report.rows
    assert [("full cache", ""), ("keydiff", "none"), ("keydiff", "lsh")] == [(row["compressor"], row["recall"]) for row in report.rows]
    assert (0.0, 1.0, 1.0) == (full["mean_kl"], full["top1"], full["attended"])
    assert 12 == none["compared"] == lsh["compared"]
    assert float(lsh["mean_kl"]) < float(none["mean_kl"])
    assert float(none["attended"]) < float(lsh["attended"]) < 1
    assert {"full_answers", "mean_kl", "top1", "attended"} <= set(report.measured)
    assert printable(report)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_latency_times_both_fidelities_as_the_context_grows(options: Options) -> None:
    """There is a row for each length, with both times; RECALL keeps and reads a part only."""
    report = await latency.run(options, lambda _: None, latency.Sizes(contexts=(256, 512), reply_tokens=6))
    assert [256, 512] == [row["context"] for row in report.rows]
    for row in report.rows:
        assert min(float(row["exact_ms"]), float(row["recall_ms"])) > 0
        assert 0 < float(row["resident"]) < float(row["context"])
    assert {"exact_growth"} == set(report.measured)
    assert [] == list(report.notes)
    assert printable(report)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_density_fills_a_budget_with_both(options: Options) -> None:
    """Sessions really fit and answer, and RECALL's are smaller."""
    report = await density.run(options, lambda _: None, density.Sizes(context=448, budget=64 * MIB, most_sessions=4))
    exact, ours = report.rows
    assert (2, 2) <= (exact["fit"], exact["answered"])
    assert ours["fit"] == ours["answered"] == 4
    assert float(ours["private_mib"]) < float(exact["private_mib"])
    assert 0 == report.measured["silent_sessions"]
    assert printable(report)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_drift_is_judged_with_and_without_reencoding(options: Options) -> None:
    """Each turn has both KLs, and the one that the service reports is what the reference finds."""
    report = await drift.run(options, lambda _: None, drift.Sizes(turns=2, context=448, input_tokens=8, reply_tokens=8, recall_tokens=16))
    assert [1, 2] == [row["turn"] for row in report.rows]
    for row in report.rows:
        assert 7 == row["tokens"]  # the first follows the prompt, which sees everything
        assert 1e-3 < float(row["kl_on"]) == pytest.approx(float(row["reported"]), rel=0.05)
        assert float(row["kl_off"]) > 1e-3
    assert printable(report)
