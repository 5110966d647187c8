"""What every test relies on: no hub, no settings leaking in from the shell, no fault armed by another test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from agentmem import faults

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported. As many tests run at once as there are cores, and each process keeps to one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in [name for name in os.environ if name.startswith("AGENTMEM_")]:
    del os.environ[name]

# No deadline: how long an example takes depends on what else the machine does. The same examples at every run of `make test`, so that
# it says something about the change under test; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


@pytest.fixture(autouse=True)
def _no_armed_faults() -> Iterator[None]:
    yield
    faults.disarm()
