"""What the engine counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentmem.types import Tier


@dataclass(slots=True)
class EngineStats:
    """Counters since start; tokens and steps."""

    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    failed_steps: int = 0
    drafted: int = 0  # tokens that were verified ahead
    accepted: int = 0  # those of them that became output
    computed: int = 0  # tokens of prompts that had to be computed
    reencoded: int = 0
    reused: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))
