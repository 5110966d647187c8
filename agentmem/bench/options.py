"""What every benchmark can be told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agentmem.config import ModelSettings, load_settings

Say = Callable[[str], None]
"""Takes one short line about what is going on now."""


def default_cache_dir() -> Path:
    """Return where converted models are kept: the setting ``model.cache_dir`` of the environment, or its default."""
    name = "AGENTMEM_MODEL_CACHE_DIR"
    return load_settings(None, {name: os.environ[name]} if name in os.environ else {}, {}).model.cache_dir


@dataclass(frozen=True, slots=True)
class Options:
    """Model, numbers' format, torch's threads (0: torch's default) and how often to measure."""

    model: str = "smollm2"
    dtype: str = "auto"
    threads: int = 0
    repeat: int = 3
    cache_dir: Path = field(default_factory=default_cache_dir)

    def settings(self) -> dict[str, object]:
        """Return the server settings that follow from these options. Raises ConfigError for a value that is not allowed."""
        model = ModelSettings(id=self.model, dtype=self.dtype, threads=self.threads, cache_dir=self.cache_dir)
        path = Path(model.id).expanduser()
        # The server runs in a directory of its own, so that no settings file of the caller's reaches it.
        name = str(path.resolve()) if path.exists() else model.id
        return {
            "model.id": name,
            "model.dtype": model.dtype,
            "model.threads": model.threads,
            "model.cache_dir": str(self.cache_dir.resolve()),
        }
