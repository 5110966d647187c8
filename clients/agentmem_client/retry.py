"""When to try again, and how long to wait first: exponential back-off with full jitter.

https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

from agentmem.errors import AgentMemError, DeadlineExceeded, Disconnected, Draining


def is_transient(error: AgentMemError) -> bool:
    """Whether the same call may succeed later: the server was gone, or it said when to come back."""
    return isinstance(error, Disconnected | Draining) or error.retry_after is not None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most ``attempts`` tries; before the nth repetition a random pause of up to ``base_seconds`` * 2**(n-1), capped."""

    attempts: int = 6
    base_seconds: float = 0.1
    max_seconds: float = 5.0

    def pause(self, failures: int, error: AgentMemError) -> float | None:
        """Return the seconds to wait after ``failures`` failures in a row, never less than the server asked for; None: give up."""
        if failures >= self.attempts or not is_transient(error):
            return None
        jittered = random.uniform(0.0, min(self.max_seconds, self.base_seconds * 2 ** (failures - 1)))  # noqa: S311 -- not a secret
        return max(jittered, error.retry_after or 0.0)


class Attempts:
    """The tries of one call: counts failures and keeps the deadline, ``seconds`` from now."""

    def __init__(self, policy: RetryPolicy, seconds: float) -> None:
        self._policy = policy
        self._end = time.monotonic() + seconds
        self._failures = 0

    @property
    def remaining(self) -> float:
        """Seconds until the deadline. Raises DeadlineExceeded when it has passed."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise DeadlineExceeded("the call's deadline passed")
        return seconds

    def succeeded(self) -> None:
        """Forget earlier failures: the call has made progress."""
        self._failures = 0

    async def failed(self, error: AgentMemError) -> None:
        """Wait before the next try. Raises ``error`` when there is none, or when it would come after the deadline."""
        self._failures += 1
        pause = self._policy.pause(self._failures, error)
        if pause is None or pause >= self._end - time.monotonic():
            raise error
        await asyncio.sleep(pause)
