from __future__ import annotations

import subprocess
import sys

import pytest

from agentmem.bench import density
from agentmem.bench.density import Filled, Memory, Sizes
from agentmem.errors import InvalidInput
from agentmem.types import Fidelity
from agentmem.units import MIB
from agentmem.views import ServerStats

NOTHING = Memory(0, 0, 0, 0)
# A process that says when it is there, and again when it has filled a buffer; pytest's own frees what earlier tests left at any moment.
_BUFFER = """
import sys
print(flush=True)
sys.stdin.readline()
buffer = bytearray(b"x") * int(sys.argv[1])
print(flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("given", [{"context": 0}, {"budget": MIB - 1}, {"most_sessions": 0}])
def test_sizes_that_measure_nothing_are_refused(given: dict[str, int]) -> None:
    """A session has tokens, and a budget room for some."""
    with pytest.raises(InvalidInput, match=str(next(iter(given.values())))):
        Sizes(**given)


def test_memory_is_what_the_server_counts_and_what_its_process_has() -> None:
    """Device and index come from the server; a buffer of its process shows in the process's anonymous memory and its USS."""
    stats, size = ServerStats(kv_bytes_used=5, index_bytes=7), 64 * MIB
    with subprocess.Popen([sys.executable, "-c", _BUFFER, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        before = Memory.of(stats, process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = Memory.of(stats, process.pid)
        process.stdin.close()
    assert (5, 7) == (after.device, after.index)
    for grown in (after.anonymous - before.anonymous, after.uss - before.uss):
        assert 0.9 * size <= grown <= 1.5 * size


def test_a_session_costs_what_the_second_half_of_them_adds() -> None:
    """What the process takes while it warms up is no session's; a single session has nothing but itself."""
    marks = [Memory(0, 0, anonymous * MIB, 0) for anonymous in (100, 400, 450, 500, 550)]
    assert 50.0 == Filled(Fidelity.EXACT, marks, 4, 0).per_session("anonymous")
    assert 300.0 == Filled(Fidelity.EXACT, marks[:2], 1, 0).per_session("anonymous")


def test_a_row_is_a_session() -> None:
    """Bytes are per session, and the share is of EXACT's sum of device and index."""
    exact = Filled(Fidelity.EXACT, [NOTHING, Memory(100 * MIB, 0, 110 * MIB, 120 * MIB)], 1, 0)
    marks = [Memory(n * 20 * MIB, n * 2 * MIB, n * 22 * MIB, n * 25 * MIB) for n in range(5)]
    row = density._row(Filled(Fidelity.RECALL, marks, 3, 1), exact)
    assert ("RECALL", 20.0, 2.0, 22.0, 22.0, 25.0) == tuple(
        row[key] for key in ("fidelity", "device_mib", "index_mib", "private_mib", "process_mib", "uss_mib")
    )
    assert (pytest.approx(0.22), 4, 3, 1) == tuple(row[key] for key in ("share", "fit", "answered", "spills"))
