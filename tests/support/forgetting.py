"""A session that was told a secret, and ways to see whether it is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.replica import TENANT, Answer, Replica, greedy

from agentmem.types import Fidelity, Message, TurnInput
from agentmem.views import ForgetTarget

SYSTEM = "s" * 40
SECRET = "the code is 80731 and nobody may know it"
FORGET = (ForgetTarget(1, 1),)  # the secret


async def told(replica: Replica, name: str = "a", **fields: Any) -> None:
    """Make a session that was told a secret in turn 1, between two other messages, and two turns after it."""
    await replica.create(name, system=SYSTEM, **fields)
    said = (Message("user", "before " * 5), Message("user", SECRET), Message("user", "after"))
    await replica.ask(name, TurnInput(messages=said))
    await replica.ask(name, "two " * 10)
    await replica.ask(name, "three")


async def forget(replica: Replica, name: str = "a", targets: Sequence[ForgetTarget] = FORGET) -> None:
    await replica.manager.forget(TENANT, name, targets)


def assert_exact(replica: Replica, answer: Answer, name: str = "a") -> None:
    """Check a reply against transformers, given the session's tokens as they are now."""
    tokens = tuple(replica.tokens(name))
    assert greedy(tokens[: -len(answer.token_ids)], len(answer.token_ids)) == answer.token_ids
    assert Fidelity.EXACT is answer.start.fidelity


def files_with(state: Path, text: str) -> list[str]:
    """Return the files below ``state`` that hold ``text``."""
    return [str(path) for path in state.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def unread(replica: Replica, name: str, **options: Any) -> Answer:
    """Ask without time for background work, so that the old memory is still there."""
    return await replica.ask(name, "next", **options)
