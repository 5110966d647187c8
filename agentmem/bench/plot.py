"""Draws what a benchmark found: lines of measurements over what was varied, in one file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentmem.errors import InvalidInput

if TYPE_CHECKING:  # an extra: loaded where something is drawn
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LINES = ("-", "--", ":", "-.")  # one style per round through the colours, so that no two lines look alike
COLOURS = 10  # of matplotlib's default cycle
MOST_COLUMNS = 6  # of the legend
SIDE = (7.0, 5.0)  # inches of one chart


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
    shown: dict[str, Artist] = {}  # one legend for all charts: a label looks the same in each
    labels = list(dict.fromkeys(line.label for chart in charts for line in chart.lines if line.bound is None))
    for chart, axes in zip(charts, figure.subplots(1, len(charts), squeeze=False)[0], strict=True):
        for line in chart.lines:
            if line.bound is not None:
                shown[line.label] = axes.axhline(line.bound, color="0.4", linestyle="--", linewidth=1)
                continue
            number = labels.index(line.label)
            look = {"color": f"C{number % COLOURS}", "linestyle": LINES[number // COLOURS % len(LINES)]}
            (shown[line.label],) = axes.plot(*zip(*line.points, strict=True), marker="o", markersize=4, **look)
        _label(axes, chart)
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=min(len(shown), MOST_COLUMNS), fontsize="small")
    figure.savefig(file, dpi=120)


def _label(axes: Axes, chart: Chart) -> None:
    axes.set(title=chart.title, xlabel=chart.x, ylabel=chart.y)
    axes.grid(visible=True, alpha=0.3)
    if chart.log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for line in chart.lines for x, _ in line.points})
        axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
