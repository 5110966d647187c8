"""Sizes in bytes: ``8GiB`` in, ``8.0 GiB`` out."""

from __future__ import annotations

import re
from typing import NewType

from agentmem.errors import ConfigError

Bytes = NewType("Bytes", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

_FACTORS = {"": 1, "b": 1, "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def parse_size(value: int | str) -> Bytes:
    """Return ``value`` in bytes: a whole number, or a text such as ``8GiB``, ``512 MiB`` or ``20GB``.

    Raises ConfigError for a negative number, an unknown unit and anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Bytes(value)
    match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _FACTORS:
        raise ConfigError(f"{value!r} is not a size; write bytes, or a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB")
    whole, unit = match[1], _FACTORS[match[2].lower()]
    return Bytes(int(whole) * unit if whole.isdigit() else round(float(whole) * unit))


def format_size(n_bytes: int) -> str:
    """Return ``n_bytes`` for people, in the largest binary unit that leaves at least 1."""
    for name, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {name}"
    return f"{n_bytes} B"
