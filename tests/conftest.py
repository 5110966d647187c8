"""What every test relies on: no hub, no settings leaking in from the shell, no fault armed by another test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from agentmem import faults

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for name in [name for name in os.environ if name.startswith("AGENTMEM_")]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def _no_armed_faults() -> Iterator[None]:
    yield
    faults.disarm()
