"""Named points in the code where a test can make the process die or a call fail.

``AGENTMEM_FAULTS="blocks.after_rename:kill:3,blocks.write:enospc"`` kills the process with SIGKILL at the third hit of
``blocks.after_rename`` and raises ENOSPC at every hit of ``blocks.write``; ``error`` raises RuntimeError, ``stall`` sleeps. Tests in
the same process call ``arm`` and ``disarm``. With nothing armed, ``point`` costs one dict look-up.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass

from agentmem.errors import ConfigError

POINTS = (
    "blocks.after_temp_write",
    "blocks.after_rename",
    "blocks.write",
    "ledger.before_commit",
    "ledger.after_commit",
    "engine.step",
    "generation.mid_stream",
    "worker.job",
)
ACTIONS = ("kill", "enospc", "error", "stall")
STALL_SECONDS = 60.0  # longer than any test waits: whoever stalls is killed


@dataclass(slots=True)
class _Fault:
    action: str
    countdown: int  # 0: act at every hit; n: act at the nth hit only


_armed: dict[str, _Fault] = {}
_lock = threading.Lock()


def arm(point: str, action: str, nth: int = 0) -> None:
    """Arm ``point`` with ``action`` at its ``nth`` hit (0: every hit). Raises ConfigError for unknown names."""
    if point not in POINTS:
        raise ConfigError(f"unknown fault point {point!r}; known: {', '.join(POINTS)}")
    if action not in ACTIONS:
        raise ConfigError(f"unknown fault action {action!r}; known: {', '.join(ACTIONS)}")
    with _lock:
        _armed[point] = _Fault(action, nth)


def disarm() -> None:
    """Forget every armed fault."""
    with _lock:
        _armed.clear()


def arm_from_env() -> None:
    """Arm what ``AGENTMEM_FAULTS`` names. Raises ConfigError for a malformed entry."""
    for entry in filter(None, os.environ.get("AGENTMEM_FAULTS", "").split(",")):
        parts = entry.split(":")
        if len(parts) not in (2, 3) or (len(parts) == 3 and not parts[2].isdigit()):
            raise ConfigError(f"AGENTMEM_FAULTS entry {entry!r} is not POINT:ACTION or POINT:ACTION:N")
        arm(parts[0], parts[1], int(parts[2]) if len(parts) == 3 else 0)


def point(name: str) -> None:
    """Mark a place where an armed fault acts. Raises OSError(ENOSPC) or RuntimeError, or never returns, when armed."""
    if not _armed:
        return
    with _lock:
        fault = _armed.get(name)
        if fault is None:
            return
        if fault.countdown > 1:
            fault.countdown -= 1
            return
        if fault.countdown == 1:
            del _armed[name]
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "stall":
        time.sleep(STALL_SECONDS)
        return
    if fault.action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
    message = f"fault armed at {name}"
    raise RuntimeError(message)
