from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.tiny import save_model
from typer.testing import CliRunner

from agentmem.bench import cli, constrained, density, latency, recall
from agentmem.bench.machine import this_machine
from agentmem.bench.options import Options, Say
from agentmem.bench.plot import Chart, Line
from agentmem.bench.report import Column, Report
from agentmem.errors import InternalError
from agentmem.types import Fidelity, Prefill
from agentmem.units import MIB


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def ratio(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the restart benchmark by one that measures the ratio in this list; an empty list breaks it."""
    measured = [0.1]
    fake = ModuleType("agentmem.bench.restart")

    async def run(options: Options, say: Say, sizes: object) -> Report:
        say(f"measuring {sizes}")
        if not measured:
            error = InternalError("the service broke")
            error.add_note("the log ends here")
            raise error
        columns, rows = (Column("a", "A"),), ({"a": options.repeat},)
        numbers = {"ratio": measured[0], "restored_share": 1.0}
        charts = [Chart("T", "x", "y", [Line("l", [(0, 1), (1, 2)])])]
        return Report("restart", "T", "C", this_machine(options), columns, rows, numbers, charts=charts)

    fake.run = run
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return measured


def call(model: str, *args: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["restart", "--model", model, *args])
    return done.exit_code, done.output


def test_a_benchmark_prints_its_table(model: str, ratio: list[float]) -> None:
    """Without --check a missed threshold is shown and is no failure."""
    ratio[0] = 0.9
    code, out = call(model, "--repeat", "4")
    assert (0, True, True) == (code, "MISSED" in out, "4" in out)


@pytest.mark.parametrize(("value", "code"), [(0.1, 0), (0.9, 1)])
def test_check_fails_on_a_missed_threshold(model: str, ratio: list[float], tmp_path: Path, value: float, code: int) -> None:
    """With --check the exit code is 1 when a threshold is missed; the JSON file is written either way."""
    ratio[0] = value
    file = tmp_path / "out.json"
    assert code == call(model, "--check", "--json", str(file))[0]
    assert (value, code == 0) == ((found := json.loads(file.read_text()))["measured"]["ratio"], found["passed"])


def test_a_benchmark_that_cannot_run_says_why(model: str, ratio: list[float], tmp_path: Path) -> None:
    """Errors of the service, a wrong option and a file that cannot be written exit with 2 and one message."""
    assert 2 == call(model, "--json", str(tmp_path / "none" / "out.json"))[0]
    assert 2 == call(str(tmp_path / "no-model"))[0]
    ratio.clear()
    code, out = call(model)
    assert (2, True, True) == (code, "the service broke" in out, "the log ends here" in out)


def test_every_benchmark_is_a_command() -> None:
    """The help lists each of them, and each is a module with ``run``."""
    out = CliRunner().invoke(cli.app, ["--help"]).output
    for name in cli.BENCHMARKS:
        assert name in out
        assert callable(__import__(f"agentmem.bench.{name}", fromlist=["run"]).run)


def test_equality_is_in_fp32_unless_told_otherwise() -> None:
    """The promise of equal tokens is for fp32, so that is what --check means by default."""
    assert "fp32" in CliRunner().invoke(cli.app, ["equality", "--help"]).output


@pytest.mark.usefixtures("ratio")
def test_a_benchmark_draws_what_it_found(model: str, tmp_path: Path) -> None:
    """--plot writes the report's charts."""
    file = tmp_path / "out.png"
    options = Options(model, "fp32", 1, 1, tmp_path)
    assert 0 == cli.run_benchmark("restart", options, json_file=None, check=True, plot=file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_drawn_costs_no_measurement(model: str, ratio: list[float], tmp_path: Path) -> None:
    """The file is looked at before anything runs."""
    ratio.clear()  # running would break
    file = tmp_path / "none" / "out.png"
    assert 2 == cli.run_benchmark("restart", Options(model), json_file=None, check=False, plot=file)


class Asked:
    """Takes what the command line asks for, instead of running it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name = ""
        self.options = Options()
        self.sizes: Any = None
        monkeypatch.setattr(cli, "run_benchmark", self)

    def __call__(self, name: str, options: Options, *, sizes: Any = lambda _: None, **_: Any) -> int:
        self.name, self.options = name, options
        self.sizes = sizes(__import__(f"agentmem.bench.{name}", fromlist=["Sizes"]))
        return 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def command(*args: str) -> int:
    return CliRunner().invoke(cli.app, list(args)).exit_code


def test_recall_takes_a_choice_of_rows(asked: Asked) -> None:
    """Compressors, methods, budgets and sizes reach the benchmark."""
    args = ("--only", "keydiff, knorm", "--recall", "lsh", "--budgets", "0.05,0.25", "--recall-tokens", "64", "--context", "2000")
    assert 0 == command("recall", *args, "--prefill", "exact")
    expected = recall.Sizes(2000, 8, 5, 6, ("keydiff", "knorm"), ("lsh",), (0.05, 0.25), 64, 256, Prefill.EXACT)
    assert ("recall", expected) == (asked.name, asked.sizes)
    assert 0 == command("recall")
    assert recall.Sizes() == asked.sizes


def test_decode_with_a_fidelity_is_another_benchmark(asked: Asked) -> None:
    """Without one it is timed beside HF as ever; with one, as the context grows."""
    assert 0 == command("decode", "--threads", "2")
    assert ("decode", 2, None) == (asked.name, asked.options.threads, asked.sizes)
    assert 0 == command("decode", "--fidelity", "recall", "--contexts", "64,128")
    assert ("latency", latency.Sizes((64, 128))) == (asked.name, asked.sizes)
    assert 0 == command("decode", "--fidelity", "exact")
    assert (Fidelity.EXACT,) == asked.sizes.fidelities


def test_density_takes_a_budget_in_any_unit(asked: Asked) -> None:
    """The budget is a size as settings take it, and the promise is for bf16."""
    assert 0 == command("density", "--context", "100", "--budget", "8MiB")
    assert (density.Sizes(100, 8 * MIB), "bf16") == (asked.sizes, asked.options.dtype)


def test_constrained_takes_a_number_of_schemas(asked: Asked) -> None:
    """500 random tools by default, as the promise says."""
    assert 0 == command("constrained")
    assert ("constrained", 500) == (asked.name, asked.sizes.schemas)
    assert 0 == command("constrained", "--schemas", "7")
    assert constrained.Sizes(schemas=7) == asked.sizes
    assert 2 == command("constrained", "--schemas", "0")


def test_drift_is_judged_in_fp32(asked: Asked) -> None:
    """The reference is another implementation, so that a coarser format would be measured too."""
    assert 0 == command("drift")
    assert ("drift", "fp32") == (asked.name, asked.options.dtype)


@pytest.mark.parametrize(
    "args",
    [
        ("recall", "--only", "keydif"),
        ("recall", "--recall", "best"),
        ("recall", "--budgets", "some"),
        ("recall", "--budgets", "0"),
        ("recall", "--prefill", "none"),
        ("recall", "--context", "100"),
        ("decode", "--fidelity", "compact"),
        ("decode", "--fidelity", "recall", "--contexts", "8,8"),
        ("decode", "--plot", "out.png"),
        ("density", "--budget", "much"),
        ("drift", "--plot", "out.txt"),
    ],
)
def test_a_wrong_option_ends_with_2_before_anything_runs(model: str, args: tuple[str, ...]) -> None:
    """No model is loaded and no server started for what cannot be measured."""
    assert 2 == command(*args, "--model", model)
