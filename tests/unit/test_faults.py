from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys

import pytest
from support.source_tree import modules

from agentmem import faults
from agentmem.errors import ConfigError


def test_nothing_happens_unarmed() -> None:
    """A point with nothing armed returns, also when another point is armed."""
    faults.point("blocks.write")
    faults.arm("ledger.before_commit", "error")
    faults.point("blocks.write")


def test_a_fault_without_a_count_acts_every_time() -> None:
    """ENOSPC is raised at every hit until disarmed."""
    faults.arm("blocks.write", "enospc")
    for _ in range(2):
        with pytest.raises(OSError, match="blocks.write") as caught:
            faults.point("blocks.write")
        assert errno.ENOSPC == caught.value.errno
    faults.disarm()
    faults.point("blocks.write")


def test_a_counted_fault_acts_once_at_that_hit() -> None:
    """With a count of 3 the third hit fails, and no other."""
    faults.arm("engine.step", "error", 3)
    faults.point("engine.step")
    faults.point("engine.step")
    with pytest.raises(RuntimeError, match="fault armed at engine.step"):
        faults.point("engine.step")
    faults.point("engine.step")


def test_a_stall_outlasts_any_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point sleeps, then goes on: time enough to kill the process in it."""
    slept: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", slept.append)
    faults.arm("worker.job", "stall", 1)
    faults.point("worker.job")
    faults.point("worker.job")
    assert [faults.STALL_SECONDS] == slept


def test_the_environment_arms_a_kill() -> None:
    """AGENTMEM_FAULTS kills the process with SIGKILL at the hit it names, not before."""
    code = (
        "from agentmem import faults; faults.arm_from_env(); p = 'blocks.after_rename'; "
        "faults.point(p); print('once', flush=True); faults.point(p)"
    )
    env = os.environ | {"AGENTMEM_FAULTS": "blocks.after_rename:kill:2,blocks.write:enospc"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (-signal.SIGKILL, "once\n") == (done.returncode, done.stdout)


@pytest.mark.parametrize("entry", ["blocks.write", "blocks.write:kill:x", "a:b:c:d", "nowhere:kill", "blocks.write:explode"])
def test_malformed_entries_are_refused(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong entry, point or action is an error that says what is known, so that a crash test cannot pass by a typo."""
    monkeypatch.setenv("AGENTMEM_FAULTS", entry)
    with pytest.raises(ConfigError, match="known: |POINT:ACTION"):
        faults.arm_from_env()


def test_every_point_in_the_source_is_listed() -> None:
    """A call of ``faults.point`` names a point of the list; otherwise no test could arm it."""
    used = {
        node.args[0].value
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "faults.point" and isinstance(node.args[0], ast.Constant)
    }
    assert set() == used - set(faults.POINTS)
