"""Sessions that are compressed: policies for tests, turns long enough to seal, and what their files are."""

from __future__ import annotations

from pathlib import Path

from support.replica import Answer, Replica, greedy

from agentmem.types import Fidelity, Policy

EXACT = Policy(Fidelity.EXACT, keep=0.2, recall_tokens=16, bits=64)
RECALL = Policy(Fidelity.RECALL, keep=0.2, recall_tokens=16, bits=64)
WEAK = Policy(Fidelity.RECALL, keep=0.2, recall_tokens=8, bits=64, objective=0.0)  # budgets stay, so that tests know them
COMPACT = Policy(Fidelity.COMPACT, keep=0.2, recall_tokens=8, bits=64, objective=0.0)


async def talk(replica: Replica, turns: int, name: str = "a", *, tokens: int = 20) -> Answer:
    """Take so many turns, each long enough for a unit of its own; return the last answer."""
    for index in range(turns):
        answer = await replica.ask(name, f"{index} what is there to say " * 3, tokens, ignore_eos=True)
        await replica.settle(name)
    return answer


def exact(replica: Replica, answer: Answer, name: str = "a") -> None:
    """Fail unless ``answer`` is what transformers says greedily with a full cache after the session's tokens."""
    count = len(answer.token_ids)
    assert greedy_all(tuple(replica.tokens(name)[:-count]), count) == answer.token_ids


def greedy_all(ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return ``count`` greedy tokens after ``ids``, also after an end token."""
    found: tuple[int, ...] = ()
    while len(found) < count:
        found += greedy(ids + found, count - len(found))
    return found


def result_files(replica: Replica) -> list[Path]:
    """Return the files of seal jobs' results, in order of name."""
    return sorted(path for path in (replica.state / "blocks").rglob("*.safetensors") if path.name.count(".") == 2)
