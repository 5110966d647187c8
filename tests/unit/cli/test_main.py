from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import typer

from agentmem import __version__

Run = Callable[..., Any]


def test_version_and_help(run: Run) -> None:
    """--version prints the version; without a command the commands are listed."""
    assert f"{__version__}\n" == run("--version").stdout
    listed = run("--help").stdout
    assert all(command in listed for command in ("serve", "chat", "recall", "demo", "session", "doctor", "config", "bench"))


@pytest.mark.parametrize("args", [["nonsense"], ["session", "show"], ["session", "rollback", "a"], ["serve", "--port", "x"]])
def test_wrong_usage_exits_with_2(run: Run, args: list[str]) -> None:
    """An unknown command, a missing argument and a value of the wrong kind are usage errors."""
    assert 2 == run(*args).exit_code


def test_an_error_is_one_line_and_exit_code_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there is told in one line on stderr, with the reason and without a traceback."""
    monkeypatch.setenv("AGENTMEM_TARGET", "127.0.0.1:1")
    done = run("session", "ls")
    assert (1, "", 1) == (done.exit_code, done.stdout, done.stderr.count("\n"))
    assert done.stderr.startswith("error: ")
    assert "(DISCONNECTED)" in done.stderr


def test_the_script_is_installed() -> None:
    """The command runs as a process of its own and tells usage errors by its exit code."""
    code = "from agentmem.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "session", "show"], capture_output=True, text=True, check=False)
    assert 2 == done.returncode
    assert "SESSION" in done.stderr


def test_bench_hands_its_arguments_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` passes everything, --help too, to the benchmarks' own commands, which are loaded only then."""
    bench = typer.Typer()

    @bench.command()
    def other() -> None:
        pass

    @bench.command()
    def decode(*, check: bool = False) -> None:
        typer.echo(f"decode {check}")
        raise typer.Exit(7)

    monkeypatch.setitem(sys.modules, "agentmem.bench.cli", types.SimpleNamespace(app=bench))
    done = run("bench", "decode", "--check")
    assert (7, "decode True\n") == (done.exit_code, done.stdout)


def test_demo_exits_with_what_it_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`demo` runs the demonstration with its options and exits with its code."""
    said: list[dict[str, object]] = []
    monkeypatch.setitem(sys.modules, "agentmem.demo", types.SimpleNamespace(run_demo=lambda **given: said.append(given) or 3))
    assert 3 == run("demo", "--model", "m", "--json").exit_code
    assert [{"model": "m", "json_output": True}] == said
