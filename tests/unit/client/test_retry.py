from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import DeadlineExceeded, Disconnected, InvalidInput, Overloaded
from agentmem_client.retry import Attempts, RetryPolicy, is_transient


@given(st.integers(1, 5), st.floats(0, 100))
def test_a_pause_is_jittered_capped_and_never_below_what_was_asked(failures: int, retry_after: float) -> None:
    """The pause lies between the server's wish and the larger of that wish and the exponential cap."""
    policy = RetryPolicy(attempts=6, base_seconds=0.1, max_seconds=1.0)
    pause = policy.pause(failures, Overloaded("full", retry_after=retry_after))
    assert pause is not None
    assert retry_after <= pause <= max(retry_after, min(1.0, 0.1 * 2 ** (failures - 1)))


def test_giving_up() -> None:
    """The last failure allowed, and an error that time does not heal, end the tries."""
    assert RetryPolicy(attempts=3).pause(3, Disconnected("away")) is None
    assert RetryPolicy().pause(1, InvalidInput("wrong")) is None
    assert not is_transient(Overloaded("full"))


async def test_progress_forgets_failures() -> None:
    """A call that gets on has all its tries again; one that doesn't raises the last error."""
    attempts = Attempts(RetryPolicy(attempts=2, base_seconds=0.0), 60.0)
    await attempts.failed(Disconnected("one"))
    attempts.succeeded()
    await attempts.failed(Disconnected("two"))
    with pytest.raises(Disconnected, match="three"):
        await attempts.failed(Disconnected("three"))


def test_the_deadline_is_told() -> None:
    """Asking for the time that remains after the deadline raises."""
    assert 0 < Attempts(RetryPolicy(), 60.0).remaining <= 60.0
    with pytest.raises(DeadlineExceeded):
        _ = Attempts(RetryPolicy(), 0.0).remaining
