"""The machine that numbers were measured on, since they mean nothing without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from agentmem.bench.options import Options
from agentmem.units import format_size


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware, versions and the numbers' format. ``load`` is the average number of busy processes in the minute before."""

    cpu: str
    cores: int
    memory_bytes: int
    device: str
    dtype: str
    threads: int
    python: str
    torch: str
    transformers: str
    load: float

    def describe(self) -> str:
        """Return one line for people."""
        where = f"{self.cpu}, {self.cores} cores, {format_size(self.memory_bytes)}"
        how = f"{self.dtype} on {self.device}, {self.threads} threads, load {self.load:.1f} at the start"
        return f"{where} | {how} | Python {self.python}, torch {self.torch}, transformers {self.transformers}"


def this_machine(options: Options) -> Machine:
    """Return this machine as a run with ``options`` uses it. Raises InvalidInput for an unknown dtype."""
    import torch

    from agentmem.engine.model import pick_device, pick_dtype

    device = pick_device("auto")
    return Machine(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        device=torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        dtype=str(pick_dtype(options.dtype, device)).removeprefix("torch."),
        threads=options.threads or torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=_version("transformers"),
        load=os.getloadavg()[0],
    )


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's name, from Linux's ``info`` where there is one."""
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
