from __future__ import annotations

from pathlib import Path

from agentmem.bench.machine import _version, cpu_name, this_machine
from agentmem.bench.options import Options


def test_the_cpu_is_named(tmp_path: Path) -> None:
    """The name comes from /proc/cpuinfo, and from the platform where that does not exist."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast One 9000\n")
    assert "Fast One 9000" == cpu_name(info)
    assert cpu_name(tmp_path / "none")


def test_the_machine_is_described() -> None:
    """Cores, dtype, threads and versions are stated."""
    machine = this_machine(Options(dtype="fp32", threads=3))
    assert ("float32", 3) == (machine.dtype, machine.threads)
    assert machine.cores >= 1
    for part in ("float32", "3 threads", machine.torch, machine.transformers):
        assert part in machine.describe()


def test_a_missing_library_is_said_to_be_missing() -> None:
    """A version that cannot be found is no reason to fail."""
    assert "not installed" == _version("no-such-distribution")
