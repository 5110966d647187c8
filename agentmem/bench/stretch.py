"""A model directory whose config claims a longer context, for timing beyond the length that the model was trained for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from agentmem.bench.options import Options
from agentmem.engine.resolve import resolve
from agentmem.errors import InvalidInput

CONFIG = "config.json"
LENGTH = "max_position_embeddings"


def trained_length(options: Options) -> int:
    """Return the tokens of context that the model was trained for. Raises InvalidInput where its config does not say."""
    config = json.loads((resolve(options.model, options.cache_dir) / CONFIG).read_text(encoding="utf-8"))
    length = config.get(LENGTH)
    if not isinstance(length, int):
        raise InvalidInput(f"the config of {options.model} has no {LENGTH}, so that its context cannot be stretched")
    return length


def stretched(options: Options, tokens: int, folder: Path) -> Options:
    """Return ``options`` with a model that takes ``tokens`` tokens: the same, or a copy in ``folder`` that shares its weights.

    What such a model says beyond its trained length means nothing; how long it takes is the same.
    """
    if tokens <= trained_length(options):
        return options
    original = resolve(options.model, options.cache_dir)
    folder.mkdir()
    for path in original.iterdir():
        if path.name != CONFIG:
            (folder / path.name).symlink_to(path.resolve())
    config = json.loads((original / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | {LENGTH: tokens}), encoding="utf-8")
    return replace(options, model=str(folder))
