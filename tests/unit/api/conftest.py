"""A fresh server for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.api import Api, running


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """Yield a server without key file, in front of a scripted session manager."""
    async with running() as started:
        yield started
