"""A process that is killed at any point leaves every acknowledged turn, no broken promise, and nothing that a sweep cannot remove."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.stores import SESSION, TENANT, digest, open_archive, stored, turn

from agentmem.types import Tier

torch.set_num_threads(1)

TESTS = Path(__file__).parents[2]
# Each turn stores two blocks of its own, and is acknowledged by a line on standard output.
SCRIPT = """
import sys
from pathlib import Path
from agentmem import faults
from support.stores import SESSION, TENANT, open_archive, session, stored, turn
ledger, archive = open_archive(Path(sys.argv[1]))
ledger.create_session(session(), [])
faults.arm_from_env()
for n in range(3):
    archive.commit(TENANT, SESSION, 1, turn(n, f"turn {n}"), [stored(f"{n}a", 8 * n), stored(f"{n}b", 8 * n + 4)])
    print(n, flush=True)
"""
POINTS = [
    *((point, nth) for point in ("blocks.write", "blocks.after_temp_write", "blocks.after_rename") for nth in (1, 4)),
    *((point, nth) for point in ("ledger.before_commit", "ledger.after_commit") for nth in (1, 2)),
]


@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_kill(tmp_path: Path, point: str, nth: int) -> None:
    """After SIGKILL at the point, acknowledged turns are there and readable, unacknowledged ones wholly there or not at all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "AGENTMEM_FAULTS": f"{point}:kill:{nth}"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, check=False, timeout=50
    )
    assert -signal.SIGKILL == process.returncode, process.stderr
    acknowledged = [int(line) for line in process.stdout.split()]
    ledger, archive = open_archive(tmp_path)
    archive.check_integrity()  # before the sweep: no row without its file
    turns = ledger.turns(TENANT, SESSION)
    assert [turn(n, f"turn {n}") for n in range(len(turns))] == turns
    committed_unacknowledged = int(point == "ledger.after_commit")
    assert len(acknowledged) + committed_unacknowledged == len(turns)
    for n in range(len(turns)):
        for name in (f"{n}a", f"{n}b"):
            block = archive.load(digest(name))
            assert Tier.DISK == block.tier
            assert torch.equal(stored(name).k, block.k)
            assert torch.equal(stored(name).v, block.v)
    archive.sweep(min_age_s=0)
    files = {path.name for path in (tmp_path / "blocks").rglob("*") if path.is_file()}
    assert {f"{digest(f'{n}{half}').hex()}.safetensors" for n in range(len(turns)) for half in "ab"} == files
    archive.commit(TENANT, SESSION, 1, turn(len(turns)), [stored("next")])
    archive.check_integrity()
    ledger.close()
