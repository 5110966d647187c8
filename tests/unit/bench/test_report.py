from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from agentmem.bench.machine import Machine
from agentmem.bench.report import PIPE_WIDTH, Column, Report, console_of, show

MACHINE = Machine("A CPU", 2, 8 << 30, "cpu", "float32", 2, "3.11", "2.0", "5.0", 0.25)


@pytest.fixture
def report() -> Report:
    return Report(
        name="restart",
        title="A title",
        caption="What is measured.",
        machine=MACHINE,
        columns=(Column("start", "after"), Column("seconds", "s", ".2f")),
        rows=({"start": "restored", "seconds": 0.123}, {"start": "recomputed"}),
        measured={"ratio": 0.1, "restored_share": 0.99},
        settings={"model": "m"},
        notes=("a note",),
    )


def printed(report: Report) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=160))
    return out.getvalue()


def test_cells_are_formatted_and_may_be_missing() -> None:
    """Numbers follow the column's format, text stays, a missing cell is empty."""
    column = Column("n", "N", ",.1f")
    assert ("1,234.6", "none", "") == (column.show({"n": 1234.56}), column.show({"n": "none"}), column.show({}))


def test_the_table_says_what_where_and_how_well(report: Report) -> None:
    """People see the rows, the caption, the machine, the notes and each threshold with its verdict."""
    text = printed(report)
    for part in ("A title", "restored", "0.12", "What is measured.", "A CPU, 2 cores, 8.0 GiB", "float32 on cpu", "a note"):
        assert part in text
    assert 2 == text.count("   met")


def test_a_missed_threshold_shows_and_fails(report: Report) -> None:
    """One missed threshold is named and fails the report."""
    slow = replace(report, measured={"ratio": 0.9, "restored_share": 1.0})
    assert (True, False) == (report.passed, slow.passed)
    assert "MISSED  0.9 (at most 0.2)" in printed(slow)


def test_json_holds_everything(report: Report) -> None:
    """The JSON has rows, measurements, checks and the machine; a measurement that is missing is null, not NaN."""
    value = json.loads(json.dumps(replace(report, measured={"ratio": 0.1}).as_dict(), allow_nan=False))
    assert {"benchmark", "machine", "settings", "rows", "measured", "checks", "passed", "notes"} == set(value)
    assert [("ratio", 0.1, True), ("restored_share", None, False)] == [(c["name"], c["value"], c["met"]) for c in value["checks"]]
    assert "A CPU" == value["machine"]["cpu"]
    assert math.isclose(0.123, value["rows"][0]["seconds"])


def test_a_pipe_is_wide_enough_for_tables() -> None:
    """Where nobody's terminal sets the width, tables are not squeezed."""
    assert PIPE_WIDTH == console_of().width
