from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache

import pytest
import torch
from support.engines import Oracle, WatchedRunner, running
from support.families import llama
from transformers import PreTrainedModel

from agentmem.engine.engine import Engine


@cache
def _model() -> PreTrainedModel:
    return llama()


@cache
def _reference() -> PreTrainedModel:
    model = llama()
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def oracle() -> Oracle:
    """Return what knows the tiny Llama's greedy tokens."""
    return Oracle(_reference())


@pytest.fixture
def runner() -> WatchedRunner:
    """Return a runner over the tiny Llama, its weights shared between tests."""
    torch.set_num_threads(1)
    return WatchedRunner(_model())


@pytest.fixture
async def engine(runner: WatchedRunner) -> AsyncIterator[Engine]:
    """Return a running engine over the tiny Llama."""
    async with running(runner) as made:
        yield made
