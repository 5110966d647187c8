"""What a benchmark found: as a table for people, as JSON for machines, as verdicts for ``--check``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from agentmem.bench.machine import Machine
from agentmem.bench.plot import Chart
from agentmem.bench.thresholds import Verdict, judge

PIPE_WIDTH = 120  # columns

Cell = str | int | float


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its ``key`` in the rows and in JSON, its header, and the format of its numbers, as in ``format``."""

    key: str
    header: str
    spec: str = ""

    def show(self, row: Mapping[str, Cell]) -> str:
        """Return the text of this column's cell in ``row``; empty where the row has none."""
        value = row.get(self.key, "")
        return value if isinstance(value, str) else format(value, self.spec)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of benchmark ``name``. ``caption`` says what is measured and how; ``measured`` is what thresholds judge.

    ``notes`` are further lines for people, e.g. about a mismatch; ``charts`` is what ``--plot`` draws.
    """

    name: str
    title: str
    caption: str
    machine: Machine
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Cell]]
    measured: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()

    @property
    def verdicts(self) -> list[Verdict]:
        """The measurements held against the thresholds of ``name``."""
        return judge(self.name, self.measured)

    @property
    def passed(self) -> bool:
        """Whether every threshold is kept."""
        return all(verdict.met for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON: a missing measurement is null."""
        checks = [
            {"name": v.name, "value": None if math.isnan(v.value) else v.value, "met": v.met, **asdict(v.threshold)} for v in self.verdicts
        ]
        return {
            "benchmark": self.name,
            "machine": asdict(self.machine),
            "settings": dict(self.settings),
            "rows": [dict(row) for row in self.rows],
            "measured": dict(self.measured),
            "checks": checks,
            "passed": self.passed,
            "notes": list(self.notes),
        }


def console_of(*, stderr: bool = False) -> Console:
    """Return a console as wide as the terminal; wide enough for the tables where the output is a file or a pipe."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def show(report: Report, console: Console) -> None:
    """Print the table, what was measured and how, the machine, and the verdicts."""
    table = Table(title=report.title, title_justify="left")
    for number, column in enumerate(report.columns):
        table.add_column(column.header, justify="left" if number == 0 else "right")
    for row in report.rows:
        table.add_row(*(column.show(row) for column in report.columns))
    console.print(table)
    console.print(report.caption, style="dim", highlight=False)
    console.print(report.machine.describe(), style="dim", highlight=False)
    for note in report.notes:
        console.print(note, highlight=False)
    for verdict in report.verdicts:
        word, style = ("met", "green") if verdict.met else ("MISSED", "bold red")
        bound = f"{verdict.threshold.relation} {verdict.threshold.limit:g}"
        console.print(f"[{style}]{word:>6}[/]  {verdict.value:.4g} ({bound}): {verdict.threshold.meaning}", highlight=False)
