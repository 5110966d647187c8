"""Whole benchmarks of compressed memory, with a tiny model and a server in this process: what they do, not what they find."""

from __future__ import annotations

import json

import pytest
from support.in_process import InProcess
from support.replica import save_replica_model

from agentmem.bench import density, drift, latency, recall
from agentmem.bench.options import Options
from agentmem.bench.report import Report
from agentmem.errors import InvalidInput
from agentmem.units import MIB


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("tiny")
    return Options(str(save_replica_model(folder / "model")), "fp32", 1, 1, folder / "cache")


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (recall, latency, density):
        monkeypatch.setattr(module, "ServerProcess", InProcess)


def sound(report: Report) -> bool:
    """Whether the report can be written: no number is missing in it."""
    return bool(json.dumps(report.as_dict(), allow_nan=False))


async def test_recall_asks_every_fork_the_same(options: Options) -> None:
    """Each row compares as many tokens; a context is sealed once for each compressor and budget, and nothing stays behind."""
    sizes = recall.Sizes(520, 2, 2, 4, ("keydiff", "streaming"), ("none", "lsh"), (0.1,), recall_tokens=64)
    said: list[str] = []
    report = await recall.run(options, said.append, sizes)
    full, *others = report.rows
    assert (recall.FULL, 0, 1.0) == (full["compressor"], full["compared"], full["attended"])
    assert [("keydiff", "none"), ("keydiff", "lsh"), ("streaming", "none"), ("streaming", "lsh")] == [
        (row["compressor"], row["recall"]) for row in others
    ]
    assert [8] * 4 == [row["compared"] for row in others]
    assert all(0 < float(row["attended"]) < 1 for row in others)
    assert 2 == sum(line.endswith("sealing") for line in said)
    assert sound(report)


async def test_recall_plants_before_it_starts_anything(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context too short for its facts is refused without a server."""
    monkeypatch.setattr(recall, "ServerProcess", None)
    with pytest.raises(InvalidInput, match="too short"):
        await recall.run(options, lambda _: None, recall.Sizes(context=100))


async def test_latency_goes_beyond_the_trained_length_and_says_so(options: Options) -> None:
    """The model was trained for 768 tokens; it is timed at 800 all the same, with a note and a remark in the row."""
    report = await latency.run(options, lambda _: None, latency.Sizes(contexts=(48, 800), reply_tokens=4))
    assert [(48, ""), (800, "beyond the trained length")] == [(row["context"], row["note"]) for row in report.rows]
    assert ["768" in note for note in report.notes] == [True]
    assert {"exact_growth", "recall_growth", "exact_over_recall"} == set(report.measured)
    assert 0 < float(report.rows[1]["resident"]) < 800
    assert sound(report)


async def test_latency_of_exact_alone_has_no_threshold(options: Options) -> None:
    """What is not measured is not judged, and RECALL's columns stay empty."""
    report = await latency.run(options, lambda _: None, latency.Sizes((48, 96), latency.fidelities_of("exact"), reply_tokens=4))
    assert ([], True) == (report.verdicts, "recall_ms" not in report.rows[0])
    assert ["EXACT"] == [line.label for line in report.charts[0].lines]


async def test_density_stops_where_a_session_takes_anothers_memory(options: Options) -> None:
    """As many EXACT sessions are counted as fit, RECALL's are smaller, and all of them answer."""
    sizes = density.Sizes(context=448, budget=MIB, input_tokens=4, reply_tokens=2, most_sessions=12)
    report = await density.run(options, lambda _: None, sizes)
    exact, ours = report.rows
    assert 1 <= int(exact["fit"]) < int(ours["fit"]) <= 12
    assert (exact["fit"], ours["fit"]) == (exact["answered"], ours["answered"])
    assert float(ours["device_mib"]) < float(exact["device_mib"])
    assert 0 == report.measured["silent_sessions"]
    assert sound(report)


async def test_drift_judges_what_the_service_reports(options: Options) -> None:
    """With re-encode, the reference finds in every turn what the fidelity report states; without, nothing is reported and all is judged."""
    report = await drift.run(options, lambda _: None, drift.Sizes(3, 400, 8, 6, recall_tokens=8))
    assert [1, 2, 3] == [row["turn"] for row in report.rows]
    for row in report.rows:
        assert 5 == row["tokens"]  # the first follows the prompt, which sees everything
        assert 0 < float(row["kl_on"]) == pytest.approx(float(row["reported"]), rel=0.05, abs=1e-6)
        assert float(row["kl_off"]) > 0
    assert {} == report.measured  # 12 turns are what the threshold is about
    assert sound(report)


async def test_drift_without_compression_is_refused(options: Options) -> None:
    """A context that lies in the recent window whole is seen whole: there would be nothing to judge."""
    with pytest.raises(InvalidInput, match="too short"):
        await drift.run(options, lambda _: None, drift.Sizes(turns=2, context=16, input_tokens=4, reply_tokens=4))
