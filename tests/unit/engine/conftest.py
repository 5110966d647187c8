from __future__ import annotations

from functools import cache

import pytest
import torch
from support.engines import Oracle, WatchedRunner
from support.families import llama
from transformers import PreTrainedModel


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
