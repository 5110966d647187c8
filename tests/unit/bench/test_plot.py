from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from agentmem.bench import plot
from agentmem.bench.plot import Chart, Line, check_plot, draw
from agentmem.errors import InvalidInput

TIME = Chart("Time a token", "tokens", "ms", [Line("EXACT", [(2048, 20.0), (8192, 50.0)]), Line("RECALL", [(2048, 15.0)])], log_x=True)
SHARE = Chart("Answers", "attended", "share", [Line("full cache", bound=0.9), Line("lsh", [(0.1, 0.5), (0.2, 0.8)])])
KL = Chart("KL", "turn", "nats", [Line("kl", [(1, 0.01), (2, 0.1)])], log_y=True)


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_charts_become_one_file(tmp_path: Path, ending: str, magic: bytes) -> None:
    """All charts are drawn into a file of the format that its ending names."""
    file = tmp_path / f"out.{ending}"
    draw([TIME, SHARE, KL], file)
    assert file.read_bytes().startswith(magic)


def test_labels_are_readable(tmp_path: Path) -> None:
    """Titles, axes, lines and the contexts that were measured are there as text."""
    file = tmp_path / "out.svg"
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        draw([TIME, SHARE], file)
    text = file.read_text()
    for part in ("Time a token", "tokens", "ms", "EXACT", "RECALL", "2,048", "8,192", "full cache"):
        assert part in text


def test_nothing_stays_open(tmp_path: Path) -> None:
    """The figure is nobody's but the function's: pyplot, which keeps figures, knows none."""
    draw([TIME], tmp_path / "out.png")
    from matplotlib import pyplot as plt

    assert [] == plt.get_fignums()


def test_many_lines_differ(tmp_path: Path) -> None:
    """More lines than colours get other styles."""
    draw([Chart("T", "x", "y", [Line(f"l{n}", [(0, n), (1, n)]) for n in range(33)])], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_a_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, before anything is measured."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=r"agentmem-kv\[bench\]"):
        check_plot(tmp_path / "out.png")


def test_importing_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks without --plot run where matplotlib is not installed."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **given: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", refuse)
    importlib.reload(plot)


@pytest.mark.parametrize(("file", "said"), [("out.txt", "png"), ("none/out.png", "no folder"), ("out", "ending")])
def test_a_file_that_cannot_be_drawn_is_refused(tmp_path: Path, file: str, said: str) -> None:
    """A wrong ending and a folder that does not exist are named at once."""
    with pytest.raises(InvalidInput, match=said):
        check_plot(tmp_path / file)
