"""Draws what a benchmark found: lines of measurements over what was varied, in one file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentmem.errors import InvalidInput

LINES = ("-", "--", ":", "-.")  # one style per round through the colours, so that no two lines look alike
COLOURS = 10  # of matplotlib's default cycle
SIDE = (7.0, 4.5)  # inches of one chart


@dataclass(frozen=True, slots=True)
class Line:
    """Points ``(x, y)`` in the order in which they are joined. ``bound`` is a horizontal line without points of its own."""

    label: str
    points: Sequence[tuple[float, float]] = ()
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes. ``log_x`` and ``log_y``: powers of two and of ten are equally far apart."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False


def check_plot(file: Path) -> None:
    """Raise InvalidInput when ``file`` could not be drawn: before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidInput("--plot needs matplotlib; install the extra: pip install 'agentmem-kv[bench]'")
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidInput(f"--plot {file} has an unknown ending; allowed are .png, .svg and .pdf")
    if not file.absolute().parent.is_dir():
        raise InvalidInput(f"--plot {file}: there is no folder {file.absolute().parent}")


def draw(charts: Sequence[Chart], file: Path) -> None:
    """Draw ``charts`` side by side into ``file``. Raises InvalidInput as ``check_plot``, OSError when it cannot be written."""
    check_plot(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot: no global state, no display, nothing to close

    figure = Figure(figsize=(SIDE[0] * len(charts), SIDE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for chart, axes in zip(charts, figure.subplots(1, len(charts), squeeze=False)[0], strict=True):
        axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
        for number, line in enumerate(chart.lines):
            style = LINES[number // COLOURS % len(LINES)]
            if line.bound is not None:
                axes.axhline(line.bound, color="0.5", linestyle="--", linewidth=1, label=line.label)
            else:
                axes.plot(*zip(*line.points, strict=True), linestyle=style, marker="o", markersize=4, label=line.label)
        if chart.log_x:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in chart.lines for x, _ in line.points})
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        if chart.log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small", ncols=1 + len(chart.lines) // 12)
    figure.savefig(file, dpi=120)
