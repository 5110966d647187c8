"""What the engine counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from agentmem.types import Tier


class Stopwatch:
    """Adds up the seconds spent within it. One thread, never within itself."""

    __slots__ = ("_began", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(slots=True)
class EngineStats:
    """Counters since start; tokens, steps and seconds."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    failed_steps: int = 0
    drafted: int = 0  # tokens that were verified ahead
    accepted: int = 0  # those of them that became output
    guiding: Stopwatch = field(default_factory=Stopwatch)  # runs while grammars are asked, and while they mask logits
    guided_step_seconds: float = 0.0  # of the steps with a reply under a grammar
    computed: int = 0  # tokens of prompts that had to be computed
    reencoded: int = 0
    reused: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))

    @property
    def guided_seconds(self) -> float:
        """Seconds that grammars took on the engine thread."""
        return self.guiding.seconds
