from __future__ import annotations

import os

import pytest

from agentmem.bench import density
from agentmem.bench.density import Filled, Memory, Sizes
from agentmem.errors import InvalidInput
from agentmem.types import Fidelity
from agentmem.units import MIB
from agentmem.views import ServerStats

NOTHING = Memory(0, 0, 0, 0)


@pytest.mark.parametrize("given", [{"context": 0}, {"budget": MIB - 1}, {"most_sessions": 0}])
def test_sizes_that_measure_nothing_are_refused(given: dict[str, int]) -> None:
    """A session has tokens, and a budget room for some."""
    with pytest.raises(InvalidInput, match=str(next(iter(given.values())))):
        Sizes(**given)


def test_memory_is_what_the_server_counts_and_what_its_process_has() -> None:
    """Device and index come from the server; a buffer of this process shows in its anonymous memory and its USS."""
    stats = ServerStats(kv_bytes_used=5, index_bytes=7)
    before = Memory.of(stats, os.getpid())
    buffer = bytearray(os.urandom(64 * MIB))
    after = Memory.of(stats, os.getpid())
    assert (5, 7) == (after.device, after.index)
    for grown in (after.anonymous - before.anonymous, after.uss - before.uss):
        assert 0.9 * len(buffer) <= grown <= 1.5 * len(buffer)


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
