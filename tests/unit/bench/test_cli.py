from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny import save_model
from typer.testing import CliRunner

from agentmem.bench import cli
from agentmem.bench.machine import this_machine
from agentmem.bench.options import Options, Say
from agentmem.bench.report import Column, Report
from agentmem.errors import InternalError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def ratio(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the restart benchmark by one that measures the ratio in this list; an empty list breaks it."""
    measured = [0.1]
    fake = ModuleType("agentmem.bench.restart")

    async def run(options: Options, say: Say, sizes: object) -> Report:
        say("measuring")
        if not measured:
            error = InternalError("the service broke")
            error.add_note("the log ends here")
            raise error
        columns, rows = (Column("a", "A"),), ({"a": options.repeat},)
        numbers = {"ratio": measured[0], "restored_share": 1.0}
        return Report("restart", "T", "C", this_machine(options), columns, rows, numbers)

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
